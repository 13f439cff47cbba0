"""Where a message body ends on the wire (RFC 9112, section 6). Pure.

Each class is fed with bytes as they come, cut anywhere, and says how many of them belong to the body. What is no
valid framing raises `FramingError` and is never guessed at: two parties that read a length differently are how
requests are smuggled.
"""

from __future__ import annotations

import re
from typing import Protocol

MAX_CHUNK_LINE = 4096
"""Bytes of a chunk's size with its extensions."""
MAX_TRAILERS = 16 * 1024
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_BARE = re.compile(rb"\n|\r(?!\Z)")
"""What cannot become a line's end; for text without CR LF."""
_PLAIN = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")
SMALL = {b"%x\r\n" % size: size for size in range(1, 1024)}
"""The first lines of small chunks, as servers write them."""
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_FRAMES = re.compile(rb"(?:content-length|transfer-encoding):", re.IGNORECASE)
"""Fields that must not come after a body (RFC 9110, section 6.5.1): some would believe them."""


class FramingError(Exception):
    """The body's framing is broken; the message says how."""


class Framing(Protocol):
    """The body of one message, as it comes."""

    done: bool
    """Whether the body has come to its end."""
    whole: bool
    """Whether a body that ends here because the connection does is complete."""
    exact: bool
    """Whether what was fed last is whole chunks and nothing else, and none of them the last one."""
    content: bytes
    """What the last `feed` read, without chunk headers."""

    def feed(self, data: bytes) -> int:
        """Read `data`; the position after the last byte of the body, at most ``len(data)``."""
        ...


class Fixed:
    """A body of `length` bytes."""

    __slots__ = ("content", "done", "left")
    whole = False
    exact = False

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = not length
        self.content = b""

    def feed(self, data: bytes) -> int:
        end = min(len(data), self.left)
        self.left -= end
        self.done = not self.left
        self.content = data if end == len(data) else data[:end]
        return end


class UntilClose:
    """A body that ends with the connection."""

    __slots__ = ("content",)
    done = False
    whole = True
    exact = False

    def __init__(self) -> None:
        self.content = b""

    def feed(self, data: bytes) -> int:
        self.content = data
        return len(data)


class Chunked:
    """A chunked body. `boundary` is the position in the last fed data after the last complete chunk, 0 if none."""

    __slots__ = (
        "_in_trailers",
        "_left",
        "_partial",
        "_pieces",
        "_trailer_bytes",
        "boundary",
        "content",
        "done",
        "exact",
        "trailers",
    )
    whole = False

    def __init__(self) -> None:
        self.done = False
        self.exact = False
        self.boundary = 0
        self.trailers: list[bytes] = []
        """Trailer fields as they came, one line each, without its end."""
        self._left = 0  # bytes of the chunk's data and of the line end after it
        self._partial = b""  # of a line that is not all there yet
        self._in_trailers = False
        self._trailer_bytes = 0
        self._pieces: list[bytes] = []  # of the content
        self.content = b""

    def feed(self, data: bytes) -> int:
        at, size = 0, len(data)
        self.exact = False
        if not (self._left or self._partial or self._in_trailers):
            # As most pieces of a stream are: one chunk, or a few, and nothing else.
            first = data.find(b"\n", 0, 8) + 1
            length = SMALL.get(data[:first])
            if length is not None and first + length + 2 == size and data.endswith(b"\r\n"):
                self.content = data[first:-2]
                self.boundary = size
                self.exact = True
                return size
            at = self.boundary = self._read_whole_chunks(data, 0)
            self.exact = at == size
        else:
            self.boundary = 0
        while at < size and not self.done:
            if self._left:
                at = self._read_chunk(data, at, size)
            else:
                if not self._partial and not self._in_trailers and (end := self._read_whole_chunks(data, at)) > at:
                    at = self.boundary = end
                if at < size:
                    at = self._read_line(data, at, size)
        self.content = b"".join(self._pieces)
        self._pieces.clear()
        return at

    @property
    def clean(self) -> bool:
        """Whether the last chunk is complete, so that another one could follow."""
        return not self._left and not self._partial and not self._in_trailers

    def _read_whole_chunks(self, data: bytes, at: int) -> int:
        """Read the chunks that are all there and have no extensions, as nearly all are."""
        while match := _PLAIN.match(data, at):
            first = match.end()
            last = first + int(match[1], 16)
            if not data.startswith(b"\r\n", last):
                break
            self._pieces.append(data[first:last])
            at = last + 2
        return at

    def _read_chunk(self, data: bytes, at: int, size: int) -> int:
        left = self._left
        if left > 2:
            end = min(size, at + left - 2)
            self._pieces.append(data[at:end])
            left -= end - at
            at = end
        while left in (1, 2) and at < size:
            if data[at] != (13 if left == 2 else 10):
                raise FramingError("a chunk is longer than its size says")
            left -= 1
            at += 1
        self._left = left
        if not left:
            self.boundary = at
        return at

    def _read_line(self, data: bytes, at: int, size: int) -> int:
        limit = MAX_TRAILERS if self._in_trailers else MAX_CHUNK_LINE
        if self._partial.endswith(b"\r"):
            if data[at] != 10:
                raise FramingError("a line does not end with CR LF")
            line, end = self._partial[:-1], at + 1
        else:
            cut = data.find(b"\r\n", at)
            if cut < 0:
                self._partial += data[at:]
                if len(self._partial) > limit + self._partial.endswith(b"\r"):
                    raise FramingError("a chunk's size line or the trailers are too long")
                if _BARE.search(data, at):
                    raise FramingError("a line does not end with CR LF")
                return size
            line, end = self._partial + data[at:cut], cut + 2
        self._partial = b""
        if len(line) > limit:
            raise FramingError("a chunk's size line or the trailers are too long")
        if self._in_trailers:
            self._trailer(line)
            if self.done:
                self.boundary = end
            return end
        match = _SIZE.fullmatch(line)
        if match is None:
            raise FramingError("a chunk's size is not a hexadecimal number")
        length = int(match[1], 16)
        if length:
            self._left = length + 2
        else:
            self._in_trailers = True
        return end

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > MAX_TRAILERS:
            raise FramingError("the trailers are too long")
        if _TRAILER.fullmatch(line) is None:
            raise FramingError("a trailer is not a valid field")
        if _FRAMES.match(line):
            raise FramingError("a trailer says anew where the body ends")
        self.trailers.append(line)


def chunk(content: bytes) -> bytes:
    """`content`, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)
