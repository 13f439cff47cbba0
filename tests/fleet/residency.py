"""Snapshots for tests of residency, plans made of them, and a plan carried out on one, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from shoal.fleet.residency import Action, Device, Kind, Motion, Plan, Residency, Resident, Rules, Snapshot
from shoal.fleet.residency_plan import decide

GPU, HOST, DISK = Residency.GPU, Residency.HOST, Residency.DISK
RULES = Rules(patience=10, min_awake=5, payback=2, switches=3, switch_window=60, horizon=300)
NOW = 1000.0


def snapshot(*residents: Resident, sizes: tuple[int, ...] = (10,), host: int = 100, now: float = NOW) -> Snapshot:
    """Devices `d0`, `d1`, … of `sizes` bytes."""
    return Snapshot(now, tuple(Device(f"d{n}", size) for n, size in enumerate(sizes)), residents, host)


def awake(name: str, size: int = 6, on: str = "d0", **values: Any) -> Resident:
    """One that has been awake for long, was last used a minute ago, and can sleep."""
    base = Resident(
        name, GPU, on=tuple(on.split()), width=len(on.split()), awake=size, asleep=1, host=size, sleep_level=1,
        last_use=NOW - 60, awake_since=NOW - 600,
    )  # fmt: skip
    return dataclasses.replace(base, **values)


def asleep(name: str, size: int = 6, on: str = "d0", **values: Any) -> Resident:
    """One that sleeps."""
    return dataclasses.replace(awake(name, size, on), place=HOST, **values)


def unloaded(name: str, size: int = 6, usable: str = "", **values: Any) -> Resident:
    """One on disk."""
    base = dataclasses.replace(awake(name, size, ""), place=DISK, width=1, usable=tuple(usable.split()))
    return dataclasses.replace(base, **values)


def wanted(resident: Resident, waiting: int = 1, since: float = 1.0, **values: Any) -> Resident:
    """The same with requests that wait for `since` seconds."""
    return dataclasses.replace(resident, **{"waiting": waiting, "waiting_since": NOW - since, **values})


def plan(*residents: Resident, rules: Rules = RULES, **more: Any) -> Plan:
    return decide(snapshot(*residents, **more), rules)


def done(found: Plan) -> list[tuple[str, str]]:
    return [(action.kind.value, action.name) for action in found.actions]


def only(found: Plan) -> Action:
    (action,) = found.actions
    return action


def used(state: Snapshot) -> dict[str, int]:
    """Bytes taken, by device; of the host under the empty name."""
    taken = {device.id: 0 for device in state.devices} | {"": 0}
    for resident in state.residents:
        taken[""] += resident.host_taken
        for device in resident.on:
            if device in taken:
                taken[device] += resident.taken
    return taken


def overdrawn(state: Snapshot) -> list[str]:
    """Accounts that have more taken than their budget."""
    budgets = {device.id: device.budget for device in state.devices} | {"": state.host_budget}
    return [account for account, size in used(state).items() if size > budgets[account]]


_MOTIONS = {
    Kind.WAKE: Motion.WAKING, Kind.LOAD: Motion.LOADING, Kind.SLEEP: Motion.SLEEPING, Kind.UNLOAD: Motion.UNLOADING
}  # fmt: skip
_FROM = {Kind.WAKE: (HOST,), Kind.LOAD: (DISK,), Kind.SLEEP: (GPU,), Kind.UNLOAD: (GPU, HOST)}


def begun(resident: Resident, action: Action) -> Resident:
    """The resident when an action has begun; asserts that it could."""
    assert resident.motion is None
    if action.kind is Kind.FORGET:
        assert resident.copied and (resident.place is GPU or resident.sleep_level == 2)
        return dataclasses.replace(resident, copied=False, host=resident.host if resident.sleep_level == 1 else 0)
    if action.kind is Kind.FLOOR:
        assert resident.place is GPU and action.floor is not None
        change = action.floor - resident.floor
        assert resident.floor_least is None or resident.floor_least <= action.floor
        assert action.floor <= resident.floor_wanted
        return dataclasses.replace(resident, floor=action.floor, awake=resident.awake + change)
    assert resident.place in _FROM[action.kind]
    if action.kind is Kind.LOAD:
        assert len(set(action.devices)) == resident.width
        assert set(action.devices) <= set(resident.usable or action.devices)
    else:
        assert action.devices == resident.on
    assert action.kind is not Kind.SLEEP or resident.can_sleep
    return dataclasses.replace(resident, motion=_MOTIONS[action.kind], on=action.devices)


def ended(resident: Resident, now: float) -> Resident:
    """The resident when its motion is over."""
    match resident.motion:
        case Motion.LOADING | Motion.WAKING:
            copied = resident.motion is Motion.WAKING and resident.sleep_level == 1
            return dataclasses.replace(resident, place=GPU, motion=None, awake_since=now, copied=copied)
        case Motion.SLEEPING:
            return dataclasses.replace(resident, place=HOST, motion=None, copied=False)
        case Motion.UNLOADING:
            return dataclasses.replace(resident, place=DISK, motion=None, on=(), copied=False)
    return resident


def carried_out(state: Snapshot, actions: tuple[Action, ...]) -> Iterator[Snapshot]:
    """Every state of carrying out a plan in order, each action as soon as those that it comes after have ended."""
    for action in actions:
        residents = {resident.name: resident for resident in state.residents}
        for name in action.after:
            residents[name] = ended(residents[name], state.now)
        residents[action.name] = begun(residents[action.name], action)
        state = dataclasses.replace(state, residents=tuple(residents.values()))
        yield state
    yield dataclasses.replace(state, residents=tuple(ended(resident, state.now) for resident in state.residents))


_SECONDS = st.sampled_from([0.0, 0.5, 1.0, 4.0, 5.0, 9.0, 10.0, 11.0, 30.0, 60.0, 300.0, 600.0])
_LIMITS = st.none() | st.sampled_from([0.0, 5.0, 60.0, 300.0])


@st.composite
def residents(draw: st.DrawFn, name: str, devices: tuple[str, ...]) -> Resident:
    """Any resident that could be, by itself."""
    place = draw(st.sampled_from(list(Residency)))
    width = draw(st.integers(1, min(2, len(devices))))
    size = draw(st.integers(0, 12))
    level = draw(st.integers(0, 2))
    if place is HOST:
        level = max(1, level)
    motions = {
        GPU: [None, None, Motion.SLEEPING, Motion.UNLOADING],
        HOST: [None, None, Motion.WAKING, Motion.UNLOADING],
        DISK: [None, None, None, Motion.LOADING],
    }
    motion = draw(st.sampled_from(motions[place]))
    if motion is Motion.SLEEPING:
        level = max(1, level)
    usable = tuple(draw(st.permutations(devices))[: draw(st.integers(width, len(devices)))])
    on = () if place is DISK and motion is None else tuple(sorted(usable[:width]))
    waiting = draw(st.integers(0, 3))
    running = draw(st.integers(0, 2)) if place is GPU else 0
    copied = draw(st.booleans()) and level == {GPU: 1, HOST: 2, DISK: -1}[place]
    floor_wanted = draw(st.integers(0, size)) if place is not DISK else 0
    floor = draw(st.integers(0, floor_wanted))
    return Resident(
        name=name, place=place, motion=motion, on=on, width=width,
        usable=usable if draw(st.booleans()) or set(on) - set(devices) else (),
        awake=size, asleep=draw(st.integers(0, min(2, size))) if level else 0,
        host=size if level == 1 or copied else 0, copied=copied, sleep_level=level,
        running=running, waiting=waiting, waiting_since=NOW - draw(_SECONDS) if waiting else None,
        rate=draw(st.sampled_from([0.0, 0.001, 0.1, 1.0, 10.0])), last_use=NOW - draw(_SECONDS),
        awake_since=NOW - draw(_SECONDS), priority=draw(st.sampled_from([1, 100, 200])), pinned=draw(st.booleans()),
        floor=floor, floor_wanted=floor_wanted, floor_least=draw(st.none() | st.integers(0, floor)),
        sleep_after=draw(_LIMITS), unload_after=draw(_LIMITS), keep_alive=draw(_LIMITS | st.just(-1.0)),
        wake_cost=draw(st.sampled_from([0.5, 5.0])), load_cost=draw(st.sampled_from([1.0, 60.0])),
    )  # fmt: skip


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any state of a few devices within its budgets. One of them may be lost, with models that are on it or may be."""
    names = tuple(f"d{n}" for n in range(draw(st.integers(1, 3))))
    some = tuple(draw(residents(f"m{n}", names)) for n in range(draw(st.integers(0, 7))))
    state = Snapshot(NOW, tuple(Device(name, 10**6) for name in names), some, 10**6)
    taken = used(state)
    gave_way = st.lists(_SECONDS.map(lambda ago: NOW - ago), max_size=3).map(tuple)
    lost = draw(st.sampled_from(["", "", "", *names]))  # one that cannot be read any more is not there
    devices = tuple(
        Device(name, taken[name] + draw(st.integers(0, 8)), draw(gave_way)) for name in names if name != lost
    )
    return Snapshot(NOW, devices, some, taken[""] + draw(st.integers(0, 12)))
