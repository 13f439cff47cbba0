"""Reading the logs that shims write: their end, and what comes new. A log is `path` with its older half in `path.1`."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

MAX_LINE = 16_384
"""Characters shown of one line; engines have been seen to print megabytes without a line break."""
READ_AT_ONCE = 262_144


def older(path: Path) -> Path:
    """Where the older half of a log is."""
    return path.with_name(path.name + ".1")


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines, oldest first; fewer if there are no more. Blocks: run it in a thread."""
    found: deque[str] = deque(maxlen=lines)
    for part in (older(path), path):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
            # Enough for the lines wanted, however long they are, without reading 32 MiB for the last ten.
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - max(65_536, lines * 1024)))
            data = file.read()
            text = data.decode("utf-8", "replace")
            parts = text.split("\n")
            if parts and not parts[-1]:
                parts.pop()
            if len(data) < size and len(parts) > 1:
                parts = parts[1:]  # cut in the middle; the end of one huge line is better than nothing
            found.extend(_shown(line) for line in parts)
    return list(found)


def chunks(path: Path) -> Iterator[bytes]:
    """The whole log, oldest bytes first. Blocks."""
    for part in (older(path), path):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
            while data := file.read(READ_AT_ONCE):
                yield data


class Follower:
    """Reads what a log has gained since the last look, over rotations. Starts at its beginning, or at its end."""

    def __init__(self, path: Path, *, at_end: bool = False) -> None:
        self._path = path
        self._file = -1
        self._inode = 0
        self._rest = b""
        if at_end and self._open():
            os.lseek(self._file, 0, os.SEEK_END)

    def read(self) -> list[str]:
        """Complete lines that are new, at most 256 KiB of them at once. Never raises: no log is no lines."""
        data = self._take()
        if not data:
            return []
        head, newline, rest = (self._rest + data).rpartition(b"\n")
        if not newline:
            self._rest = rest[-MAX_LINE * 4 :]
            return []
        self._rest = rest
        return [_shown(line) for line in head.decode("utf-8", "replace").split("\n")]

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _take(self) -> bytes:
        if self._file < 0 and not self._open():
            return b""
        data = os.read(self._file, READ_AT_ONCE)
        if not data:
            with contextlib.suppress(OSError):
                if self._path.stat().st_ino != self._inode:  # rotated: what is left of the old one was read
                    self.close()
                    if self._open():
                        data = os.read(self._file, READ_AT_ONCE)
        return data

    def _open(self) -> bool:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        self._inode = os.fstat(self._file).st_ino
        return True


def _shown(line: str) -> str:
    line = line.rstrip("\r")
    # A progress bar redraws its line with carriage returns; the last drawing is the one to show.
    line = line.rsplit("\r", 1)[-1]
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}… ({len(line)} characters)"
