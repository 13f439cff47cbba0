"""Heads that were read before, so that they need not be read again.

A client sends the same head with each request, but for the length of the body; so does an engine, for as long as a
second lasts. A head is looked up by its bytes, without the digits of its Content-Length, and read only if it is new.
What is derived from a head (`Shared`) is kept with it. Bounded: heads that change all the time cost a look-up more.
Most connections bring one kind of head again and again, which is compared with their last one before it is looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, Protocol, Self, TypeVar

CAPACITY = 512
LARGEST = 4096
"""Bytes of the largest head that is kept."""
_LENGTH = re.compile(rb"\r\n(?:Content-Length|content-length):[ \t]*([0-9]{1,18})[ \t]*\r\n")


class Around(Protocol):
    """What heads have in common that differ in their length alone."""

    around: tuple[bytes, bytes | None] | None
    """What stands before the digits of Content-Length and after them; without that field, all of it and None. None of
    a head that is not kept."""


class Head(Protocol):
    """A head of which copies are made with another length."""

    length: int | None

    @property
    def shared(self) -> Around:
        """What copies have in common."""
        ...

    def __copy__(self) -> Self:
        """A copy that shares all but its length."""
        ...


H = TypeVar("H", bound=Head)


class Known(Generic[H]):
    """Reads heads with `parse`, each kind once."""

    def __init__(self, parse: Callable[[bytes], H]) -> None:
        self._parse = parse
        self._sized: dict[bytes, H] = {}
        # Apart from the others: a head that has no digits there would look like one whose digits were taken out.
        self._plain: dict[bytes, H] = {}

    def read(self, raw: bytes) -> H:
        """The head of these bytes. Raises what `parse` raises."""
        start = raw.find(b"\r\nContent-Length: ") + 18
        if start < 18:
            start = raw.find(b"\r\ncontent-length: ") + 18
        end = raw.find(b"\r\n", start) if start >= 18 else -1
        if not (0 < end - start <= 18 and raw[start:end].isdigit()):  # not as nearly all write it
            match = _LENGTH.search(raw)
            if match is None:
                known = self._plain.get(raw)
                return self._learn(self._plain, raw, raw, (raw, None)) if known is None else known.__copy__()
            start, end = match.span(1)
        key = raw[:start] + raw[end:]
        known = self._sized.get(key)
        if known is None:
            return self._learn(self._sized, key, raw, (raw[:start], raw[end:]))
        head = known.__copy__()
        head.length = int(raw[start:end])
        return head

    def _learn(self, book: dict[bytes, H], key: bytes, raw: bytes, around: tuple[bytes, bytes | None]) -> H:
        head = self._parse(raw)
        if len(key) <= LARGEST:
            if len(book) >= CAPACITY:
                book.clear()
            book[key] = head
            head.shared.around = around
        return head


def repeated(last: H | None, data: bytes) -> tuple[H, int] | None:
    """The head that `data` begins with and where it ends, if it is `last` again but for the digits of its length."""
    if last is None or last.shared.around is None:
        return None
    before, after = last.shared.around
    if not data.startswith(before):
        return None
    start = len(before)
    if after is None:
        return last.__copy__(), start
    end = data.find(b"\r", start, start + 19)
    digits = data[start:end]
    if not (digits.isdigit() and data.startswith(after, end)):
        return None
    head = last.__copy__()
    head.length = int(digits)
    return head, end + len(after)
