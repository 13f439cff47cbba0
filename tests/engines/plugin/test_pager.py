"""The pager of one engine, with a real broker, real leases and the host's memory."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from shoal.engines.vllm.plugin.demand import READY_BUSY, READY_IDLE, Workload
from shoal.engines.vllm.plugin.pager import BATCH_BYTES, BATCH_LATER, PagerError
from shoal.engines.vllm.plugin.ranks import RankError

from .harness import BLOCK, Engine, Machine, until

READY = READY_IDLE // BLOCK
BUSY = min(READY_BUSY // BLOCK, 90 // 4)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(100) as machine:
        yield machine


def test_a_start_backs_block_0_and_some_to_begin_with(machine: Machine) -> None:
    engine = machine.engine(60)
    assert engine.pool.num_gpu_blocks == 1, "all but block 0 is parked before it starts"
    engine.start()
    assert engine.elastic.free > 0
    until(lambda: engine.elastic.free == READY)
    engine.settled()
    assert engine.backed == list(range(READY + 1)), "low ids first"
    assert engine.leases.lease >= (READY + 1) * BLOCK


def test_an_engine_with_requests_has_more_ready(machine: Machine) -> None:
    engine = machine.engine(90).start()
    engine.work = Workload(running=1)
    engine.pager.poke()
    # Two thirds of it are near enough to leave it at that.
    until(lambda: engine.elastic.fresh(100) * 3 >= BUSY * 2)
    assert BUSY * 2 > READY * 3
    assert engine.pool.num_gpu_blocks == len(engine.backed)


def test_memory_is_there_ahead_of_the_demand(machine: Machine) -> None:
    engine = machine.engine(90).start()
    engine.work = Workload(queued=1, waiting=50, step=50)
    engine.pager.poke()
    until(lambda: engine.elastic.free >= 50)
    with engine.pager.lock:
        engine.pager.before_step(lambda: pytest.fail("there is enough, so nobody need count"), 50)


def test_a_large_growth_begins_with_little_and_goes_on_with_more_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = machine.engine(90).start()
    until(lambda: engine.elastic.free == READY)
    sizes: list[int] = []
    back = engine.ranks.back

    def noted(ids: Sequence[int]) -> int:
        sizes.append(len(ids))
        return back(ids)

    monkeypatch.setattr(engine.ranks, "back", noted)
    engine.work = Workload(queued=1, waiting=70, step=70)
    engine.pager.poke()
    until(lambda: engine.elastic.free >= 70)
    first, later = BATCH_BYTES // BLOCK, BATCH_LATER // BLOCK
    assert max(sizes) == later
    assert sizes[0] <= first
    assert all(before in (first, later) for before, now in pairwise(sizes) if now > first)
    engine.settled()


def test_a_step_gets_exactly_what_it_is_short_of(machine: Machine) -> None:
    engine = machine.engine(90).start()
    until(lambda: engine.elastic.free == READY)

    def leased() -> bool:
        engine.leases.ask(80 * BLOCK, 80 * BLOCK)  # again, as the pager may just have said what it wants itself
        return engine.leases.lease >= 60 * BLOCK

    with engine.pager.lock:
        until(leased)
        free = engine.elastic.free
        engine.pager.before_step(lambda: free + 7, free + 30)
        assert engine.elastic.free == free + 7
        engine.pager.before_step(lambda: free + 3, free + 30)
        assert engine.elastic.free == free + 7
    engine.settled()


def test_a_step_gets_no_more_than_the_lease(machine: Machine) -> None:
    machine.neighbour(80)
    engine = machine.engine(90).start()
    engine.work = Workload(running=1, prefilling=90, step=90)
    engine.pager.poke()
    until(lambda: len(engine.backed) == 20)
    with engine.pager.lock:
        engine.pager.before_step(lambda: 50, 50)
        assert engine.elastic.free == 19
    engine.settled()


def test_a_recall_takes_what_holds_nothing_then_the_oldest_and_never_what_is_in_use(machine: Machine) -> None:
    engine = machine.engine(90).start()
    used = engine.serve(10)
    old, young = engine.serve(10), engine.serve(10)
    engine.cache(old, *(f"old {n}" for n in range(10)))
    engine.cache(young, *(f"young {n}" for n in range(10)))
    engine.free(old)
    engine.free(young)
    engine.pager.poke()
    until(lambda: engine.elastic.fresh(100) >= READY)
    neighbour = machine.neighbour(100 - 1 - 10 - 14)
    until(lambda: neighbour.lease == 75 * BLOCK)
    engine.settled()
    left = engine.cached()
    assert {f"young {n}" for n in range(10)} <= left
    assert len(left) <= 14
    assert set(engine.backed) >= {0, *(block.block_id for block in used)}
    hungry = machine.neighbour(90)
    until(lambda: not engine.cached())
    engine.settled()
    assert engine.backed == sorted({0, *(block.block_id for block in used)}), "what requests hold stays"
    assert hungry.lease < 90 * BLOCK


def test_blocks_that_share_pages_are_reclaimed_however_they_were_freed(machine: Machine) -> None:
    engine = machine.engine(90, a_page=2).start()
    used, gone = engine.serve(4), engine.serve(61)
    engine.cache(gone, *(str(n) for n in range(61)))
    random.Random(2).shuffle(gone)
    engine.free(gone)
    kept = {block.block_id // 2 for block in used} | {0}
    neighbour = machine.neighbour(100)
    until(lambda: neighbour.lease == (100 - 2 * len(kept)) * BLOCK)
    engine.settled()
    assert {block // 2 for block in engine.backed} == kept, "pages on which something is used stay"


def test_without_pressure_cached_blocks_stay(machine: Machine) -> None:
    engine = machine.engine(90).start()
    blocks = engine.serve(40)
    engine.cache(blocks, *map(str, range(40)))
    engine.free(blocks)
    until(lambda: engine.elastic.fresh(100) == READY)
    engine.settled()
    assert len(engine.cached()) == 40


def test_what_a_step_may_still_touch_stays_backed_until_it_is_processed(machine: Machine) -> None:
    engine = machine.engine(90).start()
    blocks = engine.serve(30)
    with engine.pager.lock:
        engine.pager.after_step(0, ran=True)
    engine.free(blocks)
    neighbour = machine.neighbour(99)
    until(lambda: engine.elastic.free == 0)
    assert len(engine.backed) >= 31, "the device may write to them"
    assert neighbour.lease < 69 * BLOCK + BLOCK
    with engine.pager.lock:
        engine.pager.after_step(0, ran=True)  # one more, scheduled after they left
        engine.pager.processed()
    until(lambda: engine.backed == [0])
    until(lambda: neighbour.lease == 99 * BLOCK)
    with engine.pager.lock:
        engine.pager.processed()


def test_a_device_that_is_full_in_spite_of_the_lease_is_asked_again(machine: Machine) -> None:
    engine = machine.engine(90, limit=20).start()
    engine.work = Workload(running=1, prefilling=60, step=60)
    engine.pager.poke()
    until(lambda: engine.pager.statistics.full >= 3)
    assert engine.backed == list(range(20))
    engine.settled()
    assert engine.elastic.parked == 70
    engine.arenas[0]._vmm._limit = None  # type: ignore[attr-defined]
    until(lambda: len(engine.backed) >= 60)
    engine.settled()


def test_two_ranks_back_the_same_blocks(machine: Machine) -> None:
    engine = machine.engine(40, ranks=2).start()
    engine.arenas[1]._vmm._limit = 12 * BLOCK  # type: ignore[attr-defined]
    engine.work = Workload(running=1, prefilling=30, step=30)
    engine.pager.poke()
    until(lambda: engine.pager.statistics.full >= 2)
    until(lambda: len(engine.pager._map.ids()) == 12)
    assert engine.elastic.free == 11


def test_a_wait_ends_when_the_blocks_are_there_or_with_the_time(machine: Machine) -> None:
    neighbour = machine.neighbour(95)
    until(lambda: neighbour.lease == 95 * BLOCK)
    engine = machine.engine(90).start()
    until(lambda: len(engine.backed) == 5)
    with engine.pager.lock:
        assert not engine.pager.wait(30, 0.01)
    engine.work = Workload(queued=1, waiting=40, step=40)
    engine.pager.poke()

    def go() -> None:
        neighbour.ask(0)
        neighbour.report(used=0)
        neighbour.release(95 * BLOCK)

    leaving = threading.Timer(0.05, go)
    leaving.start()
    with engine.pager.lock:
        assert engine.pager.wait(30, 60)
        assert engine.elastic.free >= 34
    leaving.join()
    assert engine.pager.most is not None


def test_sleep_takes_everything_and_waking_brings_block_0_back(machine: Machine) -> None:
    engine = machine.engine(60).start()
    blocks = engine.serve(20)
    engine.cache(blocks, *map(str, range(20)))
    with pytest.raises(PagerError, match="requests still hold 20 blocks"):
        engine.memories[0].suspended()
    engine.settled()
    engine.free(blocks)
    engine.memories[0].suspended()
    assert engine.backed == []
    assert engine.leases.lease == 0
    assert engine.cached() == set()
    neighbour = machine.neighbour(100)
    until(lambda: neighbour.lease == 100 * BLOCK)
    engine.memories[0].suspended()
    neighbour.ask(0)
    neighbour.release(100 * BLOCK)
    engine.memories[0].resumed()
    assert engine.backed[:1] == [0]
    until(lambda: engine.elastic.free == READY)
    engine.settled()
    assert len(engine.allocate(5)) == 5


def test_sleep_waits_for_all_ranks(machine: Machine) -> None:
    engine = machine.engine(40, ranks=2).start()
    until(lambda: engine.elastic.free == READY)
    engine.memories[0].suspended()
    assert engine.leases.lease > 0
    engine.memories[1].suspended()
    assert engine.leases.lease == 0
    assert engine.backed == []
    engine.memories[1].resumed()
    engine.memories[0].resumed()
    until(lambda: engine.elastic.free == READY)
    engine.memories[0].suspended()
    assert engine.leases.lease > 0, "a rank that slept before has to be asked again"


def test_a_broker_that_is_restarted_learns_what_is_held(machine: Machine) -> None:
    engine = machine.engine(90).start()
    engine.serve(20)
    until(lambda: engine.elastic.free >= READY)
    engine.settled()
    lease = engine.leases.lease
    machine.broker.restart()
    engine.allocate(3)
    until(lambda: "device" in machine.broker.broker.ledger.devices)
    until(lambda: machine.broker.broker.ledger.devices["device"].leased >= lease - BLOCK)
    engine.work = Workload(running=1, prefilling=60, step=60)
    engine.pager.poke()
    until(lambda: len(engine.allocate(1)) == 1 and len(engine.held) >= 40)
    engine.settled()
    machine.broker.broker.ledger.check()


def test_the_end_frees_the_lease_and_the_thread(machine: Machine) -> None:
    engine = machine.engine(60).start()
    until(lambda: engine.elastic.free == READY)
    engine.pager.close()
    assert not engine.pager._thread.is_alive()
    until(lambda: not machine.broker.broker.ledger.devices["device"].members)
    engine.pager.close()


def test_the_end_of_a_worker_ends_its_pager_first(machine: Machine) -> None:
    engine = machine.engine(60).start()
    engine.memories[0].close()
    assert not engine.pager._thread.is_alive()
    until(lambda: not machine.broker.broker.ledger.devices["device"].members)


def test_a_rank_that_fails_stops_the_next_step(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = machine.engine(60).start()
    until(lambda: engine.elastic.free == READY)

    def fail(_: object) -> int:
        raise RankError("the device is lost")

    monkeypatch.setattr(engine.ranks, "back", fail)
    engine.work = Workload(running=1, prefilling=30, step=30)
    engine.pager.poke()
    until(lambda: not engine.pager._thread.is_alive())
    with engine.pager.lock, pytest.raises(PagerError, match="the device is lost"):
        engine.pager.before_step(lambda: 1, 1)
    with engine.pager.lock, pytest.raises(PagerError, match="the device is lost"):
        engine.pager.wait(1, 1)


def test_a_rank_that_fails_under_a_step_ends_it_and_all_that_follow(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = machine.engine(60).start()
    until(lambda: engine.elastic.free == READY)
    engine.leases.ask(50 * BLOCK, 50 * BLOCK)
    until(lambda: engine.leases.lease >= 50 * BLOCK)

    def fail(_: object) -> int:
        raise RankError("the device is lost")

    monkeypatch.setattr(engine.ranks, "back", fail)
    for _ in range(2):
        with engine.pager.lock, pytest.raises(PagerError, match="the device is lost"):
            engine.pager.before_step(lambda: 20, 20)


def test_a_wake_that_fails_leaves_no_lease_behind(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = machine.engine(60).start()
    engine.memories[0].suspended()

    def fail(_: object) -> int:
        raise RankError("the device is lost")

    with monkeypatch.context() as patch:
        patch.setattr(engine.ranks, "back", fail)
        with pytest.raises(RankError, match="the device is lost"):
            engine.memories[0].resumed()
        patch.setattr(engine.ranks, "back", lambda _: 0)
        with pytest.raises(PagerError, match="no memory left for the first block"):
            engine.memories[0].resumed()
    until(lambda: not machine.broker.broker.ledger.devices["device"].members)
    engine.memories[0].resumed()
    until(lambda: engine.elastic.free == READY)
    engine.settled()
    assert len(machine.broker.broker.ledger.devices["device"].members) == 1


class Auditor:
    """Looks all the time whether more is backed, or booked as backed, than is leased."""

    def __init__(self, engines: list[Engine]) -> None:
        self._engines = engines
        self._ended = threading.Event()
        self.looks = 0
        self.broken: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for engine in self._engines:
                with engine.pager.lock:
                    lease, booked = engine.leases.lease, engine.pager._map.backed_bytes
                if booked > lease:
                    self.broken.append(f"{booked // BLOCK} blocks booked of {lease / BLOCK:.1f} leased")
            self.looks += 1

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        assert not self.broken, self.broken[:5]
        assert self.looks


@pytest.mark.parametrize(("restarts", "a_page"), [(False, 1), (True, 1), (False, 2), (False, 3)])
def test_the_lease_is_never_below_what_is_backed_whatever_happens(
    machine: Machine, restarts: bool, a_page: int
) -> None:
    engines = [machine.engine(80, a_page=a_page).start() for _ in range(2)]
    auditor = Auditor(engines)
    failures: list[BaseException] = []

    def play(engine: Engine, seed: int) -> None:
        chance, number = random.Random(seed), 0
        try:
            for turn in range(400):
                if chance.random() < 0.6:
                    wanted = chance.randint(1, 20)
                    engine.work = Workload(running=1, queued=1, waiting=wanted, step=40)
                    blocks = engine.allocate(wanted)
                    if chance.random() < 0.5:
                        number += 1
                        engine.cache(blocks, *(f"{number}.{n}" for n in range(len(blocks))))
                elif engine.held:
                    engine.work = Workload(running=1)
                    engine.free(chance.sample(engine.held, chance.randint(1, len(engine.held))))
                if turn % 10 == 0:
                    engine.work = Workload()
                    engine.free(list(engine.held))
                    with engine.pager.lock:
                        engine.pager.wait(1, 0.02)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=play, args=(engine, seed)) for seed, engine in enumerate(engines)]
    for thread in threads:
        thread.start()
    if restarts:
        machine.broker.restart()
    for thread in threads:
        thread.join()
    auditor.end()
    assert not failures, failures
    for engine in engines:
        engine.work = Workload()
        engine.free(list(engine.held))
        engine.settled()
        assert engine.elastic.used == 1


def test_lease_is_given_back_only_while_no_step_can_claim_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = machine.engine(90)
    release, unguarded, sizes = engine.leases.release, [], []

    def watched(size: int) -> None:
        sizes.append(size)
        if not engine.pager.lock._is_owned():  # type: ignore[attr-defined]
            unguarded.append(size)
        release(size)

    monkeypatch.setattr(engine.leases, "release", watched)
    engine.start()
    engine.free(engine.serve(40))
    neighbour = machine.neighbour(95)
    until(lambda: neighbour.lease == 95 * BLOCK)
    assert sizes
    assert not unguarded, "a step may have claimed it meanwhile"


def test_a_request_that_finds_what_it_needs_wakes_nobody_and_one_that_lacks_a_block_does(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = machine.engine(90).start()
    engine.work = Workload(running=1)
    engine.pager.poke()
    until(lambda: engine.elastic.fresh(100) >= BUSY)
    woken: list[str] = []
    with engine.pager.lock:  # the pager can begin to look, and get no further
        monkeypatch.setattr(engine.pager._poked, "set", lambda: woken.append("woken"))
        engine.pager.expect(1)
        assert not woken
        engine.held += engine.pool.get_new_blocks(engine.elastic.free)
        engine.pager.expect(1)
        monkeypatch.undo()
    assert woken == ["woken"]
