"""The controller's side of the socket to the relays: the routing table goes out, reports come in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from shoal.fleet import facts
from shoal.messages import MAX_LINE, PROTOCOL, RelayReport, RoutingTable

_log = logging.getLogger(__name__)


class Relays:
    """Serves relays at `path`. Facts go to `tell`."""

    def __init__(self, path: Path, tell: Callable[[facts.Fact], None]) -> None:
        self._path = path
        self._tell = tell
        self._table: bytes | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None

    @property
    def connected(self) -> int:
        """How many relays are connected."""
        return len(self._writers)

    async def start(self) -> None:
        """Listen, in place of a controller that is gone."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_LINE)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()
        self._path.unlink(missing_ok=True)

    def route(self, table: RoutingTable) -> None:
        """Send the table to every relay, now and whenever one connects."""
        self._table = msgspec.json.encode(table) + b"\n"
        for writer in self._writers:
            if writer.transport.get_write_buffer_size() > MAX_LINE:
                writer.transport.abort()  # it does not read; once it does it connects anew and gets the newest
            else:
                writer.write(self._table)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = next(self._numbers)
        self._writers.add(writer)
        decoder = msgspec.json.Decoder(RelayReport)
        try:
            if self._table is not None:
                writer.write(self._table)
            while line := await reader.readline():
                report = decoder.decode(line)
                if report.protocol != PROTOCOL:
                    _log.warning("a relay speaks version %d of the protocol, not %d", report.protocol, PROTOCOL)
                    return
                self._tell(facts.RelayReported(number, report))
        except (ConnectionError, ValueError, msgspec.MsgspecError) as error:
            _log.warning("a relay's connection was closed: %s", error)
        finally:
            self._writers.discard(writer)
            self._tell(facts.RelayGone(number))
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
