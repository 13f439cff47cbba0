"""An engine's side of the broker's socket, for plain threads.

`Lease` keeps one rank's lease. Its methods only note what is to be said and wake a background thread that does all
reading and writing, so an engine's hot path never waits for the broker and never sees an exception. Without a broker
the engine keeps what it has; the thread connects again as long as the lease is open, and says what is held.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import messages as m
from .ledger import Reason

log = logging.getLogger(__name__)

MIN_BACKOFF, MAX_BACKOFF = 0.05, 1.0
"""Seconds between attempts to connect."""


class LeaseError(Exception):
    """The broker refused this engine, or none answered in time. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank of an engine and the device it is on. Sizes in bytes.

    `device` is the key that every engine uses for it, such as a GPU's UUID; `unit` the least amount that is of use.
    """

    engine: str
    device: str
    device_size: int
    rank: int = 0
    floor: int = 0
    ceiling: int | None = None
    priority: int = 100
    unit: int = 1


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What to call, on the background thread, when something changes. What they raise is logged."""

    granted: Callable[[int], None] | None = None
    """More may be backed: the bytes added."""
    recalled: Callable[[int, Reason], None] | None = None
    """The lease to come down to; not below the present lease when a recall is over."""
    terms: Callable[[int, int | None, int], None] | None = None
    """Floor, ceiling and priority were changed."""
    connected: Callable[[bool], None] | None = None
    """The broker has answered, or is gone."""


class Lease:
    """The bytes that one rank may keep backed. Thread-safe; starts with `held` bytes and no broker.

    `returning`: it had a lease with these terms before, gave it up to sleep, and should not be refused if its floor
    does not fit now (`messages.Hello`).
    """

    def __init__(
        self, path: Path, rank: Rank, callbacks: Callbacks | None = None, *, held: int = 0, returning: bool = False
    ) -> None:
        self._path = path
        self._rank = rank
        self._callbacks = callbacks or Callbacks()
        self._changed = threading.Condition()
        self._lease = held
        self._recalled: int | None = None
        self._missing = 0
        self._most: int | None = None
        self._floor, self._ceiling, self._priority = rank.floor, rank.ceiling, rank.priority
        self._returning = returning
        self._connected = False
        self._refusal: str | None = None
        self._name_taken = False
        self._closed = False
        # What is still to be said. Releases add up; of asks and reports only the last counts.
        self._released = 0
        self._ask: tuple[int, int, int] | None = None
        self._report: tuple[int, tuple[int, ...], int, int] | None = None
        self._asked = 0
        self._answered = 0
        self._new_ask = self._new_report = False
        # Whether something was given back after the last ask, which then has to be heard before it.
        self._outdated = False
        self._awake = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"lease-{rank.engine}-{rank.rank}", daemon=True)
        self._thread.start()

    @property
    def lease(self) -> int:
        """Bytes that may be backed now."""
        return self._lease

    @property
    def excess(self) -> int:
        """Bytes to give back as they come free."""
        with self._changed:
            return 0 if self._recalled is None else max(0, self._lease - self._recalled)

    @property
    def missing(self) -> int:
        """Bytes that the lease is short of the last need that the broker answered."""
        return self._missing

    @property
    def most(self) -> int | None:
        """The largest lease that can be had as things stand, in bytes; None while no broker has said.

        What needs more than this can never run, however long it waits.
        """
        return self._most

    @property
    def terms(self) -> tuple[int, int | None, int]:
        """Floor, ceiling and priority in force."""
        with self._changed:
            return self._floor, self._ceiling, self._priority

    @property
    def connected(self) -> bool:
        """Whether a broker has answered."""
        return self._connected

    def ask(self, need: int, want: int = 0, least: int = 0) -> None:
        """Say which lease live requests need in all, and which could be used to keep cached blocks too.

        `least`, to be given only while nothing runs, is what the first request needs to run (`messages.Ask`).
        """
        with self._changed:
            self._ask = (max(0, need), max(0, need, want), max(0, least))
            self._asked += 1
            self._new_ask = True
            self._outdated = False
        self._notify()

    def release(self, size: int) -> None:
        """`size` bytes are no longer backed: the lease is smaller by them at once. At most the lease is given back."""
        with self._changed:
            size = max(0, min(size, self._lease))
            self._lease -= size
            self._released += size
            self._outdated = True
            if self._recalled is not None and self._lease <= self._recalled:
                self._recalled = None
        self._notify()

    def report(self, *, used: int, cached: tuple[int, ...] = (), backed: int = 0, waiting: int = 0) -> None:
        """Say what is held: bytes in use, bytes cached by age (`ages.bucket_of`), bytes backed, requests waiting."""
        with self._changed:
            self._report = (max(0, used), cached, max(0, backed), max(0, waiting))
            self._new_report = True
        self._notify()

    def wait_connected(self, timeout: float) -> None:
        """Wait for a broker to take this rank in, for an engine that starts. Raises LeaseError with the refusal.

        A name that is taken is waited for: right after an engine was killed its end may still be on its way.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._connected or (self._refusal is not None and not self._name_taken), timeout
            )
            if self._connected:
                return
            raise LeaseError(
                self._refusal
                or f"no memory broker answers on {self._path}; start one with `shoal memory broker`, or name its socket"
            )

    def wait_lease(self, size: int, timeout: float) -> bool:
        """Wait until the lease is at least `size` bytes. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._lease >= size, timeout)

    def wait_answered(self, timeout: float) -> bool:
        """Wait until the broker has answered the last `ask`, be it by what is missing. Returns whether it has."""
        with self._changed:
            asked = self._asked
            return self._changed.wait_for(lambda: self._answered >= asked, timeout)

    def close(self) -> None:
        """Give everything back and end. The engine must have unbacked its memory."""
        with self._changed:
            self._closed = True
            self._lease = 0
        self._notify(force=True)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _notify(self, *, force: bool = False) -> None:
        with self._changed:
            # One wake-up is enough until the thread has seen it; a closed lease has no thread to wake.
            if self._wake >= 0 and (force or not self._awake):
                self._awake = True
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        backoff = MIN_BACKOFF
        try:
            while not self._closed:
                try:
                    if self._serve():
                        backoff = MIN_BACKOFF
                except (OSError, m.ProtocolError) as error:
                    log.debug("the memory broker on %s: %s", self._path, error)
                except Exception:
                    log.exception("the connection to the memory broker failed")
                self._lost()
                self._sleep(backoff * random.uniform(0.5, 1.0))
                backoff = min(MAX_BACKOFF, backoff * 2)
        finally:
            with self._changed:
                os.close(self._wake)
                self._wake = -1

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._closed and (left := deadline - time.monotonic()) > 0:
            waiting = select.poll()
            waiting.register(self._wake, select.POLLIN)
            if waiting.poll(left * 1000):
                self._rest()

    def _rest(self) -> None:
        # In this order: a notice after the read must write again, and one before it is seen by what follows.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        self._awake = False

    def _serve(self) -> bool:
        """Talk to one broker until it is gone. Returns whether it took this rank in."""
        frames = m.Frames()
        welcomed = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as broker:
            broker.settimeout(5.0)
            broker.connect(str(self._path))
            broker.setblocking(False)
            with self._changed:
                out = bytearray(m.frame(self._hello()))
            # Not select(): an engine may have more than the 1,024 files that it can watch.
            waiting = select.poll()
            waiting.register(self._wake, select.POLLIN)
            while not self._closed:
                waiting.register(broker, select.POLLIN | (select.POLLOUT if out else 0))
                ready = dict(waiting.poll())
                if self._wake in ready:
                    self._rest()
                if ready.get(broker.fileno(), 0) & ~select.POLLOUT:
                    data = broker.recv(65536)
                    if not data:
                        return welcomed
                    for payload in frames.feed(data):
                        welcomed = self._hear(m.from_broker(payload)) or welcomed
                # While the broker is slow, news gathers in the fields above and not in a growing buffer.
                with contextlib.suppress(BlockingIOError):
                    while out := out or bytearray(self._say() if welcomed else b""):
                        del out[: broker.send(out)]
        return welcomed

    def _hello(self) -> m.Hello:
        rank = self._rank
        # The lease that is told includes all changes so far.
        self._released = 0
        return m.Hello(
            engine=rank.engine,
            rank=rank.rank,
            device=rank.device,
            device_size=rank.device_size,
            floor=self._floor,
            ceiling=self._ceiling,
            priority=self._priority,
            unit=rank.unit,
            held=self._lease,
            returning=self._returning,
        )

    def _say(self) -> bytes:
        """The frames for what has changed since the last call.

        A release voids what was wanted before it, and not what was asked after it, so they keep their order.
        """
        with self._changed:
            said: list[m.ToBroker] = []
            if self._new_report and self._report is not None:
                used, cached, backed, waiting = self._report
                said.append(m.Report(used=used, cached=cached, backed=backed, waiting=waiting))
                self._new_report = False
            if self._new_ask and self._ask is not None:
                need, want, least = self._ask
                said.append(m.Ask(need=need, want=want, least=least, seq=self._asked))
                self._new_ask = False
            if self._released:
                said.insert(len(said) if self._outdated else 0, m.Release(size=self._released))
                self._released = 0
        return b"".join(map(m.frame, said))

    def _hear(self, message: m.FromBroker) -> bool:
        """Take in one message. Returns whether it was the broker's welcome."""
        call: Callable[[], None] | None = None
        on = self._callbacks
        welcome = False
        with self._changed:
            if isinstance(message, m.Grant):
                self._lease += message.size
                self._missing = message.missing
                self._most = message.most
                self._answered = max(self._answered, message.seq)
                if message.size:
                    self._recalled = None
                    call = partial(on.granted, message.size) if on.granted else None
            elif isinstance(message, m.Recall):
                self._recalled = message.lease if message.lease < self._lease else None
                call = partial(on.recalled, message.lease, message.reason) if on.recalled else None
            elif isinstance(message, m.Terms):
                self._floor, self._ceiling, self._priority = message.floor, message.ceiling, message.priority
                call = partial(on.terms, *self.terms) if on.terms else None
            elif isinstance(message, m.Welcome):
                welcome = self._connected = self._returning = True
                if message.floor < self._floor:
                    log.warning(
                        "the memory broker cannot keep the whole floor of %s now: %d of %d bytes, and the rest when it "
                        "fits; see `shoal memory ls`",
                        self._rank.engine,
                        message.floor,
                        self._floor,
                    )
                self._refusal = None
                # A broker that is new knows nothing of what the last one was told.
                self._new_ask = self._ask is not None
                self._new_report = self._report is not None
                call = partial(on.connected, True) if on.connected else None
            elif isinstance(message, m.Error):
                log.warning("the memory broker refuses %s: %s", self._rank.engine, message.message)
                self._refusal = message.message
                self._name_taken = message.code == "duplicate"
            self._changed.notify_all()
        if call is not None:
            self._safely(call)
        if isinstance(message, m.Error) and not self._connected:
            raise m.ProtocolError(message.message)
        return welcome

    def _lost(self) -> None:
        with self._changed:
            was, self._connected = self._connected, False
            # Nobody waits for these bytes any more, and the next broker may have other rules.
            self._recalled = None
            self._most = None
        if was and self._callbacks.connected is not None:
            self._safely(partial(self._callbacks.connected, False))

    def _safely(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("a callback of the memory lease failed")
