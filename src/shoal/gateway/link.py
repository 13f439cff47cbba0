"""The relay's end of the controller's relay socket: tables come in, reports go out (see `shoal.messages`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from shoal.gateway.routes import Routes
from shoal.messages import MAX_LINE, PROTOCOL, RelayReport, RoutingTable

log = logging.getLogger(__name__)

REPORT_INTERVAL = 0.1
"""Seconds between two reports of changed numbers; a table is acknowledged at once."""
FIRST_WAIT, LONGEST_WAIT = 0.02, 0.2


def load_table(path: Path) -> RoutingTable | None:
    """The table that `save_table` wrote, or None; a file that is broken is logged and ignored."""
    try:
        return _check(msgspec.json.decode(path.read_bytes(), type=RoutingTable))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: the saved routing table cannot be read and is ignored: %s", path, error)
        return None


def save_table(path: Path, table: RoutingTable) -> None:
    """Write `table` so that a reader sees the old one or the new one, whole. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(table))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check(table: RoutingTable) -> RoutingTable:
    if table.protocol != PROTOCOL:
        raise ValueError(f"it speaks protocol {table.protocol}, this relay speaks {PROTOCOL}")
    return table


class Link:
    """Keeps `routes` up to date and the controller informed, for as long as `run` runs."""

    def __init__(
        self, routes: Routes, socket: Path, table_file: Path, on_table: Callable[[], None] = lambda: None
    ) -> None:
        """`on_table` is called whenever `routes` took a new table."""
        self._routes = routes
        self._on_table = on_table
        self._socket = socket
        self._file = table_file
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._changed = asyncio.Event()
        self._decoder = msgspec.json.Decoder(RoutingTable)
        self._saving_fails = False
        self.connected = False

    def changed(self) -> None:
        """The numbers of `routes` are other ones now; cheap, to be called at every change."""
        self._changed.set()

    def restore(self) -> None:
        """Take the table of the file, if there is one."""
        table = load_table(self._file)
        if table is not None and self._routes.replace(table):
            self._on_table()

    async def run(self) -> None:
        """Connect, and connect again whenever the controller goes away, until cancelled."""
        wait = FIRST_WAIT
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._socket, limit=MAX_LINE)
            except OSError:
                pass
            else:
                if await self._converse(reader, writer):
                    wait = FIRST_WAIT
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Talk until the connection ends; says whether a table came over it."""
        heard = False
        reporter = asyncio.create_task(self._report_changes(writer))
        self.connected = True
        try:
            while line := await reader.readline():
                table = _check(self._decoder.decode(line))
                heard = True
                taken = self._routes.replace(table)
                await self._report(writer)
                if taken:
                    self._on_table()
                    await self._save(table)
        except ValueError as error:  # a line that is too long, no JSON, or of another protocol
            log.warning("The controller sent something that is no routing table; connecting again: %s", error)
        except OSError:
            pass
        finally:
            self.connected = False
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return heard

    async def _report_changes(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the reader sees the end of the connection too
            while True:
                await self._changed.wait()
                await self._report(writer)
                await asyncio.sleep(REPORT_INTERVAL)

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        self._changed.clear()
        table = self._routes.table
        report = RelayReport(
            relay=self._name,
            epoch=table.epoch,
            version=table.version,
            outstanding=self._routes.outstanding,
            counts=self._routes.counts,
        )
        writer.write(msgspec.json.encode(report) + b"\n")
        await writer.drain()

    async def _save(self, table: RoutingTable) -> None:
        try:
            await asyncio.to_thread(save_table, self._file, table)
        except OSError as error:
            if not self._saving_fails:
                log.warning("%s: the routing table cannot be saved: %s", self._file, error)
            self._saving_fails = True
        else:
            self._saving_fails = False
