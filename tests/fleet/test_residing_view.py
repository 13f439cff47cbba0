"""The fleet as the residency policy sees it."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.lifecycle import Event
from shoal.fleet.memory import Terms
from shoal.fleet.residency import Motion, Residency, Resident
from shoal.fleet.residing_use import Uses
from shoal.fleet.residing_view import Learned, View, budgets, words
from shoal.fleet.room import Room, Wants
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Device, Instance, InstanceState, Model, Rest
from shoal.fleet.state import InstanceState as S
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import DeviceBook
from tests.fleet.fakes import GIB, gpu, spec

NOW = 1000.0


def instance(state: InstanceState, name: str = "m", *, on: tuple[str, ...] = ("cuda:0",), **fields: Any) -> Instance:
    return Instance(f"{name}-00000001", name, "simulated", state, on, 1.0, 900.0, spec=spec(name), **fields)


def fleet(*instances: Instance, needs: int | None = 20, weights: int | None = 15, **settings: object) -> Fleet:
    """Each instance needs `needs` GiB, of which `weights` are weights."""
    found = Fleet(devices=(gpu(0), gpu(1), Device("host", "host", "memory", 64 * GIB, 0)))
    for one in instances:
        found.instances[one.id] = one
        found.models[one.model] = Model(spec(one.model, **settings), "api", 0.0)
        found.needs[one.id] = None if needs is None else needs * GIB
        found.weights[one.id] = None if weights is None else weights * GIB
    return found


def room(of: Fleet, kv: int = 1) -> Room:
    found = Room(of)
    for id, needs in list(of.needs.items()):
        found.prepared(id, needs, ("cuda",), kv * GIB)
    found.read(of.devices, NOW)
    return found


def see(of: Fleet, learned: Learned | None = None, wants: dict[str, Wants] | None = None, kv: int = 1) -> Resident:
    (resident,) = View(of, room(of, kv), Uses(), learned or Learned(), wants or {}, NOW).residents
    return resident


PLACES = [
    (S.READY, {}, Residency.GPU, None),
    (S.DRAINING, {}, Residency.GPU, Motion.UNLOADING),
    (S.DRAINING, {"rest": Rest(level=1)}, Residency.GPU, Motion.SLEEPING),
    (S.STOPPING, {}, Residency.GPU, Motion.UNLOADING),
    (S.STOPPING, {"rest": Rest(level=1, freed=16 * GIB)}, Residency.HOST, Motion.UNLOADING),
    (S.SLEEPING, {"rest": Rest(level=1, freed=16 * GIB)}, Residency.HOST, None),
    (S.WAKING, {"rest": Rest(level=1, freed=16 * GIB)}, Residency.HOST, Motion.WAKING),
    (S.STARTING, {}, Residency.DISK, Motion.LOADING),
    (S.QUEUED, {}, Residency.DISK, Motion.LOADING),
]


@pytest.mark.parametrize(("state", "fields", "place", "motion"), PLACES)
def test_where_an_instance_is_and_where_it_goes(
    state: InstanceState, fields: dict[str, Any], place: Residency, motion: Motion | None
) -> None:
    found = see(fleet(instance(state, can_sleep=True, **fields)))
    assert (found.place, found.motion, found.on) == (place, motion, ("cuda:0",))
    assert found.awake == 20 * GIB
    assert found.width == 1
    assert found.asleep == 4 * GIB, "its overhead stays: neither weights nor KV cache"


@pytest.mark.parametrize("state", [S.STOPPED, S.FAILED])
def test_what_has_ended_is_not_there(state: InstanceState) -> None:
    of = fleet(instance(state))
    assert View(of, room(of), Uses(), Learned(), {}, NOW).residents == ()


def test_what_ends_only_to_start_again_keeps_its_place() -> None:
    of = fleet(instance(S.STOPPING))
    of.after["m-00000001"] = Event.END_RESTART
    assert see(of).motion is Motion.LOADING


def test_one_that_is_queued_asks_for_devices_and_one_that_is_not_looked_at_yet_does_not() -> None:
    of = fleet(instance(S.QUEUED, on=()))
    assert View(of, room(of), Uses(), Learned(), {}, NOW).residents == ()
    found = see(of, wants={"m-00000001": Wants(("cuda:0", "cuda:1"), 1, 20 * GIB)})
    assert (found.place, found.motion, found.on, found.usable) == (Residency.DISK, None, (), ("cuda:0", "cuda:1"))
    assert (found.waiting, found.waiting_since) == (1, 900.0)
    assert not found.sleep_level


def test_one_that_sleeps_is_asked_for_once_it_is_wanted_awake_and_not_while_it_cannot_wake() -> None:
    of = fleet(instance(S.SLEEPING, rest=Rest(level=1, freed=16 * GIB)))
    assert see(of).waiting == 0
    of.rouse.add("m-00000001")
    found = see(of, Learned(roused={"m-00000001": 990.0}))
    assert (found.waiting, found.waiting_since) == (1, 990.0)
    assert found.awake - found.asleep == 16 * GIB, "as much as its wake takes"
    of.stuck.add("m-00000001")
    assert see(of).waiting == 0


def test_what_sleep_leaves_is_what_the_last_sleep_showed() -> None:
    of = fleet(instance(S.READY, can_sleep=True))
    assert see(of).asleep == 4 * GIB
    assert see(of, Learned(freed={"m": 19 * GIB})).asleep == GIB
    assert see(of, Learned(freed={"m": 30 * GIB})).asleep == 0


def test_who_can_sleep_and_what_that_takes_of_the_host() -> None:
    assert see(fleet(instance(S.READY))).sleep_level == 0
    of = fleet(instance(S.READY, can_sleep=True, on=("cuda:0", "cuda:1")))
    found = see(of)
    assert (found.sleep_level, found.host, found.width) == (1, 30 * GIB, 2)
    assert see(of, Learned(sleepless={"m-00000001": NOW + 1})).sleep_level == 0
    assert see(of, Learned(sleepless={"m-00000001": NOW})).sleep_level == 1, "that is past"
    assert see(fleet(instance(S.READY, can_sleep=True, on=("host",)))).host == 0
    assert see(fleet(instance(S.SLEEPING, rest=Rest(level=2, freed=GIB)))).host == 0, "its weights are nowhere"
    deep = see(fleet(instance(S.SLEEPING, rest=Rest(level=2, freed=GIB))), Learned(copied=lambda _: 7 * GIB))
    assert (deep.copied, deep.host_taken) == (True, 7 * GIB), "a copy from before stays"
    only = see(fleet(instance(S.SLEEPING, rest=Rest(level=1, freed=GIB))), Learned(copied=lambda _: 15 * GIB))
    assert (only.copied, only.host_taken) == (False, 15 * GIB), "that is all that it has"
    copied = see(of, Learned(copied=lambda _: 7 * GIB))
    assert (copied.copied, copied.host_taken) == (True, 7 * GIB)


def test_kv_cache_in_use_counts_as_taken_and_so_does_a_floor() -> None:
    of = fleet(instance(S.READY, elastic=True))
    for used, floor, more in [(0, 0, 0), (6, 0, 5), (2, 9, 8)]:
        plain = MemberState("m-00000001", 0, 1, 0, floor * GIB, None, 100, 0, 0, 0, 0, 0, None)
        member = msgspec.structs.replace(plain, backed=10 * GIB, used=used * GIB)
        state = DeviceState("cuda:0", 80 * GIB, 80 * GIB, 0, 0, 0, 0)
        of.ledger.read({"cuda:0": DeviceBook(state, (member,))})
        assert of.ledger.terms("m-00000001") == Terms(floor * GIB, None, 100)
        assert see(of).awake == (20 + more) * GIB


@pytest.mark.parametrize(
    ("settings", "pinned"),
    [({}, False), ({"pin": True}, True), ({"on_request": False}, True), ({"priority": 7}, False)],
)
def test_settings_as_they_are_now_count(settings: dict[str, Any], pinned: bool) -> None:
    found = see(fleet(instance(S.READY), sleep_after=5, unload_after="1h", **settings))
    assert found.pinned is pinned
    assert (found.sleep_after, found.unload_after) == (5, 3600)
    assert found.priority == settings.get("priority", 100)


def test_what_is_held_or_has_lost_its_settings_is_not_touched() -> None:
    assert see(fleet(instance(S.READY)), Learned(held={"m-00000001"})).pinned
    of = fleet(dataclasses.replace(instance(S.READY), spec=None))
    assert see(of).pinned


def test_costs_are_what_was_seen() -> None:
    of = fleet(instance(S.READY))
    plain = see(of)
    of.naps |= {("m", "woke"): (2, 3.0), ("m", "slept"): (4, 1.0)}
    found = see(of, Learned(loads={"m": 33.0}))
    assert (found.wake_cost, found.sleep_cost, found.load_cost) == (1.5, 0.25, 33.0)
    assert plain.load_cost == 60


@given(
    used=st.integers(0, 80), states=st.lists(st.sampled_from([place[0] for place in PLACES]), max_size=5),
    needs=st.none() | st.integers(0, 30),
)  # fmt: skip
def test_what_is_free_for_the_policy_is_the_room_that_an_instance_finds(
    used: int, states: list[InstanceState], needs: int | None
) -> None:
    of = fleet(*(instance(state, f"m{n}", rest=Rest(freed=GIB)) for n, state in enumerate(states)), needs=needs)
    of.devices = (gpu(0, free=(80 - used) * GIB), gpu(1))
    there = room(of)
    view = View(of, there, Uses(), Learned(), {}, NOW)
    sizes = budgets(of.devices, there.now(), view.residents, (), {})
    for device in of.devices:
        taken = sum(resident.taken for resident in view.residents if device.id in resident.on)
        assert sizes[device.id] - taken == there.now()[device.id]


def test_while_readings_are_in_doubt_what_was_known_before_counts_if_that_is_more() -> None:
    devices = (gpu(0, free=10 * GIB), gpu(1, free=10 * GIB))
    free = {"cuda:0": 10 * GIB, "cuda:1": 10 * GIB}
    assert budgets(devices, free, (), (), {"cuda:0": 50 * GIB}) == free
    assert budgets(devices, free, (), ("cuda:0",), {"cuda:0": 50 * GIB}) == free | {"cuda:0": 50 * GIB}
    assert budgets(devices, free, (), ("cuda:0",), {"cuda:0": GIB}) == free
    assert budgets(devices, free, (), ("cuda:1",), {}) == free | {"cuda:1": 80 * GIB}, "nothing is known: all of it"
    broken = dataclasses.replace(devices[0], error="it has fallen off the bus")
    assert budgets((broken,), free, (), (), {}) == {}


def test_people_are_told_of_models_and_not_of_instances() -> None:
    names = {"qwen-3-0a1b2c3d": "org/Qwen 3", "model-00000001": "模型"}
    text = "qwen-3-0a1b2c3d gives way: model-00000001 needs 2 B, unlike other-ffffffff"
    assert words(text, names.get) == "org/Qwen 3 gives way: 模型 needs 2 B, unlike other-ffffffff"
