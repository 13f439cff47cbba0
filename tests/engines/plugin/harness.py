"""A pager with everything real but vLLM and the device: broker, leases, arenas of the host's memory."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from shoal.engines.vllm.plugin.demand import Workload
from shoal.engines.vllm.plugin.leases import Leases
from shoal.engines.vllm.plugin.pager import Pager
from shoal.engines.vllm.plugin.pool import ElasticPool
from shoal.engines.vllm.plugin.rank import RankMemory
from shoal.engines.vllm.plugin.ranks import Ranks, find_ranks
from shoal.memory.arena import Arena
from shoal.memory.broker import Broker
from shoal.memory.client import Lease, Rank
from shoal.memory.elastic import ElasticTerms
from shoal.memory.pages import Geometry
from shoal.memory.vmm.host import HostVmm

from .stand_ins import Block, Pool

BLOCK = 4 << 20
"""Bytes of a block: large, so that what is kept ready is few blocks."""

_numbers = itertools.count()


def until(condition: Callable[[], object], what: str = "", seconds: float = 60) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it never came true: {what}"
        time.sleep(0.005)


class BrokerThread:
    """A broker of `size` bytes on a loop and a thread of its own."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.broker = self._start()

    def restart(self) -> None:
        """End it and start another that knows nothing."""
        self._call(self.broker.stop())
        self.broker = self._start()

    def close(self) -> None:
        self._call(self.broker.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self) -> Broker:
        broker = Broker(self._path, limits={"device": self._size})
        self._call(broker.start())
        return broker

    def _call(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)  # type: ignore[arg-type]


class Engine:
    """One engine: vLLM's pool, its requests' blocks, and the pager between them and the memory."""

    def __init__(self, machine: Machine, blocks: int, limit: int | None, ranks: int, a_page: int) -> None:
        self.name = f"pager-{os.getpid()}-{next(_numbers)}"
        geometry = Geometry.contiguous(blocks, BLOCK, a_page * BLOCK)
        self.memories: list[RankMemory] = []
        self.arenas: list[Arena] = []
        for number in range(ranks):
            memory = RankMemory(self.name, number, "device", machine.size)
            memory.arena = _Unbacked(geometry, None if limit is None else limit * BLOCK)
            self.memories.append(memory)
            self.arenas.append(memory.arena)
        self.pool = Pool(blocks)
        self.work = Workload()
        self.ranks: Ranks = find_ranks(self.name, ranks)
        terms = ElasticTerms(machine.path, self.name)
        leased = [Rank(self.name, "device", machine.size, number, unit=BLOCK) for number in range(ranks)]
        self.leases = Leases(terms, leased)
        self.elastic = ElasticPool(self.pool, geometry)
        self.pager = Pager(self.elastic, self.ranks, self.leases, lambda: self.work)
        self.held: list[Block] = []

    def start(self) -> Engine:
        self.pager.start()
        return self

    @property
    def backed(self) -> list[int]:
        """Blocks that the arena really has backed, on all ranks alike."""
        found = [[b for b in range(arena.geometry.blocks) if arena.is_backed(b)] for arena in self.arenas]
        assert all(one == found[0] for one in found)
        return found[0]

    def allocate(self, count: int) -> list[Block]:
        """What a step of a request does: memory first, then blocks; it is processed at once."""
        pager = self.pager
        with pager.lock:
            pager.before_step(lambda: count, count)
            before = pager.pool.free
            got = self.pool.get_new_blocks(min(count, before))
            self.held += got
            pager.after_step(before - pager.pool.free, ran=True)
            pager.processed()
        return got

    def serve(self, count: int) -> list[Block]:
        """Blocks of a request that waits until it has them all; then the engine is idle again."""
        got: list[Block] = []
        while len(got) < count:
            left = count - len(got)
            self.work = Workload(queued=1, waiting=left, step=left)
            self.pager.poke()
            with self.pager.lock:
                self.pager.wait(max(0, left - self.elastic.free), 60)
            got += self.allocate(left)
        self.work = Workload()
        return got

    def cache(self, blocks: list[Block], *keys: str) -> None:
        with self.pager.lock:
            for block, key in zip(blocks, keys, strict=True):
                self.pool.cache(block, key)

    def free(self, blocks: list[Block]) -> None:
        with self.pager.lock:
            self.pool.free_blocks(blocks)
            self.held = [block for block in self.held if block not in blocks]
            self.pager.poke()

    def cached(self) -> set[str]:
        return {block.block_hash for block in self.pool.blocks if block.block_hash is not None}

    def settled(self) -> None:
        """Wait until books, arena and vLLM's pool say the same, and hold it against the lease."""

        def agree() -> bool:
            with self.pager.lock:
                seen = self.pool.num_gpu_blocks
                return (
                    not self.pager._fence.blocks
                    and self.pager._map.backed_blocks == seen == len(self.backed)
                    and self.pager._map.ids() == self.backed
                )

        until(agree, "books and memory to agree")

    def close(self) -> None:
        for memory in self.memories:
            memory.close()
        self.pager.close()


class _Unbacked(Arena):
    """An arena whose pages are not filled: they are large here, and nobody reads them."""

    def __init__(self, geometry: Geometry, limit: int | None) -> None:
        super().__init__(_Lazy(page_size=geometry.page_size, limit=limit), geometry)


class _Lazy(HostVmm):
    @staticmethod
    def _populate(address: int, size: int, count: int) -> None:
        """The mapping is writable as soon as it is needed, which here is never."""


class Machine:
    """A device of `blocks` blocks behind a broker, and the engines on it."""

    def __init__(self, blocks: int) -> None:
        self.size = blocks * BLOCK
        self._directory = Path(tempfile.mkdtemp(prefix="shoal-"))
        self.path = self._directory / "broker.sock"
        self.broker = BrokerThread(self.path, self.size)
        self.engines: list[Engine] = []
        self.neighbours: list[Lease] = []

    def engine(self, blocks: int, *, limit: int | None = None, ranks: int = 1, a_page: int = 1) -> Engine:
        """An engine of `blocks` blocks, of which `a_page` share each page."""
        engine = Engine(self, blocks, limit, ranks, a_page)
        self.engines.append(engine)
        return engine

    def neighbour(self, need: int) -> Lease:
        """Somebody else who needs `need` blocks."""
        lease = Lease(self.path, Rank(f"neighbour-{next(_numbers)}", "device", self.size, unit=BLOCK))
        self.neighbours.append(lease)
        lease.wait_connected(30)
        lease.report(used=need * BLOCK)
        lease.ask(need * BLOCK)
        return lease

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self.engines:
            engine.close()
        for lease in self.neighbours:
            lease.close()
        self.broker.close()
        shutil.rmtree(self._directory, ignore_errors=True)
