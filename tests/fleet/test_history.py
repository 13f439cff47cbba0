"""The history: what is kept, for how long, and what it makes of counts that fall."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.history import DEVICE, MODEL, MODELS_KEPT, STATES, History
from shoal.fleet.history_rates import IDLE, Rates
from shoal.fleet.history_table import Table
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device, Instance, InstanceState, Model
from shoal.messages import Distribution, ModelCount, RelayReport, Traffic, Waiting

BOUNDS = (0.1, 0.2, 0.4)
NAN = math.nan


def report(
    relay: str, requests: int, tokens: int = 0, first: Sequence[int] = (0, 0, 0, 0), running: int = 0
) -> RelayReport:
    return RelayReport(
        relay=relay,
        epoch="e",
        version=1,
        outstanding={"m-1": running, "gone": 3},
        counts=(ModelCount("m", "ok", requests),),
        waiting=(Waiting("m", queued=2, held=1),),
        distributions=(Distribution("m", "normal", "first_byte", tuple(first), 1.0),),
        traffic=(Traffic("m", 1, 1, 5, tokens),),
    )


# -- rates ------------------------------------------------------------------------------------------------------------


def test_rates_are_of_the_time_between_and_not_of_what_was_before() -> None:
    rates = Rates(BOUNDS)
    assert rates.take(0.0, [report("r", 1000, 9000, (50, 0, 0, 0))]) == {}
    found = rates.take(5.0, [report("r", 1010, 9100, (50, 10, 0, 0))])["m"]
    assert (found.requests, found.tokens) == (2, 20)
    assert found.p50 == pytest.approx(0.15) and found.p95 == pytest.approx(0.195)
    assert rates.take(10.0, [report("r", 1010, 9100, (50, 10, 0, 0))]) == {}


def test_a_relay_that_starts_anew_hides_nothing_of_what_others_count() -> None:
    rates = Rates(BOUNDS)
    rates.take(0.0, [report("a", 100), report("b", 100)])
    assert rates.take(1.0, [report("new", 0), report("b", 107)])["m"].requests == 7
    assert rates.take(2.0, [report("new", 3), report("b", 107)])["m"].requests == 3


def test_counts_that_fall_begin_at_nothing() -> None:
    rates = Rates(BOUNDS)
    rates.take(0.0, [report("a", 100, 50, (9, 9, 9, 9))])
    found = rates.take(2.0, [report("a", 4, 6, (0, 0, 2, 0))])["m"]
    assert (found.requests, found.tokens) == (2, 3) and found.p50 == pytest.approx(0.3)


def test_one_that_is_away_for_a_moment_is_not_new() -> None:
    rates = Rates(BOUNDS)
    rates.take(0.0, [report("a", 100)])
    assert rates.take(1.0, []) == {}
    assert rates.take(2.0, [report("a", 105)])["m"].requests == 5


def test_buckets_of_another_version_do_not_count() -> None:
    rates = Rates(BOUNDS)
    rates.take(0.0, [report("a", 1, first=(1, 2))])
    found = rates.take(1.0, [report("a", 2, first=(5, 6))])["m"]
    assert math.isnan(found.p50) and found.requests == 1


# -- the table --------------------------------------------------------------------------------------------------------

ROWS = st.lists(st.dictionaries(st.sampled_from("abcde"), st.floats(0, 3).map(round), max_size=5), max_size=40)


@given(ROWS)
def test_a_table_tells_what_was_added_last_for_all_that_it_keeps(moments: list[dict[str, int]]) -> None:
    table = Table(7, (0.0, NAN), limit=5)
    for at, rows in enumerate(moments):
        table.add(float(at), {name: (value, value or NAN) for name, value in rows.items()})
    kept = list(range(len(moments)))[-7:]
    assert table.times() == kept
    for name in "abcde":
        values, others = table.columns(name)
        expected = [moments[at].get(name, 0) for at in kept]
        assert values == expected
        assert [0 if math.isnan(one) else one for one in others] == expected
    assert table.size <= 8 * 7 * (1 + 2 * 5)


def test_things_of_which_nothing_is_told_take_no_room() -> None:
    table = Table(10, (0.0,), limit=50)
    for at in range(5):
        table.add(at, {**{f"idle-{n}": (0.0,) for n in range(1000)}, "busy": (1.0,)})
    assert table.size == 8 * 10 * 2
    for at in range(5, 16):
        table.add(at, {})
    assert table.size == 8 * 10
    assert table.columns("busy") == [[0.0] * 10]


def test_beyond_the_limit_the_longest_silent_one_is_forgotten() -> None:
    table = Table(10, (0.0,), limit=2)
    table.add(0, {"old": (1.0,)})
    table.add(1, {"a": (1.0,)})
    table.add(2, {"b": (1.0,)})
    assert table.columns("old") == [[0.0] * 3]
    assert table.columns("a") == [[0.0, 1.0, 0.0]]
    for at in range(3, 6):
        table.add(at, {"a": (1.0,), "b": (1.0,), "c": (1.0,)})
    assert table.columns("b") == [[0.0, 0.0, 1.0, 1.0, 1.0, 1.0]]
    assert table.columns("c") == [[0.0] * 6]


# -- the whole --------------------------------------------------------------------------------------------------------


def fleet(models: int = 1, devices: int = 1) -> Fleet:
    made = Fleet()
    for number in range(models):
        name = f"m{number or ''}"
        made.models[name] = Model(ModelSpec(name=name, source="x", engine="simulated"), "api", 0.0)
        made.instances[f"{name}-1"] = Instance(f"{name}-1", name, "simulated", InstanceState.READY, (), 0.0, 0.0)
    made.devices = tuple(
        Device(f"simulated:{n}", "simulated", "x", 100, 40, utilization=0.5, power=300.0) for n in range(devices)
    )
    return made


def test_a_moment_has_devices_and_models() -> None:
    history, now = History(BOUNDS), fleet()
    now.relays[1] = report("r", 10, 100, running=2)
    now.relays[2] = report("r", 10, 100, running=2)  # one that connects anew may be there twice
    history.sample(now, 1000.0)
    now.relays[1] = now.relays[2] = report("r", 15, 200, (0, 5, 0, 0), running=3)
    history.sample(now, 1005.0)
    assert history.times("10m") == [1000, 1005]
    model = history.model("10m", "m")
    assert tuple(model) == MODEL
    assert model["requests"] == [0, 1] and model["tokens"] == [0, 20]
    assert model["running"] == [2, 3] and model["waiting"] == [3, 3]
    assert math.isnan(model["first_byte_p50"][0]) and model["first_byte_p50"][1] == 0.15
    assert [STATES[int(one)] for one in model["state"]] == ["ready", "ready"]
    device = history.device("10m", "simulated:0")
    assert tuple(device) == DEVICE
    assert device["memory_used"] == [40, 40] and device["utilization"] == [0.5, 0.5]
    assert all(map(math.isnan, device["temperature"] + device["kv_backed"]))
    assert history.model("10m", "unknown")["state"] == [0, 0]
    assert STATES[0] == "unloaded"


def test_ten_minutes_and_a_day_are_kept_and_a_minute_is_the_mean_of_its_moments() -> None:
    history, now = History(BOUNDS), fleet()
    seconds = 26 * 3600
    for step in range(seconds // 5 + 1):
        at = 5.0 * step
        now.devices = (Device("simulated:0", "simulated", "x", 100, step % 12),)
        now.relays[1] = report("r", step, 10 * step)
        history.sample(now, at)
    short, long = history.times("10m"), history.times("24h")
    assert short == [seconds - 5.0 * n for n in range(120, -1, -1)]
    assert len(long) == 24 * 60 + 1 and long[-1] == seconds and long[-1] - long[0] == 24 * 3600
    assert history.model("24h", "m")["requests"] == [pytest.approx(0.2)] * len(long)
    assert history.model("24h", "m")["tokens"] == [2.0] * len(long)
    assert set(history.device("24h", "simulated:0")["memory_used"]) == {5.5}
    assert (history.every("10m"), history.every("24h")) == (5, 60)


def test_percentiles_of_a_minute_are_of_all_its_answers() -> None:
    history, now = History(BOUNDS), fleet()
    for step in range(13):
        now.relays[1] = report("r", step, first=(11 * min(step, 9), 0, max(0, step - 9), 0))
        history.sample(now, 5.0 * step)
    assert history.model("10m", "m")["first_byte_p50"][-1] == pytest.approx(0.3)
    assert history.model("24h", "m")["first_byte_p50"] == [pytest.approx(0.051, rel=0.05)]


def test_a_clock_that_was_set_back_begins_anew() -> None:
    history, now = History(BOUNDS), fleet()
    for at in (1000.0, 1005.0, 400.0, 405.0):
        history.sample(now, at)
    assert history.times("10m") == [400, 405]


def test_a_machine_that_slept_goes_on() -> None:
    history, now = History(BOUNDS), fleet()
    for at in (0.0, 5.0, 5000.0, 5005.0):
        history.sample(now, at)
    assert history.times("10m") == [0, 5, 5000, 5005]
    assert history.times("24h") == [5000]


def test_models_that_come_and_go_take_bounded_room() -> None:
    history = History(BOUNDS)
    for step in range(40):
        now = Fleet()
        for number in range(50):
            name = f"m{step}-{number}"
            now.models[name] = Model(ModelSpec(name=name, source="x", engine="simulated"), "api", 0.0)
            now.instances[name] = Instance(name, name, "simulated", InstanceState.READY, (), 0.0, 0.0)
        history.sample(now, 60.0 * step)
    assert history.size <= 2 * MODELS_KEPT * len(MODEL) * 8 * 1600


def test_a_large_fleet_takes_less_than_promised() -> None:
    history, now = History(BOUNDS), fleet(models=100, devices=8)
    for step in range(30):
        history.sample(now, 5.0 * step)
    assert history.size <= 20 * 2**20
    assert IDLE.requests == 0
