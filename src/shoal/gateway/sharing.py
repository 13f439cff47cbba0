"""What the relays of one Shoal count together: memory that all of them map, with a record for each key with limits.

A request costs no message to anybody: a relay reads and writes the record itself, while it holds a lock on one byte of
the file, which the kernel takes from a process that dies. How many requests a relay has under way, and what it put back
of the tokens that they took, stands in places of its own, which it alone writes and without a lock; so most requests
need one lock, when they begin. When a relay dies the supervisor says that it has none under way (`forget`), and what
those have taken of the minute stays taken.

A record is a row of 8-byte words, for `workers` relays:

    16 bytes of a hash of the key's id; zeros: it was never used
    requests a minute: `at`, `used` (see `limits.Bucket`)
    tokens a minute: `at`, what was put back and is part of `used` already, `used`
    under way, one for each relay
    tokens put back since the record is this key's, one for each relay
    1 where that relay knows the key, one for each relay

A record that no relay knows is given to another key when one is needed; if there is none the file grows.
"""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import os
import time
from collections.abc import Iterable
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from struct import Struct

from shoal.gateway.limits import Bucket
from shoal.gateway.relay import RelayConfig

PATIENCE = 0.05
"""Seconds for which a relay waits for a record that another one holds, which is microseconds unless that one was
stopped just then (SIGSTOP, a debugger). Then it goes on without: too much may be let in, but nobody hangs."""
PAUSE = 50e-6
WORD = 8
NAME = 16
NUMBERS = Struct("@5d")
_AT_CELLS = NAME + NUMBERS.size
_NONE = bytes(NAME)
_ALLOCATION = 0
"""The byte whose lock guards which record is whose; that of a record is its number and one."""
TRY = LOCK_EX | LOCK_NB
_log = logging.getLogger(__name__)


def create() -> int:
    """Memory for the relays of one Shoal to share; its descriptor, which is theirs to inherit."""
    fd = os.memfd_create("shoal-limits")
    os.ftruncate(fd, mmap.PAGESIZE)
    return fd


def forget(fd: int, worker: int, workers: int) -> None:
    """The relay `worker` of so many has ended: it has nothing under way any more, and knows no key."""
    length = os.fstat(fd).st_size
    with mmap.mmap(fd, length) as memory, memoryview(memory) as view, view.cast("d") as words:
        for record in range(length // _size(workers)):
            _clear(words, _cell(record, worker, workers), workers)


def joined(config: RelayConfig) -> Records | None:
    """The records that a relay shares with others, if it does. Raises ValueError and OSError as `Records`."""
    if config.limits_fd is None:
        return None
    return Records(config.limits_fd, config.worker, config.relay_workers)


def _clear(words: memoryview[float], cell: int, workers: int) -> None:
    words[cell] = words[cell + 2 * workers] = 0.0


def _size(workers: int) -> int:
    return _AT_CELLS + 3 * workers * WORD


def _cell(record: int, worker: int, workers: int) -> int:
    """The word of a record that says what this relay has under way."""
    return (record * _size(workers) + _AT_CELLS) // WORD + worker


def _name(id: str) -> bytes:
    return hashlib.blake2b(id.encode(), digest_size=NAME).digest()


class Records:
    """The records, as one relay sees them."""

    def __init__(self, fd: int, worker: int, workers: int) -> None:
        """`fd`: of `create`, inherited. `worker`: which of the `workers` relays this is, from 0.

        Raises ValueError if there is no such relay, OSError if the descriptor is none of such memory.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"there is no relay {worker} of {workers}")
        self.fd = fd
        self.workers = workers
        self.memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self.words = memoryview(self.memory).cast("d")
        self.row = Struct(f"@{NUMBERS.size // WORD + 2 * workers}d")
        self.stuck: set[int] = set()
        """Bytes whose locks were waited for in vain; once is enough."""
        self._worker = worker
        self._size = _size(workers)
        self._told = False

    @property
    def capacity(self) -> int:
        """How many records there are, as far as this relay has looked."""
        return len(self.memory) // self._size

    def take(self, ids: Iterable[str]) -> dict[str, Shared]:
        """Records for these keys, which this relay knows from now on. A key for which there is no memory has none: it
        is counted by each relay alone, which the log says, until the next call."""
        wanted = {_name(id): id for id in ids}
        if not wanted:
            return {}
        found: dict[bytes, int] = {}
        if self._allocating():
            try:
                found = self._find(wanted)
            finally:
                lockf(self.fd, LOCK_UN, 1, _ALLOCATION)
        if len(found) < len(wanted) and not self._told:
            _log.warning(
                "There is no memory to share the limits of %d keys; until there is, each relay counts those alone",
                len(wanted) - len(found),
            )
        self._told = len(found) < len(wanted)
        return {wanted[name]: Shared(self, record) for name, record in found.items()}

    def close(self) -> None:
        """Use it no more."""
        self.words.release()
        self.memory.close()

    def _allocating(self) -> bool:
        self.stuck.discard(_ALLOCATION)
        try:
            lockf(self.fd, TRY, 1, _ALLOCATION)
        except OSError:
            return self.wait(_ALLOCATION)
        return True

    def _find(self, wanted: dict[bytes, str]) -> dict[bytes, int]:
        self._map(os.fstat(self.fd).st_size)  # another relay may have made it grow
        names = [self._name(record) for record in range(self.capacity)]
        found = {name: record for record, name in enumerate(names) if name in wanted}
        if missing := [name for name in wanted if name not in found]:
            unknown = [
                record for record in range(len(names)) if not self._known(record) and names[record] not in wanted
            ]
            unknown.sort(key=lambda record: names[record] != _NONE)  # the others may be of keys that come back
            if len(unknown) < len(missing):
                unknown += self._grow(max(len(names), len(missing)))
            for name, record in zip(missing, unknown, strict=False):
                self._begin(record, name)
                found[name] = record
        for record in found.values():
            self.words[self.cell(record) + 2 * self.workers] = 1.0
        return found

    def _name(self, record: int) -> bytes:
        return self.memory[record * self._size : record * self._size + NAME]

    def _known(self, record: int) -> bool:
        first = _cell(record, 0, self.workers) + 2 * self.workers
        return any(self.words[first : first + self.workers])

    def start(self, record: int) -> int:
        """The first byte of a record."""
        return record * self._size

    def cell(self, record: int) -> int:
        """The word of a record that says what this relay has under way."""
        return _cell(record, self._worker, self.workers)

    def _begin(self, record: int, name: bytes) -> None:
        """Give a record that nobody knows to a key. Its name comes last, should this process be killed over it."""
        start = record * self._size
        self.memory[start : start + self._size] = bytes(self._size)
        self.memory[start : start + NAME] = name

    def _grow(self, more: int) -> range:
        """So many more records, or none."""
        before = self.capacity
        length = math.ceil((before + more) * self._size / mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            os.posix_fallocate(self.fd, 0, length)  # fails here if there is no memory, and not where it is written to
            self._map(length)
        except OSError as error:
            _log.warning("The memory for the limits of keys cannot grow: %s", error.strerror)
        return range(before, self.capacity)

    def _map(self, length: int) -> None:
        """Not by another mmap: to close the one before would end this process's locks on the file."""
        if length > len(self.memory):
            self.words.release()
            try:
                self.memory.resize(length)
            finally:
                self.words = memoryview(self.memory).cast("d")

    def wait(self, place: int) -> bool:
        """Wait for the lock of a byte that another relay has. False: in vain."""
        if place in self.stuck:
            return False
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(PAUSE)  # so that the one which has it may run
            try:
                lockf(self.fd, TRY, 1, place)
            except OSError:
                continue
            return True
        self.stuck.add(place)
        _log.warning("Another relay stands still and holds the count of a key's limits; this one goes on without")
        return False


class Shared:
    """The record of one key, as one relay sees it; `limits.Record`. Called for every request, so it is no deeper."""

    __slots__ = ("_back", "_cell", "_fd", "_last", "_numbers", "_records", "_row", "_start", "place")

    def __init__(self, records: Records, number: int) -> None:
        self._records = records
        self._fd = records.fd
        self.place = number + 1
        """The byte whose lock guards it."""
        self._start = records.start(number) + NAME
        self._row = records.row
        self._cell = records.cell(number)
        self._back = self._cell + records.workers
        self._last = 5 + records.workers
        self._numbers: tuple[float, ...] = ()

    def fetch(self, requests: Bucket | None, tokens: Bucket | None) -> int:
        """Fill the buckets, and say how many requests the other relays have under way."""
        records = self._records
        try:
            lockf(self._fd, TRY, 1, self.place)
        except OSError:
            records.wait(self.place)
        else:
            if records.stuck:
                records.stuck.discard(self.place)
        numbers = self._numbers = self._row.unpack_from(records.memory, self._start)
        if requests is not None:
            requests.at, requests.used = numbers[0], numbers[1]
        if tokens is not None:
            tokens.at, tokens.used = numbers[2], numbers[4]
            back = sum(numbers[self._last :])
            if back != numbers[3]:
                tokens.give(back - numbers[3], tokens.at)
                self._numbers = (*numbers[:3], back, *numbers[4:])
        return int(sum(numbers[5 : self._last]) - records.words[self._cell])

    def keep(self, requests: Bucket | None, tokens: Bucket | None) -> None:
        """Have others know these buckets; in this order, a relay that is killed over it gives nothing away."""
        at, used, tokens_at, back, tokens_used = self._numbers[:5]
        if requests is not None:
            at, used = requests.at, requests.used
        if tokens is not None:
            tokens_at, tokens_used = tokens.at, tokens.used
        NUMBERS.pack_into(self._records.memory, self._start, at, used, tokens_at, back, tokens_used)

    def release(self) -> None:
        """Let others have it."""
        lockf(self._fd, LOCK_UN, 1, self.place)

    def run(self, running: int) -> None:
        """So many requests are under way here: one aligned word, of which nobody sees a part."""
        self._records.words[self._cell] = running

    def give(self, tokens: float) -> None:
        """Put back so many tokens."""
        self._records.words[self._back] += tokens

    def leave(self) -> None:
        """This relay has no more to do with the key."""
        _clear(self._records.words, self._cell, self._records.workers)
