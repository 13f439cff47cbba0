"""What the traffic of models is added up from: the reports of the relays."""

from __future__ import annotations

from shoal.api.traffic import traffic
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Instance, InstanceState, Model
from shoal.gateway.measures import BOUNDS
from shoal.messages import Distribution, ModelCount, RelayReport, Waiting
from shoal.messages import Traffic as Carried

BUCKETS = len(BOUNDS["first_byte"]) + 1


def fleet(**reports: RelayReport) -> Fleet:
    made = Fleet()
    for name in ("a", "b"):
        spec = ModelSpec(name=name, source="x", engine="simulated")
        made.models[name] = Model(spec=spec, origin="api", created_at=0.0)
        made.instances[f"{name}-1"] = Instance(f"{name}-1", name, "simulated", InstanceState.READY, (), 0.0, 0.0)
    made.relays = dict(enumerate(reports.values()))
    return made


def report(relay: str, first: int) -> RelayReport:
    counts = tuple(first if n == 3 else 0 for n in range(BUCKETS))
    return RelayReport(
        relay=relay,
        epoch="e",
        version=1,
        outstanding={"a-1": 2, "gone": 5},
        counts=(ModelCount("a", "ok", 3), ModelCount("a", "cancelled", 1, "high")),
        waiting=(Waiting("a", queued=4, held=1),),
        distributions=(
            Distribution("a", "normal", "first_byte", counts, 1.0),
            Distribution("a", "high", "first_byte", counts, 1.0),
            Distribution("a", "normal", "duration", counts, 1.0),
            Distribution("b", "normal", "first_byte", (1, 2), 1.0),  # of a relay with other buckets
        ),
        traffic=(Carried("a", 1, 2, 30, 40),),
    )


def test_relays_classes_and_outcomes_are_added_up() -> None:
    found = traffic(fleet(x=report("r1", 5), y=report("r2", 7)), 12.5)
    a, b = found.models
    assert (found.at, a.model, b.model) == (12.5, "a", "b")
    assert (a.running, a.queued, a.held, a.requests) == (4, 8, 2, 8)
    assert (a.prompt_tokens, a.completion_tokens) == (60, 80)
    assert a.first_byte == [24 if n == 3 else 0 for n in range(BUCKETS)]
    assert len(found.bounds) == BUCKETS - 1
    assert (b.running, b.requests, sum(b.first_byte)) == (0, 0, 0)


def test_a_relay_that_is_there_twice_counts_once() -> None:
    found = traffic(fleet(x=report("r1", 5), y=report("r1", 5)), 0.0)
    assert found.models[0].requests == 4


def test_without_relays_every_model_reads_nothing() -> None:
    assert [(one.model, one.requests, one.running) for one in traffic(fleet(), 0.0).models] == [
        ("a", 0, 0),
        ("b", 0, 0),
    ]
