"""Engines whose requests do not fit beside each other take turns, so that nobody waits for ever."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from shoal.memory.ledger import Device, Ledger, Member, Terms
from shoal.memory.policy import decide

from .policies import a_device, join, obey_all


def test_two_lone_requests_that_do_not_fit_together_take_turns() -> None:
    ledger, device = a_device(10)
    a, b = join(ledger, device, "a"), join(ledger, device, "b")
    ledger.ask(b, 6, 0, 0, least=6)
    ledger.ask(a, 6, 0, 1, least=6)
    obey_all(ledger, device, 1)
    assert (a.lease, b.lease) == (0, 6)
    for turn in range(6):
        now = 2.0 + turn
        runs, waits = (a, b) if turn % 2 else (b, a)
        ledger.ask(runs, 12, 0, now)  # it starts, and has another one waiting
        ledger.report(runs, used=6, cached=(), backed=6, waiting=1, now=now)
        news = decide(ledger, device, now)
        assert (runs.lease, runs.recalled, waits.lease) == (6, 4, 4)
        assert (news.grants == {waits: 4}) == (turn == 0)
        ledger.report(runs, used=0, cached=(6,), backed=6, waiting=1, now=now)
        ledger.ask(runs, 6, 12, now, least=6)
        ledger.release(runs, 2)
        obey_all(ledger, device, now)
        assert (runs.lease, waits.lease) == (4, 6)


def test_those_whose_turn_it_is_not_keep_floor_and_cache_and_get_no_more() -> None:
    ledger, device = a_device(100)
    a, b, c = join(ledger, device, "a"), join(ledger, device, "b", floor=10), join(ledger, device, "c")
    ledger.ask(b, 50, 50, 0)
    decide(ledger, device, 0)
    ledger.report(b, used=0, cached=(30,), backed=50, waiting=0, now=0)
    ledger.ask(a, 60, 60, 1, least=60)
    ledger.ask(b, 70, 100, 2, least=70)
    ledger.ask(c, 80, 80, 3, least=80)
    news = decide(ledger, device, 3)
    assert (news.recalls[b].lease, news.recalls[b].reason) == (40, "idle")
    assert news.grants == {a: 50}
    ledger.release(b, 10)
    assert decide(ledger, device, 3).grants == {a: 10}
    assert (a.lease, b.lease, c.lease) == (60, 40, 0)
    ledger.leave(a)
    ledger.ask(b, 70, 90, 4, least=70)
    obey_all(ledger, device, 4)
    assert (b.lease, c.lease) == (90, 0)


def test_what_can_never_run_takes_no_turn() -> None:
    ledger, device = a_device(100)
    a, b, c = join(ledger, device, "a"), join(ledger, device, "b"), join(ledger, device, "c", floor=30)
    ledger.ask(a, 71, 0, 0, least=71)
    ledger.ask(b, 70, 0, 1, least=70)
    assert (device.most(a), device.most(b)) == (70, 70)
    obey_all(ledger, device, 1)
    assert (a.lease, b.lease, c.lease) == (0, 70, 0)


@dataclass
class Lone:
    """An engine that runs its requests one after the other as memory allows, preempts none, and gives back first."""

    member: Member
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)

    def speak(self, ledger: Ledger, now: float) -> None:
        may = self.member.lease if self.member.recalled is None else self.member.recalled
        while self.waiting and sum(self.running) + self.waiting[0] <= may:
            self.running.append(self.waiting.pop(0))
        used = sum(self.running)
        ledger.report(self.member, used=used, cached=(), backed=used, waiting=len(self.waiting), now=now)
        least = self.waiting[0] if self.waiting and not self.running else 0
        need = used + sum(self.waiting)
        ledger.ask(self.member, need, need, now, least=least)

    def obey(self, ledger: Ledger) -> bool:
        lease = self.member.lease
        over = 0 if self.member.recalled is None else min(lease - self.member.recalled, lease - sum(self.running))
        if over > 0:
            ledger.release(self.member, over)
        return over > 0


def rest(ledger: Ledger, device: Device, engines: list[Lone], now: float) -> None:
    """All speak, are granted and obey, until nothing moves."""
    for _ in range(200):
        for lone in engines:
            lone.speak(ledger, now)
        news = decide(ledger, device, now)
        ledger.check()
        assert device.leased <= device.budget
        obeyed = [lone.obey(ledger) for lone in engines]
        if not any(obeyed) and not news.grants and not news.recalls:
            return
    raise AssertionError("memory goes round in circles")


lone_engines = st.lists(
    st.tuples(
        st.integers(0, 20),
        st.integers(1, 9),
        st.sampled_from([1, 1, 3, 8]),
        st.lists(st.floats(0.01, 1), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def engines_of(
    budget: int, parts: list[tuple[int, int, int, list[float]]]
) -> tuple[Ledger, Device, list[Lone], list[list[int]]]:
    """Engines, and for each requests of which every one can run if it is alone."""
    ledger, device = a_device(budget)
    engines = [
        Lone(ledger.join(device, f"e{i}", 0, Terms(min(floor, budget // len(parts)), None, priority, unit)))
        for i, (floor, priority, unit, _) in enumerate(parts)
    ]
    sizes = [[max(1, int(s * device.most(e.member))) for s in part[3]] for e, part in zip(engines, parts, strict=True)]
    return ledger, device, engines, sizes


@given(st.integers(20, 200), lone_engines, st.randoms(use_true_random=False))
def test_every_request_that_can_run_alone_runs_at_last(
    budget: int, parts: list[tuple[int, int, int, list[float]]], chance: random.Random
) -> None:
    ledger, device, engines, requests = engines_of(budget, parts)
    for lone, sizes in zip(engines, requests, strict=True):
        lone.waiting = sizes
    now = 0.0
    for _ in range(sum(map(len, requests))):
        now += 1.0
        chance.shuffle(engines)
        rest(ledger, device, engines, now)
        running = [lone for lone in engines if lone.running]
        assert running, "nobody can go on"
        lone = chance.choice(running)
        lone.running.pop(chance.randrange(len(lone.running)))
    assert not any(lone.waiting or lone.running for lone in engines)


@given(st.integers(20, 200), lone_engines)
@example(20, [(0, 1, 1, [0.375]), (0, 1, 1, [0.0625]), (0, 3, 1, [0.25]), (0, 1, 1, [0.25, 0.125])])
def test_each_gets_its_turn_though_the_others_always_have_more_to_do(
    budget: int, parts: list[tuple[int, int, int, list[float]]]
) -> None:
    ledger, device, engines, requests = engines_of(budget, parts)
    supplies = [itertools.cycle(sizes) for sizes in requests]
    order: list[Lone] = []  # of what runs, by its start
    waits, worst, crowd = dict.fromkeys(range(len(engines)), 0), 0, 0
    for end in range(15 * len(engines)):
        for lone, supply in zip(engines, supplies, strict=True):
            lone.waiting += itertools.islice(supply, 3 - len(lone.waiting))
        rest(ledger, device, engines, float(end))
        for lone in engines:
            order += [lone] * (len(lone.running) - order.count(lone))
        for i, lone in enumerate(engines):
            waits[i] = 0 if lone.running else waits[i] + 1
        crowd, worst = max(crowd, len(order)), max(worst, *waits.values())
        order.pop(0).running.pop(0)
    # At most all others come first, each after all that ran when its turn came.
    assert worst <= len(engines) * (crowd + 1)
