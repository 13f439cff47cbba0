"""Elastic memory in the simulated engine: blocks get their memory from the broker, as vLLM's do with the plugin.

All decisions are made on the event loop; the lease's own thread only wakes it. Imported only by an engine that was
given the variables of `shoal.memory.elastic`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

from shoal.engines.simulated.core import Core, Sequence
from shoal.engines.simulated.growth import can_grow, give_back, wish
from shoal.engines.simulated.options import Options
from shoal.memory.ages import AGES
from shoal.memory.client import Callbacks, Lease, LeaseError, Rank
from shoal.memory.elastic import ElasticTerms

CONNECT = 30.0
"""Seconds that a start waits for the broker."""
_PACE = 0.05
"""Seconds between reports of what is held, if nothing urgent happens."""


class Elastic:
    """Backs the blocks of `core` within a lease. Implements `core.Backing`. Belongs to the running event loop."""

    def __init__(self, terms: ElasticTerms, options: Options, core: Core) -> None:
        self._options = options
        self._patience = terms.patience
        self._core = core
        self._pool = core.pool
        self._size = options.simulated_block_bytes
        self._loop = asyncio.get_running_loop()
        self._poked = threading.Event()
        self._asleep = False
        self._closed = False
        self._asked: tuple[int, int] | None = None
        self._reported: tuple[int, tuple[int, ...], int, int] | None = None
        self._reported_at = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._stuck: tuple[Sequence, float] | None = None
        self._judging: asyncio.TimerHandle | None = None
        self._arena = _Resident(options) if options.simulated_resident else None
        rank = Rank(
            engine=terms.engine or f"simulated-{os.getpid()}",
            device=options.simulated_device,
            device_size=options.simulated_device_size,
            floor=terms.floor,
            ceiling=terms.ceiling,
            priority=terms.priority,
            unit=self._size,
        )
        callbacks = Callbacks(
            granted=lambda _: self._poke(),
            recalled=lambda _, __: self._poke(),
            terms=lambda _, __, ___: self._poke(),
            connected=lambda _: self._poke(),
        )
        self._lease = Lease(terms.socket, rank, callbacks)
        core.backing = self

    @property
    def lease(self) -> int:
        """Bytes that may be backed."""
        return self._lease.lease

    @property
    def backed(self) -> int:
        """Bytes of blocks that are backed."""
        return self._pool.backed * self._size

    @property
    def cached(self) -> int:
        """Bytes of blocks that only hold a prefix."""
        return self._pool.cached * self._size

    async def connected(self) -> None:
        """Wait for the broker to take this engine in. Raises LeaseError, with what to do."""
        future: asyncio.Future[LeaseError | None] = self._loop.create_future()

        def settle(error: LeaseError | None) -> None:
            if not future.done():
                future.set_result(error)

        def wait() -> None:
            error = None
            try:
                self._lease.wait_connected(CONNECT)
            except LeaseError as refusal:
                error = refusal
            _call(self._loop, lambda: settle(error))

        threading.Thread(target=wait, name="connect", daemon=True).start()
        if (error := await future) is not None:
            raise error

    def grow(self, blocks: int) -> None:
        """Unpark up to this many more, as far as the lease goes."""
        room = 0 if self._asleep else can_grow(self._pool, self._size, self._lease.lease, self._lease.excess)
        new = self._pool.unpark(min(blocks, room))
        if new and self._arena is not None:
            self._pool.park_again(new[self._arena.back(new) :])

    def obey(self) -> None:
        """Give back what the broker has asked back; all of it while asleep."""
        lease = self._lease.lease
        excess = lease if self._asleep else self._lease.excess
        if excess:
            released, parked = give_back(self._pool, self._size, lease, excess)
            if parked and self._arena is not None:
                self._arena.unback(parked)
            if released:
                self._lease.release(released)
                self._report(urgent=True)

    def tell(self) -> None:
        """Say what is held and needed, if it has changed, and look after a request that cannot go on."""
        asked = (0, 0) if self._asleep else wish(self._pool, self._core.demand(), self._size)
        if asked != self._asked:
            self._asked = asked
            self._report(urgent=True)
            self._lease.ask(*asked)
        else:
            self._report(urgent=False)
        self._judge_later()

    def sleep(self) -> None:
        """Hold no lease at all until `wake`. Nothing may be in use."""
        self._asleep = True
        self._core.admit()

    def wake(self) -> None:
        """Take part again."""
        self._asleep = False

    def close(self) -> None:
        """Give everything back."""
        self._closed = True
        for timer in (self._later, self._judging):
            if timer is not None:
                timer.cancel()
        if self._arena is not None:
            self._arena.close()
        self._lease.close()

    def _poke(self) -> None:
        """From the lease's thread: have the loop look. One look is enough for all that happens before it."""
        if not self._poked.is_set():
            self._poked.set()
            _call(self._loop, self._look)

    def _look(self) -> None:
        self._poked.clear()
        if not self._closed:
            self._core.admit()

    def _report(self, *, urgent: bool) -> None:
        now = time.monotonic()
        if not urgent and now < self._reported_at + _PACE:
            if self._later is None:
                self._later = self._loop.call_at(self._reported_at + _PACE, self._report_late)
            return
        cached = tuple(count * self._size for count in self._pool.ages(AGES, now)) if self._pool.cached else ()
        waiting = 0 if self._asleep else self._core.demand().requests
        report = (self._pool.used * self._size, cached, self.backed, waiting)
        if report != self._reported:
            self._reported, self._reported_at = report, now
            self._lease.report(used=report[0], cached=cached, backed=report[2], waiting=waiting)

    def _report_late(self) -> None:
        self._later = None
        self._report(urgent=True)

    def _judge_later(self) -> None:
        """Keep an eye on a request that waits for memory although no other of this engine runs."""
        stuck = self._core.stuck
        if stuck is None:
            self._stuck = None
        elif self._stuck is None or self._stuck[0] is not stuck:
            self._stuck = (stuck, time.monotonic())
        if self._judging is None and stuck is not None:
            self._judging = self._loop.call_later(_PACE, self._judge)

    def _judge(self) -> None:
        """End that request if it can never run, or has waited too long."""
        self._judging = None
        stuck = self._core.stuck
        if stuck is not None and self._stuck is not None and self._stuck[0] is stuck:
            cost = self._core.cost(stuck) * self._size
            ceiling = self._lease.terms[1]
            most = self._lease.most if self._lease.most is not None else ceiling
            if most is not None and cost > most:
                self._give_up(stuck, f"it needs {_mib(cost)} of KV cache, and this engine can get {_mib(most)} at most")
                return
            if not self._lease.connected:
                # Nobody answers; that is not for the request to suffer for.
                self._stuck = (stuck, time.monotonic())
            elif time.monotonic() > self._stuck[1] + self._patience:
                self._give_up(stuck, f"no memory for the {_mib(cost)} that it needs came free in {self._patience:g} s")
                return
        self._judge_later()

    def _give_up(self, sequence: Sequence, why: str) -> None:
        hint = "shorten it, raise this engine's ceiling, or free memory on the device"
        self._core.fail(sequence, f"The request cannot go on: {why}; {hint}.")


class _Resident:
    """Memory of this process that comes and goes with the blocks."""

    def __init__(self, options: Options) -> None:
        from shoal.memory.arena import Arena
        from shoal.memory.pages import Geometry, Run
        from shoal.memory.vmm.host import HostVmm

        size = options.simulated_block_bytes
        vmm = HostVmm()
        self._arena = Arena(vmm, Geometry(options.blocks, vmm.page_size, (Run(0, size, size),)))

    def back(self, blocks: list[int]) -> int:
        """Back these, or as many from the first as there is memory for; answers how many."""
        return self._arena.back_up_to(blocks)

    def unback(self, blocks: list[int]) -> None:
        """Give their memory back."""
        self._arena.unback(blocks)

    def close(self) -> None:
        """Give all of it back."""
        self._arena.close()


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:  # the loop has ended
        return


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
