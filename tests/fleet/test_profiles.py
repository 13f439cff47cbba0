"""What loads have shown, kept by model, settings and device, and put in the place of estimates."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from shoal.fleet.needs import KvCost, KvLayers, Needs
from shoal.fleet.profiles import (
    KEPT,
    Profile,
    corrected,
    device_word,
    find_profile,
    measured_needs,
    merged,
    settings_hash,
)
from shoal.fleet.state import Device
from tests.fleet.fakes import GIB, HOST, gpu, spec


def profile(settings: Any = None, device: Device | None = None, **changes: Any) -> Profile:
    settings = settings or spec()
    start = Profile(settings.name, settings_hash(settings), device_word(device or gpu(0)), 15 * GIB, 100.0)
    return dataclasses.replace(start, **{"overheads": (2 * GIB,), **changes})


@pytest.mark.parametrize(
    "change",
    [{"args": ["--max-num-seqs", "4"]}, {"dtype": "bfloat16"}, {"env": {"A": "1"}}, {"tensor_parallel": 2},
     {"source": "elsewhere"}, {"context_length": 4096}, {"kv_cache_memory": "1GiB"}, {"environment": "other"}],
)  # fmt: skip
def test_settings_that_matter_make_another_profile(change: dict[str, Any]) -> None:
    assert settings_hash(spec(**change)) != settings_hash(spec())


@pytest.mark.parametrize(
    "change",
    [{"priority": 7}, {"floor": "1GiB"}, {"instances": 3}, {"load_on_start": True}, {"port": 9000},
     {"start_timeout": 9}, {"devices": ["cuda:1"]}, {"max_concurrency": 2}],
)  # fmt: skip
def test_settings_that_do_not_matter_keep_it(change: dict[str, Any]) -> None:
    assert settings_hash(spec(**change)) == settings_hash(spec())


def test_devices_of_one_name_share_a_profile() -> None:
    known = {profile().id: profile()}
    assert find_profile(known, spec(), gpu(3)) == profile()
    assert find_profile(known, spec(), dataclasses.replace(gpu(0), name="another GPU")) is None
    assert find_profile(known, spec(), HOST) is None
    assert find_profile(known, spec("other"), gpu(0)) is None
    assert device_word(HOST) == "host"


def test_what_a_start_needs() -> None:
    def needs(kv: int | None = GIB, **changes: Any) -> int | None:
        found = profile(**changes)
        return measured_needs({found.id: found}, spec(), [gpu(0), HOST], kv).get("cuda:0")

    assert needs() == 18 * GIB
    assert needs(kv=0) == 17 * GIB
    assert needs(kv=None) is None
    assert needs(overheads=()) is None
    assert needs(weights=None) is None
    assert measured_needs({}, spec(), [gpu(0)], GIB) == {}


def test_the_largest_overhead_of_the_last_loads_counts() -> None:
    found: Profile | None = None
    for overhead in (9, 2, 3, 2, 2, 2):
        found = merged(found, profile(overheads=(overhead * GIB,)))
    assert found is not None
    assert found.loads == 6
    assert len(found.overheads) == KEPT
    assert found.overhead == 3 * GIB, "the first was long ago"


def test_what_a_load_did_not_show_stays() -> None:
    before = profile(kv_token=9.5, phases={"a": 1.0}, load_seconds=3.0, sleep_seconds=0.1, wake_seconds=0.2, asleep=5)
    after = merged(before, profile(overheads=(), weights=None, measured_at=200.0))
    assert after == dataclasses.replace(before, loads=2, measured_at=200.0)
    changed = merged(before, profile(kv_token=8.0, phases={"b": 2.0}, load_seconds=4.0, version="2"))
    assert (changed.kv_token, changed.phases, changed.load_seconds, changed.version) == (8.0, {"b": 2.0}, 4.0, "2")
    assert (changed.sleep_seconds, changed.wake_seconds, changed.asleep) == (0.1, 0.2, 5)


def test_an_estimate_is_corrected() -> None:
    guess = Needs(14 * GIB, 3 * GIB, GIB, cost=KvCost((KvLayers(2, 1000), KvLayers(2, 1000, 64))), notes=("a guess",))
    assert corrected(guess, None) is guess
    found = corrected(guess, profile(kv_token=8000.0, loads=3))
    assert (found.weights, found.overhead, found.kv, found.measured) == (15 * GIB, 2 * GIB, GIB, True)
    assert found.notes == ("weights and overhead were measured at 3 loads on GPU",)
    assert found.cost == KvCost((KvLayers(2, 2000), KvLayers(2, 2000, 64))), "the shape stays"
    partly = corrected(guess, profile(overheads=(), kv_token=None))
    assert partly == guess
    blind = corrected(dataclasses.replace(guess, cost=None), profile(kv_token=8000.4))
    assert blind.cost is not None
    assert blind.cost.per_token == 8000
