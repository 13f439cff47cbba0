"""The queue of pending writes, as a property: the newest version of each record, everything else in order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.fleet.state import InstanceState
from shoal.store.pending import Batch, Pending

from . import records

_steps = st.lists(
    st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("abc"))
    | st.tuples(st.sampled_from(["event", "take", "fail", "succeed"]), st.just(""))
)


@settings(deadline=None)
@given(_steps)
def test_whatever_fails_in_between_the_end_is_what_was_saved_last(steps: list[tuple[str, str]]) -> None:
    pending, taken = Pending(10_000), Batch()
    stored: dict[tuple[str, str], object] = {}
    stored_events: list[str] = []
    wanted: dict[tuple[str, str], object] = {}
    wanted_events: list[str] = []

    def succeed(batch: Batch) -> None:
        stored.update(batch.records)
        stored_events.extend(event.message for event in batch.events)

    for n, (step, name) in enumerate(steps):
        key = ("model", name)
        match step:
            case "put":
                wanted[key] = records.model(name, created_at=float(n))
                pending.put(key, records.model(name, created_at=float(n)))
            case "delete":
                wanted[key] = None
                pending.put(key, None)
            case "event":
                wanted_events.append(str(n))
                pending.add_event(records.event(str(n)))
            case "take" if not taken:
                taken = pending.take()
            case "fail":
                pending.put_back(taken)
                taken = Batch()
            case "succeed":
                succeed(taken)
                taken = Batch()
    succeed(taken)
    succeed(pending.take())
    assert (stored, stored_events) == (wanted, wanted_events)
    assert len(pending) == 0
    assert pending.dropped == 0


def test_beyond_its_bound_it_drops_the_oldest_events_and_counts_them() -> None:
    pending = Pending(10)
    for n in range(15):
        pending.add_event(records.event(str(n)))
        pending.add_load(records.load(seconds=float(n)))
    batch = pending.take()
    assert [event.message for event in batch.events] == [str(n) for n in range(5, 15)]
    assert [load.seconds for load in batch.loads] == [float(n) for n in range(5, 15)]
    assert pending.dropped == 10
    pending.add_event(records.event("new"))
    pending.put_back(batch)
    assert [event.message for event in pending.peek().events] == [*(str(n) for n in range(6, 15)), "new"]
    assert pending.dropped == 11


def test_beyond_its_bound_it_drops_ended_instances_but_never_models_or_living_ones() -> None:
    pending = Pending(4)
    for n in range(4):
        pending.put(("model", f"m{n}"), records.model(f"m{n}"))
        pending.put(("instance", f"alive{n}"), records.instance(f"alive{n}"))
        pending.put(("instance", f"ended{n}"), records.instance(f"ended{n}", InstanceState.FAILED))
    names = {name for _, name in pending.take().records}
    assert names == {*(f"m{n}" for n in range(4)), *(f"alive{n}" for n in range(4))}
    assert pending.dropped == 4


def test_kinds_are_named_in_a_fixed_order() -> None:
    batch = Batch(events=[records.event()], loads=[records.load()])
    batch.records = {("instance", "i"): records.instance(), ("model", "m"): records.model()}
    assert batch.kinds() == ["models", "instances", "loads", "events"]
    assert len(batch) == 4
    assert Batch().kinds() == []
