"""What is told of what was published: properties of the order, and of what may be left out."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.deltas import SPACING, Deltas, supersedes
from shoal.fleet.memory import MemoryView
from shoal.fleet.snapshot import InstanceView, ModelView
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import InstanceState

Event = tuple[str, Any]
NAMES = "abc"


def memory(serial: int) -> MemoryView:
    return MemoryView("elastic", "", {}, None, used=serial)


def instance(name: str, serial: int) -> InstanceView:
    return InstanceView(
        id=f"{name}-1", model=name, engine="simulated", state=InstanceState.READY, reason="", devices=(),
        created_at=0.0, changed_at=0.0, ready_at=None, pid=None, address="", environment="", restarts=0,
        restart_at=None, progress=None, failure=None, memory=memory(serial), outdated=False, can_sleep=True,
        sleepless_because="", sleep_level=None, wanted_awake=False,
    )  # fmt: skip


def model(name: str, serial: int) -> Event:
    spec = ModelSpec(name=name, source="x", engine="simulated")
    return "model", ModelView(name, "api", float(serial), 1, "ready", spec, (instance(name, serial),))


def made(kind: str, names: set[str], serial: int) -> Event:
    name = min(names)
    if kind == "model":
        return model(name, serial)
    if kind == "memory":
        return kind, {"instances": {f"{one}-1": memory(serial) for one in names}, "devices": serial}
    if kind == "devices":
        return kind, {"devices": serial}
    return (kind, {"name": name}) if kind == "model_removed" else (kind, serial)


KINDS = st.sampled_from(["model", "memory", "devices", "message", "model_removed", "move"])
PUBLISHED = st.lists(st.tuples(KINDS, st.sets(st.sampled_from(NAMES), min_size=1)), max_size=25).map(
    lambda drawn: [made(kind, names, serial) for serial, (kind, names) in enumerate(drawn)]
)


def follow(events: list[Event]) -> list[Any]:
    """What somebody knows who follows the stream: after each event that nothing makes void, and in the end."""
    models: dict[str, int] = {}
    held: dict[str, int | None] = {}
    devices: Any = None
    seen: list[Any] = []
    for kind, data in events:
        if kind == "model":
            models[data.name] = int(data.created_at)
            held[f"{data.name}-1"] = data.instances[0].memory.used
        elif kind == "model_removed":
            models.pop(data["name"], None)
            held.pop(f"{data['name']}-1", None)
        elif kind in ("memory", "devices"):
            devices = data["devices"]
            # Memory of an instance that no model has says nothing to anybody.
            held |= {id: view.used for id, view in data.get("instances", {}).items() if id in held}
        if not supersedes(kind, data):
            seen.append((kind, data, dict(models), dict(held), devices))
    return [*seen, (dict(models), dict(held), devices)]


@given(PUBLISHED)
def test_whoever_follows_knows_the_same_at_every_message_and_in_the_end(published: list[Event]) -> None:
    deltas = Deltas()
    for event in published:
        deltas.add(*event)
    assert follow(deltas.take(0.0)) == follow(published)
    assert deltas.take(1.0) == []


@given(PUBLISHED)
def test_no_more_is_told_than_one_of_each_between_two_messages(published: list[Event]) -> None:
    deltas = Deltas()
    for event in published:
        deltas.add(*event)
    told = deltas.take(0.0)
    assert len(told) <= len(published)
    between: list[str] = []
    for kind, data in told:
        if not supersedes(kind, data):
            between = []
            continue
        key = data.name if isinstance(data, ModelView) else "devices"
        assert key not in between
        between.append(key)


@given(st.lists(st.floats(0, 2, allow_nan=False), max_size=50))
def test_it_is_told_at_most_four_times_a_second_and_nothing_waits_longer(steps: list[float]) -> None:
    deltas, now, told = Deltas(), 100.0, []
    for serial, step in enumerate(steps):
        deltas.add(*model("a", serial))
        wait = deltas.due(now)
        assert wait is not None and 0 <= wait <= SPACING + 1e-9
        if step >= wait:
            told.append(now + wait)
            assert len(deltas.take(now + wait)) == 1
            assert deltas.due(now + wait) is None
        now += step
    assert all(after - before >= SPACING - 1e-9 for before, after in itertools.pairwise(told))


def test_the_first_after_a_quiet_time_is_told_at_once() -> None:
    deltas = Deltas()
    assert deltas.due(0.0) is None
    deltas.add(*model("a", 1))
    assert deltas.due(0.0) == 0
    deltas.take(0.0)
    deltas.add(*model("a", 2))
    assert deltas.due(0.1) == SPACING - 0.1
    assert deltas.due(9.0) == 0
