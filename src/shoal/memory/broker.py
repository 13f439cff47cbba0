"""The memory broker of a machine: ledger and policy behind a Unix socket.

One task owns the books. Connections put what they read on its queue; it books all that waits there, decides once for
each device it touched, and writes the answers. Nothing runs while nothing happens, but for the measurement of devices
that have members, or of which something is held back.

`shoal memory broker` runs it alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from . import messages as m
from .connection import Connection
from .events import Due, Heard, Measured
from .ledger import Device, Ledger, LedgerError, Member, Terms, mib
from .listening import ListeningSocket, listen
from .measuring import Follower, Measure, Reading
from .policy import decide
from .reserving import Reserving
from .sizes import Amount
from .watching import Watcher, listing

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
SETTLE = 2.0
"""Seconds in which a broker that follows another one, ended or killed, grants nothing, so that engines can say first
what they hold. Above `client.MAX_BACKOFF`."""


class Broker:
    """Leases the memory of this machine's devices to the engines that connect.

    `limits` are bytes or parts by device; one not named may be leased whole. `headroom`, a fraction or an amount, is
    kept back of each. `measure` is called every `interval` seconds while a device has members.
    """

    def __init__(
        self,
        socket: Path,
        *,
        limits: Mapping[str, int | Amount] | None = None,
        headroom: float | Amount = 0.0,
        measure: Measure | None = None,
        interval: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = Ledger()
        self._path = socket
        self._limits = {
            key: Amount(limit) if isinstance(limit, int) else limit for key, limit in (limits or {}).items()
        }
        self._headroom = headroom if isinstance(headroom, Amount) else Amount(share=headroom)
        self._follower = (
            None
            if measure is None
            else Follower(measure, interval, lambda found: self._events.put_nowait(Measured(found)))
        )
        self._clock = clock
        self._connections: set[Connection] = set()
        self._members: dict[Connection, Member] = {}
        self._owners: dict[Member, Connection] = {}
        self._watchers: dict[Connection, Watcher] = {}
        self._reserving = Reserving(self.ledger, None if self._follower is None else self._follower.follow)
        self._most: dict[Member, int] = {}
        self._events: asyncio.Queue[Heard | Measured | Due] = asyncio.Queue()
        self._touched: set[Device] = set()
        self._timers: dict[Device, asyncio.TimerHandle] = {}
        self._unmeasured: set[Device] = set()
        self._silent: dict[Member, float] = {}
        self._settled_at = 0.0
        self._listening: ListeningSocket | None = None
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._connections)

    def know(self, readings: Mapping[str, Reading]) -> None:
        """Take devices into the books before an engine names them, so that people can set their budgets."""
        for key, reading in readings.items():
            self._device(key, reading.total)

    async def start(self) -> None:
        """Listen. Raises `listening.BrokerRunningError` if a live broker has the socket."""
        self._listening = listen(self._path)
        if self._listening.replaced:
            self._settled_at = self._clock() + SETTLE
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._own(), name="books")]
        if self._follower is not None:
            self._tasks.append(loop.create_task(self._follower.run(), name="measure"))
        self._server = await loop.create_unix_server(self._connection, sock=self._listening.socket)
        log.info("memory broker listens on %s", self._path)

    async def stop(self) -> None:
        """Close all connections and remove the socket."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in self._timers.values():
            timer.cancel()
        for watcher in self._watchers.values():
            watcher.stop()
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def _connection(self) -> Connection:
        return Connection(self._opened, lambda connection, message: self._events.put_nowait(Heard(connection, message)))

    def _opened(self, connection: Connection) -> str | None:
        """Why a new connection is refused, or None."""
        self._connections.add(connection)
        if len(self._connections) > MAX_CONNECTIONS:
            return f"the broker has {MAX_CONNECTIONS} connections already; close some"
        return None

    async def _own(self) -> None:
        while True:
            event = await self._events.get()
            asked: dict[Member, int] = {}
            while True:
                if isinstance(event, Heard):
                    self._hear(event.connection, event.message, asked)
                elif isinstance(event, Measured):
                    self._observe(event.readings)
                else:
                    self._touched.add(event.device)
                if self._events.empty():
                    break
                event = self._events.get_nowait()
            self._decide(asked)

    def _hear(self, connection: Connection, message: m.ToBroker | None, asked: dict[Member, int]) -> None:
        try:
            self._take(connection, message, asked)
        except LedgerError as error:
            connection.send(m.Error(code=error.code, message=str(error)))
        except Exception:
            log.exception("the broker failed on %r", message)
            connection.refuse("internal", "the broker failed on this message; its log says why")
        connection.handled()

    def _take(self, connection: Connection, message: m.ToBroker | None, asked: dict[Member, int]) -> None:
        if message is None:
            self._gone(connection)
        elif isinstance(message, m.Hello):
            self._hello(connection, message)
        elif isinstance(message, m.SetTerms):
            self._set_terms(connection, message)
        elif isinstance(message, m.SetBudget):
            self._set_budget(connection, message)
        elif isinstance(message, m.Reserve):
            self._reserve(connection, message)
        elif isinstance(message, m.Trim):
            for member in self._ranks(message.engine):
                self.ledger.trim(member, message.lease)
                self._touched.add(member.device)
            connection.send(m.Done())
        elif isinstance(message, m.List):
            self._list(connection)
        elif isinstance(message, m.Watch):
            old = self._watchers.pop(connection, None)
            if old is not None:
                old.stop()
            self._watchers[connection] = Watcher(message.interval, lambda: self._list(connection))
            self._list(connection)
        else:
            self._engine(connection, message, asked)

    def _engine(self, connection: Connection, message: m.Ask | m.Release | m.Report, asked: dict[Member, int]) -> None:
        member = self._members.get(connection)
        if member is None:
            # Its Hello was refused or never came; answering keeps a client that wrote ahead from waiting.
            connection.send(m.Error(code="no_hello", message="say hello first"))
            return
        now = self._clock()
        if isinstance(message, m.Ask):
            self.ledger.ask(member, message.need, message.want, now, least=message.least)
            asked[member] = message.seq
        elif isinstance(message, m.Release):
            try:
                self.ledger.release(member, message.size)
            except LedgerError as error:
                # Its books and ours differ, so its lease can no longer be trusted: it starts over.
                connection.refuse(error.code, f"{error}; connect again and say what is held")
                return
        else:
            self._silent.pop(member, None)
            self.ledger.report(
                member,
                used=message.used,
                cached=message.cached,
                backed=message.backed,
                waiting=message.waiting,
                now=now,
            )
        self._touched.add(member.device)

    def _hello(self, connection: Connection, hello: m.Hello) -> None:
        if connection in self._members:
            connection.refuse("hello_twice", "this connection has said hello before; open one for each rank")
            return
        for old, member in list(self._members.items()):
            if member.key == (hello.engine, hello.rank) and old.pid == connection.pid and old is not connection:
                # The same process has connected anew, and the end of its old connection is still on its way here.
                old.close()
                self._gone(old)
        device = self._device(hello.device, hello.device_size)
        alone = not device.members
        terms = Terms(hello.floor, hello.ceiling, hello.priority, hello.unit)
        member = self.ledger.join(
            device, hello.engine, hello.rank, terms, held=hello.held, returning=hello.returning, now=self._clock()
        )
        self._members[connection] = member
        self._owners[member] = connection
        self._touched.add(device)
        if self._follower is not None:
            if alone or hello.held:
                # Nobody has looked at it for a while, or ever; or the last reading may have taken what this one holds
                # for someone else's: grant nothing before the next reading.
                self._unmeasured.add(device)
            if hello.held:
                self._silent[member] = self._clock() + SETTLE
            self._follower.follow()
        connection.send(
            m.Welcome(lease=member.lease, floor=member.terms.floor, ceiling=hello.ceiling, priority=hello.priority)
        )
        log.info("%s rank %d joins %s with %s", hello.engine, hello.rank, hello.device, mib(hello.held))

    def _device(self, key: str, size: int) -> Device:
        # Parts are parts of what the device has, which is known from here on.
        limit = self._limits.get(key)
        return self.ledger.add_device(
            key, size, limit=None if limit is None else limit.of(size), headroom=self._headroom.of(size)
        )

    def _reserve(self, connection: Connection, message: m.Reserve) -> None:
        if message.device_size is not None:
            device = self._device(message.device, message.device_size)
        elif message.device in self.ledger.devices:
            device = self.ledger.devices[message.device]
        else:
            raise LedgerError(f"no engine has named a device {message.device} yet; say its size too", "no_device")
        if self._reserving.reserve(connection, device, message):
            self._unmeasured.add(device)
        self._touched.add(device)

    def _gone(self, connection: Connection) -> None:
        self._connections.discard(connection)
        watcher = self._watchers.pop(connection, None)
        if watcher is not None:
            watcher.stop()
        self._touched |= set(self._reserving.gone(connection))
        member = self._members.pop(connection, None)
        if member is None:
            return
        del self._owners[member]
        log.info("%s rank %d is gone; %s are free", member.engine, member.rank, mib(member.lease))
        self.ledger.leave(member)
        self._most.pop(member, None)
        self._silent.pop(member, None)
        self._touched.add(member.device)

    def _set_terms(self, connection: Connection, message: m.SetTerms) -> None:
        ranks = self._ranks(message.engine)
        changed: list[tuple[Member, Terms, int]] = []
        try:
            for member in ranks:
                old = member.terms
                ceiling = None if message.unlimited else message.ceiling if message.ceiling is not None else old.ceiling
                terms = Terms(
                    old.floor if message.floor is None else message.floor,
                    ceiling,
                    message.priority or old.priority,
                    old.unit,
                )
                promised = member.promised
                self.ledger.set_terms(member, terms, promised=promised if message.floor is None else None)
                changed.append((member, old, promised))
        except LedgerError:
            # All ranks or none: an engine is as large as its smallest rank.
            for member, old, promised in changed:
                self.ledger.set_terms(member, old, promised=promised)
            raise
        for member in ranks:
            t = member.terms
            self._owners[member].send(m.Terms(floor=member.promised, ceiling=t.ceiling, priority=t.priority))
            self._touched.add(member.device)
        connection.send(m.Done())

    def _set_budget(self, connection: Connection, message: m.SetBudget) -> None:
        device = self.ledger.devices.get(message.device)
        if device is None:
            known = ", ".join(self.ledger.devices) or "none so far"
            raise LedgerError(f"no engine has named a device {message.device}; known: {known}", "no_device")
        limit = None if message.unlimited else message.limit if message.limit is not None else device.limit
        headroom = device.headroom if message.headroom is None else message.headroom
        self.ledger.set_device(device, limit=limit, headroom=headroom)
        self._touched.add(device)
        connection.send(m.Done())

    def _ranks(self, engine: str) -> list[Member]:
        ranks = [member for member in self._owners if member.engine == engine]
        if not ranks:
            known = ", ".join(sorted({member.engine for member in self._owners})) or "none"
            raise LedgerError(f"no engine {engine} is connected; connected: {known}", "no_engine")
        return ranks

    def _decide(self, asked: Mapping[Member, int]) -> None:
        """Decide for every device that something happened on, and tell its members."""
        now = self._clock()
        touched, self._touched = self._touched, set()
        granted: dict[Member, int] = {}
        for device in touched:
            if now < self._settled_at:
                self._wake(device, self._settled_at - now)
                continue
            if device in self._unmeasured:
                continue
            news = decide(self.ledger, device, now)
            granted.update(news.grants)
            for member, recall in news.recalls.items():
                self._owners[member].send(m.Recall(lease=recall.lease, reason=recall.reason))
            self._wake_at_change(device, now)
        told = granted.keys() | asked.keys()
        for member in told:
            self._tell(member, granted.get(member, 0), asked.get(member, 0))
        for device in touched:
            for member in device.members.values():
                # Who waits has to know if what it waits for has become impossible, or possible.
                if member.need > member.lease and member not in told and self._most.get(member) != device.most(member):
                    self._tell(member, 0, 0)
        if touched:
            for watcher in self._watchers.values():
                watcher.changed()

    def _tell(self, member: Member, size: int, seq: int) -> None:
        owner = self._owners.get(member)
        if owner is not None:
            most = self._most[member] = member.device.most(member)
            owner.send(m.Grant(size=size, missing=max(0, member.need - member.lease), seq=seq, most=most))

    def _wake_at_change(self, device: Device, now: float) -> None:
        """A need that fell counts a moment later; if someone is waiting for those bytes, decide again then."""
        if all(member.content() for member in device.members.values()):
            return
        times = [t for member in device.members.values() if (t := member.held_until(now)) is not None]
        if times:
            self._wake(device, min(times) - now)

    def _wake(self, device: Device, delay: float) -> None:
        timer = self._timers.pop(device, None)
        if timer is not None:
            timer.cancel()

        # A little late rather than early, or it would find nothing changed.
        self._timers[device] = asyncio.get_running_loop().call_later(
            max(0.0, delay) + 0.001, self._events.put_nowait, Due(device)
        )

    def _observe(self, readings: Mapping[str, Reading]) -> None:
        """Keep the budgets to what others leave."""
        now = self._clock()
        self._silent = {member: until for member, until in self._silent.items() if until > now}
        # What a member that came back has backed is known once it has reported; it does so at once, or never.
        unclear = {member.device for member in self._silent}
        for device in self.ledger.devices.values():
            if not device.watched or device in unclear:
                continue
            reading = readings.get(device.key)
            changed = reading is not None and self.ledger.observe(device, reading.total, reading.free)
            if self.ledger.settle(device) or changed:
                self._touched.add(device)
        # A device that nobody can measure is taken as it was described.
        self._touched |= self._unmeasured - unclear
        self._unmeasured &= unclear
        self._reserving.measured(self._unmeasured)
        unwatched = [device for device in self.ledger.devices.values() if not device.watched]
        for device in unwatched:
            device.rest()
        if self._follower is not None and len(unwatched) == len(self.ledger.devices):
            self._follower.empty()

    def _list(self, connection: Connection) -> None:
        for page in listing(self.ledger, lambda member: self._owners[member].pid):
            connection.send(page)
