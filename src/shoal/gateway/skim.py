"""Reads a few fields at the top level of a large JSON object while it comes, piece by piece. Pure.

A body of megabytes that is read in one go holds up every other request for as long as that takes. This reads each
piece when it comes: strings are passed over from quote to quote, and what is nested from bracket to bracket. What
lies within is not checked, which is for the engine to do; only what the top level is made of is.

Long strings, texts and lists of numbers cost nearly nothing. Of a body that is nothing but brackets or short fields
this would be slower than a parser in C, so it gives up on it (`gave_up`) before it has taken long.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator
from typing import NamedTuple, NoReturn

import msgspec

from shoal.gateway.bodies import BOM

MAX_KEY = 256
"""Bytes of a name at the top level; a longer one is none of those looked for."""
MAX_VALUE = 64 * 1024
"""Bytes of a value that is kept; a longer one counts as not given."""
STEPS = 10_000
"""Brackets that are read of any body, about 1 µs each, where a field of the top level counts as four; beyond them only
one for each `BYTES_A_STEP`."""
BYTES_A_STEP = 256
_SPACE = re.compile(rb"[ \t\r\n]*")
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_FLAT = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
"""Whole strings, and what else has no bracket; possessive, so that it keeps no way back however long it is."""
_ROLE = rb'"(?:r|\\u0072)(?:o|\\u006[fF])(?:l|\\u006[cC])(?:e|\\u0065)"'
_IS_ROLE = re.compile(_ROLE)
_MESSAGE = re.compile(rb'(?:[^"\[\]{}]++|(?!%b)"[^"\\]*+(?:\\.[^"\\]*+)*+")*+' % _ROLE, re.DOTALL)
"""As `_FLAT`, but no further than to the word `role`."""
_LONGEST_ROLE = 26
"""Bytes of it, with every letter escaped."""
_SCALAR = re.compile(rb"[^,\[\]{}\" \t\r\n]*")
_TEXT = msgspec.json.Decoder(str)
_Steps = Generator[None, None, None]


class SkimError(Exception):
    """The body is no JSON object; the message says where."""


class _DenseError(Exception):
    """It would take too long."""


class Member(NamedTuple):
    """Where a field stands in the body: its name's first quote, its value's first byte, and what comes after that.
    A name that is too long is None."""

    name: str | None
    begin: int
    value: int
    end: int


class Skimmer:
    """Finds the values of the fields named `wanted`, as the bytes they came in; of one that comes twice, the last."""

    def __init__(self, wanted: Collection[str], listed: Collection[str] = ()) -> None:
        """`listed`: fields of whose lists it is to be known where objects in them begin, and how often these say
        `role`. None of them may be wanted too, which is a ValueError."""
        if not frozenset(wanted).isdisjoint(listed):
            raise ValueError("a field is either wanted or listed")
        self.fields: dict[str, bytes] = {}
        self.members: list[Member] = []
        """All of the top level, in order."""
        self.objects: dict[str, list[int]] = {}
        """Where the objects in a list begin, by the field's name."""
        self.roles: dict[str, int] = {}
        """How many strings in the objects of a list, or in lists in it, but in nothing deeper, are `role`."""
        self.gave_up = False
        """Whether the body has to be read by other means, because to go on would take too long."""
        self._wanted = frozenset(wanted)
        self._listed = frozenset(listed)
        self._found: list[int] | None = None  # where objects begin in the list that is read now
        self._said = 0  # how often it has said `role`
        self._data: bytes | bytearray = b""
        self._at = 0
        self._before = 0  # bytes of earlier pieces
        self._kept: bytearray | None = None  # of the name or value that is read now, in earlier pieces
        self._from = 0  # where it begins, or goes on, in this one
        self._limit = 0
        self._whole = False
        self._left = STEPS
        self._steps = self._read()

    def feed(self, piece: bytes | bytearray) -> None:
        """Read on. Raises SkimError."""
        if not piece or self.gave_up:
            return
        self._data, self._at = piece, 0
        self._left += len(piece) // BYTES_A_STEP
        try:
            next(self._steps)
        except _DenseError:
            self.gave_up = True
            self.fields.clear()
            self.members.clear()
            self.objects.clear()
            self.roles.clear()
        self._before += len(piece)

    def end(self) -> None:
        """The body is over. Raises SkimError if the object is not."""
        if not self._whole and not self.gave_up:
            raise SkimError(f"it ends after {self._before} bytes, before the object does")

    # -- the top level ------------------------------------------------------------------------------------------------

    def _read(self) -> _Steps:
        for byte in BOM:
            yield from self._wait()
            if self._data[self._at] != byte:
                break
            self._at += 1
        yield from self._expect(b"{")
        yield from self._space()
        if self._byte() != b"}":
            while True:
                yield from self._member()
                yield from self._space()
                if self._byte() != b",":
                    break
                self._at += 1
                yield from self._space()
        yield from self._expect(b"}")
        self._whole = True
        while True:
            self._pass(_SPACE)
            if self._at < len(self._data):
                self._refuse("the end of the body")
            yield

    def _member(self) -> _Steps:
        self._step(4)
        if self._byte() != b'"':
            self._refuse("a name in quotes")
        begin = self._before + self._at
        self._keep(MAX_KEY)
        yield from self._string()
        raw = self._take()
        name = None
        if raw is not None:
            try:
                name = _TEXT.decode(raw)
            except ValueError:
                self._refuse("a name that is a string of JSON")
        yield from self._expect(b":")
        yield from self._space()
        if name in self._wanted:
            self._keep(MAX_VALUE)
        first = self._before + self._at
        if name in self._listed:
            assert name is not None
            self._found = self.objects[name] = []
            self._said = 0
        yield from self._value()
        if self._found is not None:
            assert name is not None
            self.roles[name] = self._said
        self._found = None
        self.members.append(Member(name, begin, first, self._before + self._at))
        if name in self._wanted:
            assert name is not None
            value = self._take()
            if value is None:
                self.fields.pop(name, None)
            else:
                self.fields[name] = value

    def _value(self) -> _Steps:
        first = self._byte()
        if first == b'"':
            yield from self._string()
        elif first in (b"{", b"["):
            yield from self._nested()
        else:
            length = 0
            while True:
                begins = self._at
                self._pass(_SCALAR)
                length += self._at - begins
                if self._at < len(self._data):
                    break
                yield from self._wait()
            if not length:
                self._refuse("a value")

    # -- what is passed over ------------------------------------------------------------------------------------------

    def _string(self) -> _Steps:
        """From its first quote to after its last one."""
        self._at += 1
        while True:
            data = self._data
            quote = data.find(b'"', self._at)
            if data.find(b"\\", self._at, quote if quote >= 0 else len(data)) < 0:
                self._at = quote + 1 if quote >= 0 else len(data)
            else:
                self._pass(_INSIDE)
                quote = self._at if data.startswith(b'"', self._at) else -1
                self._at += 1
                if quote < 0 and self._at <= len(data):  # a backslash ends the piece: pass over what follows it
                    yield from self._wait()
                    self._at += 1
            if quote >= 0:
                return
            yield from self._wait()

    def _nested(self) -> _Steps:
        """From its first bracket to after its last one. Which kind closes which is not looked at."""
        depth = 0
        while True:
            message = depth == 2 and self._found is not None
            self._pass(_MESSAGE if message else _FLAT)
            if self._at >= len(self._data):
                yield from self._wait()
                continue
            byte = self._byte()
            if byte == b'"':  # it ends in a later piece, or is `role`
                if message:
                    self._keep(_LONGEST_ROLE)
                yield from self._string()
                if message and (raw := self._take()) is not None and _IS_ROLE.fullmatch(raw):
                    self._step(2)
                    self._said += 1
                continue
            self._step()
            if depth == 1 and byte == b"{" and self._found is not None:
                self._found.append(self._before + self._at)
            self._at += 1
            depth += 1 if byte in (b"{", b"[") else -1
            if not depth:
                return

    def _step(self, cost: int = 1) -> None:
        self._left -= cost
        if self._left < 0:
            raise _DenseError

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _wait(self) -> _Steps:
        """Until there is a byte to look at."""
        while self._at >= len(self._data):
            if self._kept is not None:
                self._kept += self._data[self._from :]
                if len(self._kept) > self._limit:
                    self._kept = None
                self._from = 0
            yield

    def _pass(self, pattern: re.Pattern[bytes]) -> None:
        """Pass over what matches, which may be nothing."""
        match = pattern.match(self._data, self._at)
        assert match is not None
        self._at = match.end()

    def _space(self) -> _Steps:
        while True:
            yield from self._wait()
            self._pass(_SPACE)
            if self._at < len(self._data):
                return

    def _byte(self) -> bytes | bytearray:
        return self._data[self._at : self._at + 1]

    def _expect(self, byte: bytes) -> _Steps:
        yield from self._space()
        if self._byte() != byte:
            self._refuse(f"`{byte.decode()}`")
        self._at += 1

    def _keep(self, limit: int) -> None:
        self._kept, self._from, self._limit = bytearray(), self._at, limit

    def _take(self) -> bytes | None:
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        kept += self._data[self._from : self._at]
        return bytes(kept) if len(kept) <= self._limit else None

    def _refuse(self, expected: str) -> NoReturn:
        raise SkimError(f"{expected} was expected at byte {self._before + self._at}")
