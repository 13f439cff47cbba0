"""How often an engine says to the broker what it wants and holds: what presses at once, else a few times a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from shoal.engines.vllm.plugin.demand import View, Workload
from shoal.engines.vllm.plugin.leases import ASK_EVERY, Leases
from shoal.engines.vllm.plugin.pool import ElasticPool
from shoal.engines.vllm.plugin.reporting import MUCH, SAY_EVERY, Report
from shoal.memory.client import Rank
from shoal.memory.elastic import ElasticTerms
from shoal.memory.pages import Geometry

from .harness import BLOCK, Machine, until
from .stand_ins import Pool


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(100) as machine:
        yield machine


@pytest.fixture
def leases(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Leases, list[float]]]:
    """The leases of one engine, and the time that it is for them."""
    now = [0.0]
    leases = Leases(ElasticTerms(machine.path, "e"), [Rank("e", "device", machine.size, unit=BLOCK)])
    leases.open()
    monkeypatch.setattr("shoal.engines.vllm.plugin.leases.time", Clock(now))
    yield leases, now
    leases.close()


class Clock:
    def __init__(self, now: list[float]) -> None:
        self._now = now

    def monotonic(self) -> float:
        return self._now[0]


def has(leases: Leases, size: int) -> bool:
    return leases.lease >= size


def wants(machine: Machine) -> int:
    """What the broker last heard."""
    (member,) = machine.broker.broker.ledger.devices["device"].members.values()
    return int(member.want)


def test_who_wants_more_than_it_has_is_heard_at_once(machine: Machine, leases: tuple[Leases, list[float]]) -> None:
    mine, _ = leases
    for size in (10 * BLOCK, 20 * BLOCK, 30 * BLOCK):
        assert mine.ask(size, size)
        until(partial(has, mine, size), "the lease")


def test_who_has_all_it_wants_says_so_a_few_times_a_second(
    machine: Machine, leases: tuple[Leases, list[float]]
) -> None:
    mine, now = leases
    assert mine.ask(30 * BLOCK, 40 * BLOCK)
    until(partial(has, mine, 40 * BLOCK), "the lease")
    assert mine.ask(30 * BLOCK, 40 * BLOCK), "the same is no news"
    now[0] += ASK_EVERY / 2
    assert not mine.ask(20 * BLOCK, 30 * BLOCK)
    assert mine.ask(20 * BLOCK, 30 * BLOCK, 5 * BLOCK), "the first request cannot run with less"
    now[0] += ASK_EVERY
    assert mine.ask(21 * BLOCK, 31 * BLOCK)
    until(lambda: wants(machine) == 31 * BLOCK, "it was heard")


def test_after_a_release_all_is_said_again_at_once(machine: Machine, leases: tuple[Leases, list[float]]) -> None:
    mine, _ = leases
    mine.ask(30 * BLOCK, 40 * BLOCK)
    until(partial(has, mine, 40 * BLOCK), "the lease")
    mine.release(10 * BLOCK)
    assert mine.ask(20 * BLOCK, 25 * BLOCK)
    until(lambda: wants(machine) == 25 * BLOCK, "it was heard")


class Heard:
    """Leases that keep what is reported."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.releases = 0

    def report(self, **held: Any) -> None:
        self.said.append(held)


def a_report() -> tuple[Report, Heard, threading.Lock]:
    heard = Heard()
    return Report(ElasticPool(Pool(100), Geometry.contiguous(100, BLOCK, BLOCK)), heard, BLOCK), heard, threading.Lock()


def a_view(used: int, *, queued: int = 0, waiting: int = 0, backed: int = 50) -> View:
    return View(
        block=BLOCK,
        lease=90 * BLOCK,
        excess=0,
        backed=backed * BLOCK,
        leaving=0,
        used=used,
        free=5,
        fresh=5,
        parked=50,
        rate=0.0,
        spare=0,
        work=Workload(running=1, queued=queued, waiting=waiting),
    )


def test_reports_that_do_not_press_come_a_few_times_a_second() -> None:
    report, heard, lock = a_report()
    assert report.say(a_view(10), 100.0, lock)
    assert report.say(a_view(10), 100.01, lock), "nothing is news"
    assert not report.say(a_view(11), 100.01, lock)
    assert report.say(a_view(11, queued=3, waiting=9), 100.02, lock), "requests wait for memory"
    assert report.say(a_view(11), 100.03, lock), "and do no more"
    assert report.say(a_view(12), 100.03 + SAY_EVERY, lock)
    assert not report.say(a_view(12, backed=51), 100.04 + SAY_EVERY, lock)
    assert report.say(a_view(12, backed=50 + MUCH // BLOCK), 100.05 + SAY_EVERY, lock), "others could be blamed for it"
    assert [said["used"] // BLOCK for said in heard.said] == [10, 11, 11, 12, 12]
    assert [said["waiting"] for said in heard.said] == [0, 3, 0, 0, 0]


def test_what_was_given_back_and_taken_again_meanwhile_is_said_again() -> None:
    """The broker takes a release off what it knows; to be told the same is news to it."""
    report, heard, lock = a_report()
    assert report.say(a_view(10), 100.0, lock)
    heard.releases += 1
    assert not report.say(a_view(10), 100.01, lock)
    assert report.say(a_view(10), 100.0 + SAY_EVERY, lock)
    assert len(heard.said) == 2


def test_a_lease_that_was_opened_again_has_been_told_nothing(leases: tuple[Leases, list[float]]) -> None:
    mine, _ = leases
    before = mine.releases
    mine.close()
    mine.open()
    assert mine.releases > before
