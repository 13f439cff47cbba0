"""Host copies of an engine's weights: taken once, if possible in the background, and kept over every sleep.

vLLM copies all weights to newly pinned host memory each time it falls asleep. Weights hardly ever change, so the copy
of the first time is good for every other: a later sleep only sees that it still is, and unmaps. What has changed
meanwhile (another LoRA adapter, an update of weights) is copied anew.

A copy is taken piece by piece at a bounded rate, and only while no step runs. Copies come from the engine's thread and
from that of the copying; `step` is all that a running request pays for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

log = logging.getLogger("vllm.shoal")

PIECE = 32 << 20
"""Bytes copied at once: what another transfer has to wait for, under a millisecond."""

RATE = 8 << 30
"""Bytes a second in the background, a small part of what the bus can do."""

QUIET = 0.05
"""Seconds without a step before copying goes on."""

SPARE = 2 << 30
"""Bytes of host memory that are left to others."""

MAKERS = 4
"""Threads that make host memory ready for a sleep that could not be prepared."""

FREEING = 1.0
"""Seconds that vLLM waits at most, to free an allocation, for a piece to be begun."""

Mark = tuple[int, int]
Go = Callable[[], bool]
"""Whether to go on."""


class Buffer(Protocol):
    """Pinned host memory of one allocation's size."""

    @property
    def tensor(self) -> Any:
        """Its bytes."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class Mover(Protocol):
    """Makes buffers, fills them from the device, and tells what is where."""

    def reserve(self, size: int) -> Buffer:
        """A buffer. From any thread. Raises MemoryError, RuntimeError."""
        ...

    def fetch(self, buffer: Buffer, source: int, offset: int, size: int) -> None:
        """Begin to copy `size` bytes at `offset` of the allocation at `source`. Must not allocate on the device."""
        ...

    def wait(self) -> None:
        """Until all that was begun is there."""
        ...

    def mark(self, buffer: Buffer, go: Go) -> Mark | None:
        """What tells its bytes from others; None if it was not to `go` on. Must not allocate on the device."""
        ...

    def begin_marks(self, allocations: Sequence[tuple[int, int]]) -> Any:
        """Wait until the device has nothing to do, and have it begin to work the same out of what lies at these
        addresses of its memory, in so many bytes each. From the engine's thread. Raises RuntimeError."""
        ...

    def read_marks(self, begun: Any) -> list[Mark]:
        """What came of it. Raises RuntimeError."""
        ...


@dataclass(frozen=True, slots=True)
class Allocation:
    """Device memory that holds weights; `data` is vLLM's own record of it."""

    pointer: int
    size: int
    data: Any


@dataclass(slots=True)
class _Copy:
    data: Any
    size: int
    buffer: Buffer
    mark: Mark | None
    """None: there is memory for it, but not all has been copied."""


class HostCopies:
    """The copies of one worker. Every method but `step` belongs to the engine's thread."""

    def __init__(
        self,
        allocations: Callable[[], list[Allocation]],
        mover: Mover,
        room: Callable[[], int],
        *,
        rate: int = RATE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allocations = allocations
        self._mover = mover
        self._room = room
        self._rate = rate
        self._clock = clock
        self._lock = threading.RLock()
        self._copies: dict[int, _Copy] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._stepped = float("-inf")
        self._asleep = False
        self._complete = False
        self._begun: tuple[list[Allocation], Any] | None = None
        self._reason = ""
        self.copied = 0
        """Bytes that the last sleep had to copy."""

    # -- what is asked for --------------------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """Bytes of the weights and of their copy, whether it is being taken, and why it could not be."""
        with self._lock:
            held = sum(copy.size for copy in self._copies.values() if copy.mark is not None)
            taken = sum(copy.size for copy in self._copies.values())
        size = sum(one.size for one in self._allocations())
        return {"size": size, "held": held, "reserved": taken, "taking": self._taking, "reason": self._reason}

    def take(self) -> dict[str, Any]:
        """Begin to copy what is not copied yet, in the background."""
        if self._asleep:
            self._reason = "the engine sleeps"
        elif not self._taking:
            missing = self._missing()
            self._reason = self._too_large(missing)
            if missing and not self._reason and self._warm_up(missing):
                self._stop.clear()
                self._thread = threading.Thread(target=self._run, args=(missing,), name="shoal-copy", daemon=True)
                self._thread.start()
        return self.look()

    def forget(self) -> dict[str, Any]:
        """Give the host's memory back, unless the engine sleeps: then there are no other weights."""
        if self._asleep and self._complete:
            self._reason = "the engine sleeps, and these are its weights"
            return self.look()
        self._halt()
        with self._lock:
            gone = [copy.buffer for copy in self._copies.values()]
            self._copies.clear()
        self._complete, self._begun, self._reason = False, None, ""
        # Unpinning takes a moment for each GiB.
        threading.Thread(target=_close, args=(gone,), name="shoal-forget", daemon=True).start()
        return self.look()

    def step(self) -> None:
        """The engine is busy."""
        self._stepped = self._clock()

    # -- sleep --------------------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Before a sleep that keeps the weights: see that there is memory for every copy, and have the device begin to
        tell whether the copies are right. Returns whether it was waited for and does nothing else from then on.

        Raises MemoryError if the host has no room for what is missing; nothing has been changed then.
        """
        self._halt()
        self._begun, self._complete, self.copied = None, False, 0
        if refused := self._too_large(self._missing(memory=True)):
            raise MemoryError(refused)
        allocations = self._allocations()
        try:
            self._begun = allocations, self._begin_marks(allocations)
        except RuntimeError as error:
            self._leave_to_vllm(error)
            return False
        if self._missing(memory=True):  # that may fail, and takes long: not with half of the engine's memory gone
            self.finish()
        return True

    def finish(self) -> bool:
        """Copy what has no right copy. Returns whether every copy is right; if not, vLLM is to make its own.

        Raises MemoryError if the host has not got the memory after all.
        """
        if self._begun is None:
            return self._complete
        (allocations, marks), self._begun = self._begun, None
        try:
            found = zip(allocations, self._mover.read_marks(marks), strict=True)
            wrong = [(one, m) for one, m in found if (copy := self._copy(one)) is None or copy.mark != m]
            self.copied = self._fetch_all(wrong)
            self._complete = True
        except RuntimeError as error:
            self._leave_to_vllm(error)
        return self._complete

    def lend(self) -> None:
        """Give vLLM the copies as its own backups: its wake copies from those, and then lets go of them."""
        self._asleep = True
        for one in self._allocations():
            if (copy := self._copy(one)) is not None:
                one.data.cpu_backup_tensor = copy.buffer.tensor

    def give_up(self) -> None:
        """Give the host's memory back before vLLM makes copies of its own: it has not got room for both."""
        self._halt()
        with contextlib.suppress(RuntimeError):  # a device that has broken fetches nothing any more
            self._mover.wait()  # until then, what was begun to be fetched is written to that memory
        _close([copy.buffer for copy in self._copies.values()])
        self._copies.clear()

    def sleeps(self) -> None:
        """The weights leave the device without these copies."""
        self._halt()
        self._asleep, self._complete, self._begun = True, False, None

    def woke(self) -> None:
        """The weights are on the device again."""
        self._asleep = self._complete = False

    # -- ends ---------------------------------------------------------------------------------------------------------

    def freeing(self) -> FreeGuard:
        """Around vLLM's freeing of an allocation: nothing is begun to be copied from it meanwhile."""
        return FreeGuard(self._lock)

    def freed(self, pointer: int) -> None:
        """An allocation is gone."""
        copy = self._copies.pop(pointer, None)
        if copy is not None:
            copy.buffer.close()

    def close(self) -> None:
        """Stop copying. The process is about to end, and its memory with it."""
        self._halt()

    # -- steps --------------------------------------------------------------------------------------------------------

    @property
    def _taking(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _halt(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _copy(self, one: Allocation) -> _Copy | None:
        copy = self._copies.get(one.pointer)
        return copy if copy is not None and copy.data is one.data else None

    def _missing(self, *, memory: bool = False) -> list[Allocation]:
        """What is not copied or, if it is about `memory`, what has no memory for it."""
        copies = [(one, self._copy(one)) for one in self._allocations()]
        return [one for one, copy in copies if copy is None or (copy.mark is None and not memory)]

    def _too_large(self, missing: list[Allocation]) -> str:
        need = sum(one.size for one in missing if self._copy(one) is None)
        if not need or need + SPARE <= (room := self._room()):
            return ""
        return (
            f"a copy of the weights needs {need / 2**30:.2f} GiB more of the host's memory, which has "
            f"{room / 2**30:.2f} GiB free, and {SPARE / 2**30:.0f} GiB of that are left to others"
        )

    def _begin_marks(self, allocations: list[Allocation]) -> Any:
        return self._mover.begin_marks([(one.pointer, one.size) for one in allocations])

    def _warm_up(self, allocations: list[Allocation]) -> bool:
        """Ask the device what the first sleep will ask it: its driver loads what that takes. Returns whether it can."""
        try:
            self._mover.read_marks(self._begin_marks(allocations))
        except RuntimeError as error:
            self._leave_to_vllm(error)
            return False
        return True

    def _leave_to_vllm(self, error: RuntimeError) -> None:
        log.warning("Shoal: weights cannot be kept in host memory, so vLLM copies them itself: %s", error)
        self._reason = str(error)

    def _fetch_all(self, wrong: list[tuple[Allocation, Mark]]) -> int:
        """Copy these at full speed; nothing else uses the device."""
        with ThreadPoolExecutor(MAKERS) as makers:
            made = {one.pointer: makers.submit(self._reserve, one) for one, _ in wrong if self._copy(one) is None}
            for one, _ in wrong:
                if one.pointer in made:
                    made[one.pointer].result()
                copy = self._copies[one.pointer]
                copy.mark = None
                self._mover.fetch(copy.buffer, one.pointer, 0, one.size)
        self._mover.wait()
        for one, mark in wrong:
            self._copies[one.pointer].mark = mark
        return sum(one.size for one, _ in wrong)

    def _reserve(self, one: Allocation) -> _Copy:
        copy = _Copy(one.data, one.size, self._mover.reserve(one.size), None)
        with self._lock:
            self._copies[one.pointer] = copy
        return copy

    # -- the copying's thread -----------------------------------------------------------------------------------------

    def _run(self, missing: list[Allocation]) -> None:
        began = self._clock()
        try:
            for one in missing:
                if not self._take(one):
                    return
        except Exception as error:
            self._reason = f"{type(error).__name__}: {error}"
            log.warning("Shoal: the weights could not be copied to host memory: %s", error)
        else:
            size = sum(one.size for one in missing)
            log.info("Shoal: copied %.2f GiB of weights to the host in %.2f s", size / 2**30, self._clock() - began)

    def _take(self, one: Allocation) -> bool:
        """Copy one allocation; whether to go on with others."""
        copy = self._copy(one)
        if copy is None:
            if not self._go():
                return False
            copy = self._reserve(one)
        due = self._clock()
        for offset in range(0, one.size, PIECE):
            size = min(PIECE, one.size - offset)
            if not self._wait_for_quiet():
                return False
            with self._lock:
                if self._copies.get(one.pointer) is not copy:  # freed
                    return True
                self._mover.fetch(copy.buffer, one.pointer, offset, size)
            self._mover.wait()
            due = max(due, self._clock() - 1) + size / self._rate
            if self._stop.wait(max(0.0, due - self._clock())):
                return False
        mark = self._mover.mark(copy.buffer, self._go)
        copy.mark = mark
        return mark is not None

    def _go(self) -> bool:
        return not self._stop.is_set()

    def _wait_for_quiet(self) -> bool:
        while self._go() and (left := self._stepped + QUIET - self._clock()) > 0:
            self._stop.wait(left)
        return self._go()


class FreeGuard:
    """Holds a lock if it can be had soon. vLLM frees with torch's own lock held: two must not wait for each other."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._held = False

    def __enter__(self) -> None:
        self._held = self._lock.acquire(timeout=FREEING)

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._lock.release()


def _close(buffers: list[Buffer]) -> None:
    for buffer in buffers:
        try:
            buffer.close()
        except RuntimeError as error:
            log.warning("Shoal: the memory of a copy could not be given back: %s", error)
