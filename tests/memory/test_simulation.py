"""A day of fifty engines on one device, event by event, without a clock or a socket.

Each engine has quiet hours and bursts. A request holds memory from its admission to its end; afterwards its blocks stay
cached until somebody needs them. Engines obey recalls at once with what is idle or cached, and with what is in use as
requests end: nothing is ever preempted. The books are checked after every event.
"""

from __future__ import annotations

import gc
import heapq
import random
import time
from collections import deque
from dataclasses import dataclass, field

from shoal.memory.ages import AGES, bucket_of
from shoal.memory.ledger import HOLD, Device, Ledger, Member, Terms
from shoal.memory.policy import decide

MIB = 2**20
BLOCK = 2 * MIB
ENGINES = 50
DAY = 24 * 3600.0
REQUESTS = 12_000
LONERS = 45
"""The first engine of those that get requests which need up to a third of the device at once."""
LONE_REQUESTS = 300


@dataclass(slots=True)
class Engine:
    """What an engine with a pager would do, told in bytes."""

    member: Member
    used: int = 0
    cached: list[tuple[float, int]] = field(default_factory=list)  # oldest first: (since, bytes)
    waiting: deque[tuple[float, int, float]] = field(default_factory=deque)  # (arrival, bytes, seconds to run)
    waits: list[float] = field(default_factory=list)

    def give_back(self) -> int:
        """Bytes it can give back of what is recalled."""
        lease, recalled = self.member.lease, self.member.recalled
        return 0 if recalled is None else max(0, min(lease - recalled, lease - self.used))

    def fit(self) -> None:
        """Cached blocks go, oldest first, where the lease or its own requests leave no room."""
        over = self.used + sum(size for _, size in self.cached) - self.member.lease
        while over > 0:
            since, size = self.cached.pop(0)
            if size > over:
                self.cached.insert(0, (since, size - over))
            over -= size

    def ages(self, now: float) -> tuple[int, ...]:
        buckets = [0] * len(AGES)
        for since, size in self.cached:
            buckets[bucket_of(now - since)] += size
        return tuple(buckets)


class Day:
    """The simulation."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ledger = Ledger()
        self.device: Device = self.ledger.add_device("gpu", 80 * 1024 * MIB, headroom=4 * 1024 * MIB)
        self.engines = [self._engine(number) for number in range(ENGINES)]
        self.events: list[tuple[float, int, str, int, int, float]] = []
        self.count = 0
        self.times: list[float] = []
        self.moved = self.contended = self.short = self.done = 0

    def _engine(self, number: int) -> Engine:
        terms = Terms(floor=64 * MIB, priority=self.rng.choice((100, 100, 100, 300)), unit=BLOCK)
        return Engine(self.ledger.join(self.device, f"engine-{number}", 0, terms))

    def at(self, when: float, what: str, engine: int, size: int = 0, seconds: float = 0.0) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what, engine, size, seconds))

    def plan_day(self) -> None:
        """Bursts: a few engines have most of them, as with real fleets; neighbours come and go; limits change."""
        rng, left = self.rng, REQUESTS
        while left > 0:
            engine = min(ENGINES - 1, int(rng.paretovariate(0.6)) - 1)
            start, length = rng.uniform(0, DAY), rng.uniform(10, 120)
            for _ in range(min(left, rng.randrange(10, 400))):
                left -= 1
                size = BLOCK * rng.randrange(8, 400)
                self.at(start + rng.uniform(0, length), "request", engine, size, rng.uniform(1, 40))
        for _ in range(200):
            self.at(rng.uniform(0, DAY), "neighbour", 0, rng.randrange(0, 40 * 1024) * MIB)
            self.at(rng.uniform(0, DAY), "ceiling", rng.randrange(LONERS), rng.choice((0, 2048, 16384)) * MIB)
        for _ in range(LONE_REQUESTS):
            size = BLOCK * rng.randrange(8 * 1024, 15 * 1024)
            self.at(rng.uniform(0, DAY), "request", rng.randrange(LONERS, ENGINES), size, rng.uniform(1, 40))
        self.at(DAY, "neighbour", 0, 0)

    def run(self) -> None:
        self.plan_day()
        while self.events:
            now, _, what, number, size, seconds = heapq.heappop(self.events)
            engine = self.engines[number]
            if what == "request":
                engine.waiting.append((now, size, seconds))
            elif what == "end":
                engine.used -= size
                engine.cached.append((now, size))
                self.done += 1
            elif what == "neighbour":
                backed = sum(min(e.member.lease, e.used + sum(s for _, s in e.cached)) for e in self.engines)
                free = max(0, self.device.size - backed - size)
                for _ in range(2):
                    self.ledger.observe(self.device, self.device.size, free)
            elif what == "ceiling":
                old = engine.member.terms
                self.ledger.set_terms(engine.member, Terms(old.floor, size or None, old.priority, old.unit))
            self.settle(now, engine)

    def settle(self, now: float, touched: Engine) -> None:
        """Admit, report, ask, decide and obey, until nothing moves."""
        active = {self.engines.index(touched)}
        for _ in range(200):
            for number in sorted(active):
                self.speak(number, now)
            leases = {m: m.lease for m in self.device.members.values()}
            start = time.thread_time()
            news = decide(self.ledger, self.device, now)
            self.times.append(time.thread_time() - start)
            self.moved += sum(news.grants.values())
            self.contended += bool(news.recalls)
            self.check(leases, news.grants)
            active = {n for n, e in enumerate(self.engines) if e.member in news.grants or e.give_back() > 0}
            for number in active:
                engine = self.engines[number]
                size = engine.give_back()
                if size:
                    self.ledger.release(engine.member, size)
                    self.moved += size
                    engine.fit()
            if not active:
                break
        else:
            raise AssertionError("memory went round in circles")
        self.check_at_rest(now)
        held = [t for m in self.device.members.values() if (t := m.held_until(now)) is not None]
        if held and any(e.waiting for e in self.engines):
            self.at(now + HOLD, "due", self.engines.index(touched))

    def speak(self, number: int, now: float) -> None:
        """One engine's turn: start what fits, and tell the broker."""
        engine, member = self.engines[number], self.engines[number].member
        may = member.lease if member.recalled is None else max(engine.used, member.recalled)
        while engine.waiting and engine.used + engine.waiting[0][1] <= may:
            arrival, size, seconds = engine.waiting.popleft()
            engine.used += size
            engine.waits.append(now - arrival)
            engine.fit()
            self.at(now + seconds, "end", number, size)
        need = engine.used + sum(size for _, size, _ in engine.waiting)
        cached = sum(size for _, size in engine.cached)
        self.ledger.report(
            member,
            used=engine.used,
            cached=engine.ages(now),
            backed=engine.used + cached,
            waiting=len(engine.waiting),
            now=now,
        )
        least = engine.waiting[0][1] if engine.waiting and not engine.used else 0
        self.ledger.ask(member, need, need + cached, now, least=least)

    def check_at_rest(self, now: float) -> None:
        """While someone is short, nobody keeps what its requests do not need."""
        short = [e for e in self.engines if e.member.lease + BLOCK <= min(e.member.need, e.member.ceiling)]
        if not short:
            return
        self.short += 1
        for engine in self.engines:
            member = engine.member
            assert member.lease < max(member.terms.floor, member.needed(now), engine.used) + BLOCK
        if self.device.floors <= self.device.budget:
            assert all(e.member.lease + BLOCK > min(e.member.need, e.member.terms.floor) for e in short)

    def check(self, before: dict[Member, int], grants: dict[Member, int]) -> None:
        device = self.device
        self.ledger.check()
        if grants:
            assert device.leased <= device.budget
        for member, lease in before.items():
            assert member.lease == lease + grants.get(member, 0)
            assert member.lease <= max(lease, member.ceiling)
            if member.recalled is not None and device.floors <= device.budget:
                assert member.recalled >= min(member.terms.floor, member.ceiling)
        for engine in self.engines:
            assert 0 <= engine.used <= engine.member.lease


def test_fifty_engines_share_a_device_for_a_day() -> None:
    day = Day(seed=11)
    gc.collect()
    gc.freeze()
    try:
        day.run()
    finally:
        gc.unfreeze()
    waits = sorted(wait for engine in day.engines for wait in engine.waits)
    assert not any(engine.waiting for engine in day.engines), "a request waits for ever"
    assert day.done == len(waits) == REQUESTS + LONE_REQUESTS
    assert all(engine.used == 0 for engine in day.engines)
    assert day.contended > 1000 and day.short > 1000, "the day was too easy to show anything"
    times = sorted(day.times)
    print(
        f"\n{REQUESTS} requests, {len(times)} decisions ({day.contended} with recalls; "
        f"{day.short} times someone was short), "
        f"{day.moved / 2**40:.2f} TiB moved; a decision took p50 {times[len(times) // 2] * 1e6:.0f}, "
        f"p99 {times[len(times) * 99 // 100] * 1e6:.0f}, at most {times[-1] * 1e6:.0f} µs; "
        f"requests waited p50 {waits[len(waits) // 2]:.2f}, p99 {waits[len(waits) * 99 // 100]:.2f} s"
    )
