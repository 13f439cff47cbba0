"""The controller's side of the socket to the relays: the routing table and questions go out, reports, wishes, answers
and usage come in (see `shoal.messages`)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.messages import (
    MAX_LINE,
    PROTOCOL,
    Cancelled,
    CancelRequest,
    ListRequests,
    RelayReport,
    RequestList,
    RequestView,
    RoutingTable,
    ToController,
    ToRelay,
    UsageReport,
    UsageStored,
    Wanted,
)

PATIENCE = 2.0
"""Seconds that relays have to answer a question."""
_log = logging.getLogger(__name__)
_Answer = RequestList | Cancelled | None  # None: the connection has ended


@dataclass(frozen=True, slots=True)
class Found:
    """Requests that wait or run, the oldest first, and the relays that did not say in time what they have."""

    requests: list[RequestView]
    silent: list[str]


@dataclass(eq=False, slots=True)
class _Peer:
    """One connected relay, and what it has not answered yet."""

    number: int
    writer: asyncio.StreamWriter
    name: str
    asked: dict[int, asyncio.Future[_Answer]] = field(default_factory=dict)
    storing: asyncio.Task[None] | None = None

    def send(self, line: bytes) -> None:
        """Write without waiting; one that does not read is cut off: once it does, it connects anew."""
        if self.writer.transport.get_write_buffer_size() > MAX_LINE:
            self.writer.transport.abort()
        else:
            self.writer.write(line)


class Relays:
    """Serves relays at `path`. Facts go to `tell`, usage to `usage`."""

    def __init__(
        self,
        path: Path,
        tell: Callable[[facts.Fact], None],
        usage: Callable[[UsageReport], Awaitable[None]] | None = None,
        *,
        patience: float = PATIENCE,
    ) -> None:
        """`usage` stores a report: once it has returned, the relay forgets it; if it raises, the relay sends it again
        later, as it does where there is no `usage`."""
        self._path = path
        self._tell = tell
        self._usage = usage
        self._patience = patience
        self._table: bytes | None = None
        self._peers: set[_Peer] = set()
        self._numbers = itertools.count(1)
        self._asks = itertools.count(1)
        self._server: asyncio.Server | None = None

    @property
    def connected(self) -> int:
        """How many relays are connected."""
        return len(self._peers)

    async def start(self) -> None:
        """Listen, in place of a controller that is gone."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_LINE)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Close the socket and every connection. Usage that is being stored has a moment for it."""
        if self._server is not None:
            self._server.close()
        if storing := [peer.storing for peer in self._peers if peer.storing is not None]:
            _, late = await asyncio.wait(storing, timeout=self._patience)
            for task in late:
                task.cancel()
        for peer in list(self._peers):
            peer.writer.close()
        self._path.unlink(missing_ok=True)

    def route(self, table: RoutingTable) -> None:
        """Send the table to every relay, now and whenever one connects."""
        self._table = _line(table)
        for peer in self._peers:
            peer.send(self._table)

    async def requests(self) -> Found:
        """Ask every relay for its requests; one that does not answer in time is named."""
        found: list[RequestView] = []
        silent = []
        for peer, answer in await self._ask(ListRequests):
            if isinstance(answer, RequestList):
                found += answer.requests
            else:
                silent.append(peer.name)
        return Found(sorted(found, key=lambda request: -request.age), silent)

    async def cancel(self, id: str) -> bool:
        """End a request; False if no relay has it. Raises ShoalError (`relay_silent`) if one did not say in time."""
        answers = await self._ask(lambda ask: CancelRequest(ask, id), _has_found)
        if any(_has_found(answer) for _, answer in answers):
            return True
        silent = [peer.name for peer, answer in answers if not isinstance(answer, Cancelled)]
        if silent:
            raise ShoalError(
                f"relay {', '.join(silent)} did not say in time whether it has the request {id}; look again with "
                "`shoal requests`",
                status=504,
                code="relay_silent",
            )
        return False

    async def _ask(
        self, make: Callable[[int], ToRelay], enough: Callable[[_Answer], bool] = lambda _: False
    ) -> list[tuple[_Peer, _Answer]]:
        """Every relay's answer, None for one that gave none in time; earlier, once one of them is `enough`."""
        asked = []
        for peer in self._peers:
            ask = next(self._asks)
            peer.asked[ask] = asyncio.get_running_loop().create_future()
            peer.send(_line(make(ask)))
            asked.append((peer, ask, peer.asked[ask]))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience):
                    for future in asyncio.as_completed([future for _, _, future in asked]):
                        if enough(await future):
                            break
            return [(peer, future.result() if future.done() else None) for peer, _, future in asked]
        finally:
            for peer, ask, _ in asked:
                peer.asked.pop(ask, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        peer = _Peer(number, writer, f"number {number}")
        self._peers.add(peer)
        decoder: msgspec.json.Decoder[ToController] = msgspec.json.Decoder(ToController)
        try:
            if self._table is not None:
                peer.send(self._table)
            while line := await reader.readline():
                message = decoder.decode(line)
                if isinstance(message, RelayReport) and message.protocol != PROTOCOL:
                    _log.warning("a relay speaks version %d of the protocol, not %d", message.protocol, PROTOCOL)
                    return
                self._take(peer, message)
        except (ConnectionError, ValueError, msgspec.MsgspecError) as error:
            _log.warning("a relay's connection was closed: %s", error)
        finally:
            self._peers.discard(peer)
            for future in peer.asked.values():
                _resolve(future, None)
            self._tell(facts.RelayGone(number))
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _take(self, peer: _Peer, message: ToController) -> None:
        match message:
            case RelayReport():
                peer.name = message.relay
                self._tell(facts.RelayReported(peer.number, message))
            case Wanted():
                self._tell(facts.RelayWants(peer.number, message.model))
            case RequestList() | Cancelled():
                if (future := peer.asked.get(message.ask)) is not None:
                    _resolve(future, message)
            case UsageReport():
                # One that is sent again while it is being stored is answered when that is done.
                if peer.storing is None or peer.storing.done():
                    peer.storing = asyncio.create_task(self._store(peer, message))

    async def _store(self, peer: _Peer, report: UsageReport) -> None:
        if self._usage is None:
            return
        try:
            await self._usage(report)
        except Exception as error:  # whatever it is, the relay keeps the report
            _log.warning("usage could not be stored, and is sent again later: %s", error)
        else:
            peer.send(_line(UsageStored(report.seq)))


def _has_found(answer: _Answer) -> bool:
    return isinstance(answer, Cancelled) and answer.found


def _resolve(future: asyncio.Future[_Answer], answer: _Answer) -> None:
    if not future.done():
        future.set_result(answer)


def _line(message: ToRelay) -> bytes:
    return msgspec.json.encode(message) + b"\n"
