"""Bytes that wait for their turn: few in memory, more in a file without a name."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from typing import IO, Any

from shoal.errors import ShoalError

MEMORY = 2**20
"""Bytes that are held in memory; beyond them all go to a file."""


class Spool:
    """First in, first out. What is written and read at once is as large as the caller makes it."""

    __slots__ = ("_at", "_cuts", "_file", "_limit", "_memory", "_new", "_size", "left")

    def __init__(self, limit: int = MEMORY) -> None:
        self.left = 0
        """Bytes that are still to be taken."""
        self._limit = limit
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._at = 0
        self._cuts: deque[tuple[int, int]] = deque()
        self._new = b""

    def add(self, content: bytes) -> None:
        """Hold `content`. Raises ShoalError 507 `no_room` if it goes to a file and the disk is full."""
        if self._file is None and self._size + len(content) <= self._limit:
            self._memory += content
            self._size += len(content)
        else:
            try:
                if self._file is None:
                    self._open()
                self._write(content)
            except OSError as error:
                raise _no_room(error) from None
        self.left += len(content)

    def take(self, most: int) -> bytes:
        """The next bytes, at most `most` unless they are a replacement; empty if there are none.

        Raises ShoalError 507 `no_room` if the file cannot be read.
        """
        if self._cuts:
            start, end = self._cuts[0]
            if self._at == start:
                self._cuts.popleft()
                self._at = end
                return self._taken(self._new)
            most = min(most, start - self._at)
        if self._file is None:
            content = bytes(memoryview(self._memory)[self._at : self._at + most])
        else:
            try:
                content = os.pread(self._file.fileno(), min(most, self._size - self._at), self._at)
            except OSError as error:
                raise _no_room(error) from None
        self._at += len(content)
        return self._taken(content)

    def replace(self, spans: list[tuple[int, int]], new: bytes) -> None:
        """Have `new`, which must not be empty, taken instead of what stands in `spans`: first byte, and the one after
        the last; ascending. To be called before anything is taken."""
        self._cuts.extend(spans)
        self._new = new
        self.left += sum(len(new) - (end - start) for start, end in spans)

    def close(self) -> None:
        """Forget what is left."""
        self.left = self._size = self._at = 0
        self._memory = bytearray()
        self._cuts.clear()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _taken(self, content: bytes) -> bytes:
        self.left -= len(content)
        if not self.left:
            self.close()
        return content

    def _open(self) -> None:
        file: Any = tempfile.TemporaryFile(prefix="shoal-", buffering=0)  # noqa: SIM115  (closed by `close`)
        self._file = file
        self._size = 0
        self._write(self._memory)
        self._memory = bytearray()

    def _write(self, content: bytes | bytearray) -> None:
        assert self._file is not None
        rest = memoryview(content)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, self._size)
            self._size += written
            rest = rest[written:]


def _no_room(error: OSError) -> ShoalError:
    return ShoalError(
        "The relay cannot hold a form whose model is named after its file "
        f"({error.strerror}: {tempfile.gettempdir()}); put the field `model` first, or make room there.",
        status=507,
        code="no_room",
    )
