"""One engine's address range for KV, with some blocks backed."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from shoal.memory.pages import Geometry, PageMap, PageRange
from shoal.memory.vmm.base import AddressRange, OutOfMemory, Vmm, VmmError

if TYPE_CHECKING:
    import torch

SLICE_BYTES = 32 << 20
"""How much changes under one hold of the lock, about: the longest that a thread in a hurry waits for another."""


class Arena:
    """Addresses for all blocks of ``geometry`` on the device of ``vmm``; backs and unbacks blocks. Thread-safe.

    Long operations are cut into slices of ``slice_bytes``, and threads take turns between them. An arena belongs to
    the process that made it, and ``vmm`` has to outlive it. Raises ValueError if the two disagree on the page size,
    VmmError if there are no addresses left.
    """

    def __init__(self, vmm: Vmm, geometry: Geometry, *, slice_bytes: int = SLICE_BYTES) -> None:
        if vmm.page_size != geometry.page_size:
            raise ValueError(f"the geometry is for pages of {geometry.page_size} bytes, not {vmm.page_size}")
        self.geometry = geometry
        self._vmm = vmm
        self._pages = PageMap(geometry)
        self._lock = _TurnLock()
        self._a_page = geometry.blocks_a_page
        self._step = max(1, slice_bytes // max(geometry.block_size, geometry.page_size))
        self._storage: weakref.ref[object] | None = None
        self._closed = False
        self._fault: BaseException | None = None
        self._addresses = vmm.reserve(geometry.size)

    @property
    def address(self) -> int:
        """Where the range starts."""
        return self._addresses.address

    @property
    def backed_bytes(self) -> int:
        """Physical memory behind the range."""
        return self._pages.backed_bytes

    @property
    def backed_blocks(self) -> int:
        """How many blocks are backed."""
        return self._pages.backed_blocks

    @property
    def held_bytes(self) -> int:
        """Physical memory behind the range, or kept by the device's ``vmm`` for the next block: what `trim` lowers."""
        return self._pages.backed_bytes + self._vmm.kept_bytes

    def is_backed(self, block: int) -> bool:
        """Whether ``block`` may be used. Raises BlockError if there is none such."""
        return self._pages.is_backed(block)

    def cost(self, blocks: Iterable[int]) -> int:
        """Bytes that backing ``blocks`` would take from the device now. Raises BlockError."""
        with self._lock:
            return self._pages.plan_back(blocks).size

    def gain(self, blocks: Iterable[int]) -> int:
        """Bytes that unbacking ``blocks`` would free now. Raises BlockError."""
        with self._lock:
            return self._pages.plan_unback(blocks).size

    def back(self, blocks: Iterable[int]) -> None:
        """Back all of ``blocks``, or none.

        They read as zeros, but for pages that another block kept backed: there, a block finds its own old bytes.
        Raises OutOfMemory, BlockError, VmmError.
        """
        with self._lock:
            self._refuse_closed()
            ids = sorted(self._pages.check(blocks, backed=False))
        done: list[int] = []
        try:
            for some in self._slices(ids):
                self._back(some)
                done.extend(some)
        except BaseException:
            self._unback_all(done)
            self._vmm.trim()
            raise

    def back_up_to(self, blocks: Sequence[int]) -> int:
        """Back as many of ``blocks`` as there is memory for, in the order given, and say how many.

        Raises BlockError, and then none is backed, or VmmError.
        """
        with self._lock:
            self._refuse_closed()
            ids = self._pages.check(blocks, backed=False)
        done = 0
        for some in self._slices(ids):
            try:
                self._back(some)
            except OutOfMemory as error:
                done += self._back_some(some, error.pages)
                self._vmm.trim()
                break
            done += len(some)
        return done

    def unback(self, blocks: Iterable[int]) -> None:
        """Unback ``blocks``; pages on which no block is left go.

        Nothing may use the blocks any more, nor be about to: their addresses fault from now on. Raises BlockError, and
        then none is unbacked, or VmmError.
        """
        with self._lock:
            self._refuse_closed()
            ids = sorted(self._pages.check(blocks, backed=True))
        self._unback_all(ids)

    def trim(self) -> int:
        """Give back the memory that is kept for the next block, and say how many bytes. Raises VmmError."""
        return self._vmm.trim(0)

    def tensor(self, nbytes: int | None = None) -> torch.Tensor:
        """The range as a ``torch.int8`` tensor of ``nbytes`` elements, by default up to the last block's end.

        It reads and writes backed blocks; elsewhere it faults. While it or a view of it lives, the addresses stay
        reserved, even when the arena is closed. Raises ValueError if the range is shorter.
        """
        import torch

        size = self.geometry.extent if nbytes is None else nbytes
        if not 0 < size <= self.geometry.size:
            raise ValueError(f"the arena has {self.geometry.size} bytes, not {size}")
        with self._lock:
            self._refuse_closed()
            held = None if self._storage is None else self._storage()
            storage: torch.UntypedStorage
            if isinstance(held, torch.UntypedStorage):
                storage = held
            else:
                storage = torch._C._construct_storage_from_data_pointer(  # noqa: SLF001 - there is no public way
                    self.address, torch.device(self._vmm.device), self.geometry.size
                )
                self._storage = weakref.ref(storage)
        return torch.empty(0, dtype=torch.int8, device=storage.device).set_(storage, 0, (size,))

    def close(self) -> None:
        """Unback everything and give the memory and the addresses up, the addresses once no tensor is left on them."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            storage = None if self._storage is None else self._storage()
            if storage is None:
                self._vmm.free(self._addresses)
                self._pages = PageMap(self.geometry)
                return
            weakref.finalize(storage, _free, self._vmm, self._addresses).atexit = False
            self._carry_out(self._pages.ids())
        self._vmm.trim()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _slices(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        """``ids`` in parts that change about a slice's bytes: as many blocks, or as many pages where blocks share."""
        if self._a_page < 2:
            yield from (ids[at : at + self._step] for at in range(0, len(ids), self._step))
            return
        begin = pages = 0
        last = -1
        for at, id in enumerate(ids):
            if (page := id // self._a_page) == last:
                continue
            last = page
            if pages == self._step:
                yield ids[begin:at]
                begin, pages = at, 0
            pages += 1
        if begin < len(ids):
            yield ids[begin:]

    def _back(self, ids: Sequence[int]) -> None:
        """One turn: all of ``ids`` or none."""
        with self._lock:
            self._refuse_closed()
            plan = self._pages.plan_back(ids)
            done: list[PageRange] = []
            try:
                for span in plan.ranges:
                    self._vmm.back(self._addresses, span.first, span.pages)
                    done.append(span)
            except BaseException as error:
                with self._unknown_if_it_fails():
                    for span in done:
                        self._vmm.unback(self._addresses, span.first, span.pages)
                if isinstance(error, OutOfMemory):
                    error.pages += sum(span.pages for span in done)
                raise
            self._pages.commit(plan)

    def _back_some(self, ids: Sequence[int], pages: int) -> int:
        """How many of ``ids``, which do not all fit, could be backed; ``pages`` is what seemed to fit."""
        count = len(ids) - 1
        while count:
            with self._lock:
                while count and self._pages.plan_back(ids[:count]).pages > pages:
                    count -= 1
            try:
                self._back(ids[:count])
                return count
            except OutOfMemory as error:
                pages = error.pages
                count = max(0, count - 1)
        return 0

    def _unback_all(self, ids: Sequence[int]) -> None:
        for some in self._slices(ids):
            with self._lock:
                self._refuse_closed()
                self._carry_out(some)
            self._vmm.trim()  # outside the lock: releasing is half of the work

    def _carry_out(self, ids: Sequence[int]) -> None:
        """Unback ``ids``; the lock is held."""
        plan = self._pages.plan_unback(ids)
        with self._unknown_if_it_fails():
            for span in plan.ranges:
                self._vmm.unback(self._addresses, span.first, span.pages)
        self._pages.commit(plan)

    @contextmanager
    def _unknown_if_it_fails(self) -> Iterator[None]:
        """Unmapping fails only when the device is lost to this process; what is backed is then anyone's guess."""
        try:
            yield
        except BaseException as error:
            self._fault = error
            raise

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ValueError("this arena was closed")
        if self._fault is not None:
            raise VmmError("arena", "unusable", f"restart the engine; before, {self._fault}")


def _free(vmm: Vmm, addresses: AddressRange) -> None:
    with suppress(ValueError):  # the device was closed, and its ranges with it
        vmm.free(addresses)


class _TurnLock:
    """A mutex that serves threads in the order they came: a plain one goes back to a thread that loops over it."""

    def __init__(self) -> None:
        self._state = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._state:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:
            with self._state:
                given = turn not in self._waiting
                if not given:
                    self._waiting.remove(turn)
            if given:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._state:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False
