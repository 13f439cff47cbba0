"""The pager of one engine: keeps backed blocks ready ahead of the scheduler, and gives memory back.

Two threads meet here. vLLM's calls the scheduler, and so `before_step` and the like, with `lock` held. The pager's own
does everything that takes time: it backs and unbacks outside the lock, and holds it only to move blocks in and out of
vLLM's pool. The books (`_map`: what is backed or about to be) change under the lock, before memory is taken and after
it is given, so that the engine never has more backed than its lease.

A block is unbacked only when every step that was scheduled before it left vLLM's pool has been processed: until then
the device may still write to it (`fence.py`). vLLM's own `defer_block_free` would do this too, but at a price: it keeps
the blocks of a preempted request from the request that needs them, and so one shortage preempts everything that runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shoal.memory.pages import PageMap

from .attention import Attention
from .demand import View, Workload, decide, target
from .fence import Fence
from .leases import Leases
from .messages import ChannelError
from .pace import Pace, Window
from .pool import ElasticPool
from .ranks import RankError, Ranks
from .reporting import Report
from .statistics import Statistics

log = logging.getLogger("vllm.shoal")

BATCH_BYTES = 64 << 20
"""How much is backed before vLLM gets it: the first blocks of a large growth are of use before its last."""

BATCH_LATER = 128 << 20
"""The same for what follows in a large growth: each batch waits some milliseconds for the device and for its turn in
the interpreter, and steps that find only a part of what they could use are more steps."""

GATHER_BYTES = 256 << 20
"""How much is backed before the first step of many requests: 5 ms of backing on an H200, and 50 of computing."""

PARK_BYTES = 512 << 20
"""How much leaves vLLM's pool under one hold of the lock."""

BUSY, IDLE = 0.1, 0.5
"""Seconds between two looks at an engine that has requests, and at one that has none."""

WINDOW_BUSY, WINDOW_IDLE = 10.0, 1.0
"""Seconds for which a backed block must not have been needed before it goes for no other reason."""

RETRY = 0.05
"""Seconds after which a device that was full in spite of the lease is asked again."""

START_TIMEOUT = 60.0


class PagerError(RuntimeError):
    """The engine's memory cannot be managed any more, and why."""


class Pager:
    """Backs, parks and reports. `workload` is called without the lock, from the pager's thread."""

    def __init__(self, pool: ElasticPool, ranks: Ranks, leases: Leases, workload: Callable[[], Workload]) -> None:
        self.lock = threading.RLock()
        self.pool = pool
        self.statistics = Statistics()
        self._ranks = ranks
        self._leases = leases
        self._workload = workload
        self._changed = threading.Condition(self.lock)
        self._turn = threading.RLock()
        geometry = ranks.geometry()
        self._map = PageMap(geometry)
        self._block = geometry.block_size
        self._batch = max(1, BATCH_BYTES // self._block)
        self._batch_later = max(self._batch, BATCH_LATER // self._block)
        self._most_parked = max(self._batch, PARK_BYTES // self._block)
        self._fence = Fence()
        self._attention = Attention()
        self._consumed = Pace()
        self._spare = Window()
        self._full_until = 0.0
        self._report = Report(pool, leases, self._block)
        self._asleep = True
        self._owes_word = False
        self._closed = False
        self._failure: BaseException | None = None
        self._sleepers = 0
        self._poked = threading.Event()
        leases.changed = self._poked.set
        with self.lock:
            self.pool.put_back(self.pool.park_all())
        self._thread = threading.Thread(target=self._run, name="shoal-pager", daemon=True)

    def start(self) -> None:
        """Back what must always be, and begin. Raises LeaseError, RankError, PagerError."""
        self._wake()
        self._thread.start()
        self._ranks.watch(self.suspend, self.resume, self.close)
        with self.lock:
            # The first request should find its memory there.
            self._poked.set()
            self._changed.wait_for(lambda: self.pool.free > 0 or self._failure is not None, 5.0)

    # vLLM's thread, with the lock held

    def before_step(self, required: Callable[[], int], sure: int) -> None:
        """See to it that what runs need not be preempted for want of a page.

        `sure` blocks are always enough; what is really `required` is only computed if there are fewer. Raises
        PagerError.
        """
        self._raise_failure()
        if self.pool.free >= sure:
            return
        short = required() - self.pool.free
        if short > 0:
            began = time.perf_counter()
            self._grow(short)
            self.statistics.waited(time.perf_counter() - began)

    def after_step(self, blocks: int, *, ran: bool) -> None:
        """A step was scheduled that took `blocks` out of the pool; `ran`: it has something to run."""
        if ran:
            self._fence.scheduled()
        if blocks > 0:
            self._consumed.count += blocks
            self.statistics.stepped()
            if self._attention.needed(blocks, self.pool.fresh):
                self._poked.set()

    def expect(self, blocks: int) -> None:
        """A request came that will take so many blocks."""
        if self._attention.needed(blocks, self.pool.fresh) or self.pool.fresh(blocks) < blocks:
            self._poked.set()

    def processed(self) -> None:
        """The oldest step that was under way has left the device."""
        if self._fence.processed():
            self._poked.set()

    def poke(self) -> None:
        """Something changed that the pager should look at."""
        self._poked.set()

    def wait(self, blocks: int, timeout: float) -> bool:
        """Nothing can run before `blocks` more are there: get them here, or wait for them. Returns whether they are."""
        self._raise_failure()
        goal = self.pool.free + blocks
        self._grow(blocks)
        if self.pool.free < goal:
            self._poked.set()
            self._changed.wait_for(lambda: self.pool.free >= goal, timeout)
        return self.pool.free >= goal

    @property
    def gathers(self) -> int:
        """Blocks that are worth waiting for before a first step."""
        return max(1, GATHER_BYTES // self._block)

    @property
    def owes(self) -> bool:
        """Whether memory is to be given back: what comes free is not for newcomers."""
        return self._leases.excess > 0

    def may_grow(self) -> bool:
        """Whether more blocks may come soon: the lease covers some, or what was asked for is not answered yet."""
        if not self.pool.parked or self._leases.excess or time.monotonic() < self._full_until:
            return False
        room = self._leases.lease - self._map.backed_bytes
        return room >= self._block or self._poked.is_set() or self._leases.pending

    @property
    def ceiling(self) -> int:
        """Blocks that this engine may have at most, by its own terms."""
        ceiling = self._leases.ceiling
        return self.pool.total if ceiling is None else min(self.pool.total, ceiling // self._block)

    @property
    def most(self) -> int | None:
        """Blocks that this engine can ever have at once, as the broker sees it now; None if it has not said."""
        most = self._leases.most
        return None if most is None else most // self._block

    def close(self) -> None:
        """End the thread and give up the lease. May be called more than once."""
        if self._closed:
            return
        self._closed = True
        self._poked.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5.0)
        self._ranks.close()
        self._leases.close()
        self.statistics.close()

    # Sleep

    def suspend(self) -> None:
        """Take all memory away, block 0 too. Called once by each rank, when it runs nothing; the last call does it.

        Raises PagerError if requests hold blocks.
        """
        with self._turn, self.lock:
            self._sleepers += 1
            if self._asleep or self._sleepers < len(self._ranks.descriptions):
                return
            self._sleepers = 0
            if self.pool.used > 1:
                raise PagerError(f"requests still hold {self.pool.used - 1} blocks; end or abort them before sleeping")
            self._asleep = True
            self.pool.put_back(self.pool.park_all())
            self._fence.all_processed()
        with self._turn:
            self._unback_left()
            ids = self._map.ids()
            self._ranks.unback(ids)
            with self.lock:
                self._map.commit(self._map.plan_unback(ids))
            # Nothing is held and nothing is owed: a sleeping engine's floor is of use to others.
            self._leases.close()

    def resume(self) -> None:
        """Back what must always be. Raises PagerError if there is no memory for it, LeaseError, RankError."""
        with self._turn:
            self._sleepers = 0
            if self._asleep:
                self._wake()
        self._poked.set()

    def _wake(self) -> None:
        plan = self._map.plan_back([0])
        self._leases.open()
        try:
            self._leases.ask(plan.size, plan.size + self._block)
            if not self._leases.wait(plan.size, START_TIMEOUT):
                raise PagerError(
                    f"the memory broker gave no {plan.size >> 10} KiB for the first block in {START_TIMEOUT:.0f} s; "
                    "see `shoal memory ls`"
                )
            if self._ranks.back([0]) < 1:
                raise PagerError("the device has no memory left for the first block; free some and try again")
        except BaseException:
            self._leases.close()
            raise
        with self.lock:
            self._map.commit(plan)
            self._asleep = False

    # The pager's thread

    def _run(self) -> None:
        try:
            while not self._closed:
                with self._turn:
                    if not self._asleep:
                        while self._look():
                            pass
                self._poked.wait(IDLE if self._attention.idle and not (self._fence.blocks or self._owes_word) else BUSY)
                self._poked.clear()
        except BaseException as error:
            if isinstance(error, ChannelError):
                log.info("Shoal: the workers are gone, and so the pager ends: %s", error)
            elif not self._closed:
                log.exception("Shoal: the pager failed, and so the engine ends")
            self._failure = error
            with self._changed:
                self._changed.notify_all()

    def _look(self) -> bool:
        """One decision, carried out as far as one hold of the lock goes. Returns whether to look again at once."""
        self._unback_left()
        work = self._workload()
        now = time.monotonic()
        with self.lock:
            rate = self._consumed.per_second(now)
            most = min(self.ceiling, self.most or self.ceiling)
            goal = target(work, rate, self._block, most)
            self._attention.looked(goal, idle=work.idle)
            fresh = self.pool.fresh(max(256, 2 * goal))
            spare = self._spare.least(fresh - goal, now, WINDOW_IDLE if work.idle else WINDOW_BUSY)
            view = self._view(work, rate, fresh, spare, most)
            decision = decide(view)
            if decision.shrink:
                self._park(min(decision.shrink, self._most_parked), cached=decision.cached)
            if decision.drop:
                # Under the lock, as every release: what a step claims meanwhile must not be given back.
                self._leases.release(decision.drop)
        asked = self._leases.ask(decision.need, decision.want, decision.least)
        self._owes_word = not (self._report.say(view, now, self.lock) and asked)
        if decision.shrink:
            self._unback_left()
            return decision.shrink > self._most_parked
        if decision.grow and now >= self._full_until:
            self._grow_ahead(decision.grow)
        return False

    def _grow_ahead(self, count: int) -> None:
        """Back `count` blocks, batch by batch, unless something goes before it."""
        batch = self._batch
        while count > 0 and not (self._closed or self._leases.excess):
            with self.lock:
                claimed = self._claim(min(count, batch))
            if not self._back(claimed):
                return
            count -= len(claimed)
            batch = self._batch_later

    def _view(self, work: Workload, rate: float, fresh: int, spare: int, most: int) -> View:
        backed = self._map.backed_bytes
        overhead = max(0, backed - self._map.backed_blocks * self._block)
        return View(
            block=self._block,
            lease=self._leases.lease,
            excess=self._leases.excess,
            backed=backed,
            leaving=self._fence.blocks * self._block,
            used=self.pool.used,
            free=self.pool.free,
            fresh=fresh,
            parked=self.pool.parked,
            rate=rate,
            spare=spare,
            work=work,
            most=most,
            overhead=overhead,
        )

    def _claim(self, count: int) -> list[int]:
        """Take at most `count` parked blocks that the lease covers, and book them as backed. The lock is held."""
        ids = self.pool.take(count)
        # What is owed is not grown into, not even for a step.
        room = self._leases.lease - self._leases.excess - self._map.backed_bytes
        while ids:
            plan = self._map.plan_back(ids)
            if plan.size <= room:
                self._map.commit(plan)
                return ids
            # Proportionally fewer, and at least one fewer.
            keep = min(len(ids) - 1, len(ids) * max(0, room) // plan.size)
            self.pool.put_back(ids[keep:])
            ids = ids[:keep]
        return []

    def _back(self, ids: list[int]) -> bool:
        """Back claimed blocks and hand them to vLLM. Returns whether all of them could be."""
        if not ids:
            return False
        began = time.perf_counter()
        done = self._ranks.back(ids)
        self.statistics.backed(done, time.perf_counter() - began)
        with self._changed:
            if done < len(ids):
                # Someone took the memory that the lease promised; the broker will see it and say who gives way.
                self._map.commit(self._map.plan_unback(ids[done:]))
                self.pool.put_back(ids[done:])
                self._full_until = time.monotonic() + RETRY
                self.statistics.full += 1
            self.pool.unpark(ids[:done])
            self._changed.notify_all()
        return done == len(ids)

    def _grow(self, count: int) -> None:
        """As many of `count` blocks as the lease and the device have, at once. The lock is held."""
        while count > 0 and (claimed := self._claim(min(count, self._batch))):
            try:
                done = self._back(claimed)
            except (RankError, ChannelError) as error:
                self._failure = error
                self._raise_failure()
                raise
            if not done:
                return
            count -= len(claimed)

    def _park(self, count: int, *, cached: bool) -> None:
        """Take blocks from vLLM; they are unbacked once nothing under way can touch them. The lock is held."""
        self._fence.left(self.pool.park(count, cached=cached))

    def _unback_left(self) -> None:
        """Unback what left vLLM's pool before the oldest step under way."""
        while True:
            with self.lock:
                ids = self._fence.passed()
            if not ids:
                return
            began = time.perf_counter()
            self._ranks.unback(ids)
            self.statistics.unbacked(len(ids), time.perf_counter() - began)
            with self.lock:
                plan = self._map.plan_unback(ids)
                self._map.commit(plan)
                self._fence.unbacked(len(ids))
                self.pool.put_back(ids)
                self._leases.release(plan.size)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise PagerError(f"the pager failed: {self._failure}") from self._failure
