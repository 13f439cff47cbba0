"""Who goes first where pages are made: a thread that waits for them, or the engine's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from shoal.engines.vllm.plugin.demand import Workload

from .harness import BLOCK, Engine, Machine, until


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Machine(100) as machine:
        yield machine.engine(90)


@pytest.fixture
def asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """How many blocks were backed together, and whether urgently."""
    said: list[tuple[int, bool]] = []
    back = engine.ranks.back

    def note(ids: Sequence[int], *, urgent: bool = False) -> int:
        said.append((len(ids), urgent))
        return back(ids, urgent=urgent)

    monkeypatch.setattr(engine.ranks, "back", note)
    return said


def test_growth_ahead_of_what_runs_is_not_urgent(engine: Engine, asked: list[tuple[int, bool]]) -> None:
    engine.start()
    engine.settled()
    asked.clear()
    engine.work = Workload(running=1, prefilling=40, step=40)
    engine.pager.poke()
    until(lambda: engine.elastic.free >= 40)
    engine.settled()
    assert asked
    assert not any(urgent for _, urgent in asked)


def test_growth_for_the_first_of_those_who_wait_is_urgent(engine: Engine, asked: list[tuple[int, bool]]) -> None:
    engine.start()
    engine.settled()
    asked.clear()
    engine.work = Workload(queued=2, waiting=40, step=40)
    engine.pager.poke()
    until(lambda: engine.elastic.free >= 40)
    engine.settled()
    assert asked
    assert all(urgent for _, urgent in asked)


def test_what_a_step_lacks_is_urgent(engine: Engine, asked: list[tuple[int, bool]]) -> None:
    engine.start()
    engine.leases.ask(60 * BLOCK, 60 * BLOCK)
    until(lambda: engine.leases.lease >= 60 * BLOCK)
    engine.settled()
    asked.clear()
    engine.work = Workload(running=1)
    with engine.pager.lock:
        short = engine.elastic.free + 5
        engine.pager.before_step(lambda: short, short)
    assert (5, True) in asked
