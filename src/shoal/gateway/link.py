"""The relay's end of the controller's relay socket: tables and questions come in, reports, wishes, answers and usage go
out (see `shoal.messages`)."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shoal.errors import NotFoundError
from shoal.gateway.outbox import Outbox
from shoal.gateway.routes import Routes
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
    UsageStored,
    Wanted,
)

log = logging.getLogger(__name__)

REPORT_INTERVAL = 0.1
"""Seconds between two reports of changed numbers; a table is acknowledged at once."""
REPORT_RATE = 2 * 2**20
"""Bytes of reports a second; reports of very many models are sent more rarely."""
USAGE_INTERVAL = 1.0
"""Seconds between two reports of usage."""
USAGE_RETRY = 5.0
"""Seconds after which usage is sent again that the controller has not confirmed."""
REQUESTS_LISTED = 10_000
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
        self,
        routes: Routes,
        socket: Path,
        table_file: Path,
        on_table: Callable[[], None] = lambda: None,
        *,
        report: Callable[[], RelayReport] | None = None,
        requests: Callable[[], Sequence[RequestView]] = tuple,
        cancel: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`on_table` is called whenever `routes` took a new table.

        `report` gives the numbers of now; name, epoch and version are filled in here. Default: those of `routes`.
        `requests` gives those that wait or run, in any order; `cancel` ends one by its id, False if there is none.
        """
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.connected = False
        self.wanted: set[str] = set()
        """Models that requests are held for. One leaves it when it serves, is gone, or will not come."""
        self._routes = routes
        self._on_table = on_table
        self._report_of = report or self._plain_report
        self._requests = requests
        self._cancel = cancel
        self._socket = socket
        self._file = table_file
        self._changed = asyncio.Event()
        self._decoder: msgspec.json.Decoder[ToRelay] = msgspec.json.Decoder(ToRelay)
        self._saving_fails = False
        self._writer: asyncio.StreamWriter | None = None  # of a connection over which a table has come
        self._asked: set[str] = set()  # since that table
        self._outbox = Outbox(self.name)
        self._usage_waits = asyncio.Event()
        self._usage_stored = asyncio.Event()  # the report on its way
        self._all_stored = asyncio.Event()
        self._all_stored.set()
        self._hurry = asyncio.Event()
        self._losing = False
        self._met = False

    def changed(self) -> None:
        """The numbers of the report are other ones now; cheap, to be called at every change."""
        self._changed.set()

    def want(self, model: str) -> None:
        """Requests are held for `model` (a name of the table): have it made ready. Cheap, to be called for each of
        them; the controller is asked once for every table that has no target for it, and after a lost connection."""
        self.wanted.add(model)
        if self._writer is not None and model not in self._asked:
            self._ask_for(self._writer, model)

    def unwant(self, model: str) -> None:
        """No request is held for `model` any more."""
        self.wanted.discard(model)

    def used(self, kind: tuple[str, str, str], prompt: int, completion: int, when: float) -> None:
        """Have the controller store what a request used: tokens of the prompt and of the answer, at the Unix time
        `when`, by the id of the key ("" without one), model and day (`YYYY-MM-DD`, UTC). It is sent until that is
        confirmed."""
        if not self._outbox.add(kind, prompt, completion, when):
            return  # what waits already is known of
        self._all_stored.clear()
        self._usage_waits.set()
        if self._outbox.lost and not self._losing:
            self._losing = True
            log.error("the controller stores no usage, and there is no room left to keep it: some is lost")

    def restore(self) -> None:
        """Take the table of the file, if there is one."""
        table = load_table(self._file)
        if table is not None and self._routes.replace(table):
            self._on_table()

    async def flush(self, patience: float) -> bool:
        """Before an end: wait, at most `patience` seconds, until all usage is stored. Says whether it is.

        A controller that is away may be back in time; one that never was there is not waited for.
        """
        self._hurry.set()
        if self._met:
            await _within(patience, self._all_stored)
        return self._outbox.empty

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
        tasks = [self._beside(self._report_changes, writer)]
        self.connected = True
        try:
            while line := await reader.readline():
                message = self._decoder.decode(line)
                if isinstance(message, RoutingTable):
                    await self._take(_check(message), writer)
                    self._met = True
                    if len(tasks) == 1:  # they understand each other
                        tasks.append(self._beside(self._send_usage, writer))
                else:
                    await self._answer(message, writer)
        except ValueError as error:  # a line that is too long, no JSON, of another protocol, or of a type unknown here
            log.warning("The controller sent something that this relay cannot read; connecting again: %s", error)
        except OSError:
            pass
        except Exception:  # the relay must not stay deaf whatever a callback does
            log.exception("while taking in what the controller sent; connecting again")
        finally:
            self.connected = False
            self._writer = None
            writer.close()  # before anything is waited for: a cancellation may come meanwhile
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return len(tasks) > 1

    def _beside(
        self, work: Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]], writer: asyncio.StreamWriter
    ) -> asyncio.Task[None]:
        """Run `work` beside the reading; where it fails, the connection ends."""

        async def run() -> None:
            try:
                await work(writer)
            except OSError:
                pass  # the reader sees the end of the connection too
            except Exception:
                log.exception("while telling the controller; connecting again")
                writer.close()

        return asyncio.create_task(run())

    # -- what comes in ------------------------------------------------------------------------------------------------

    async def _take(self, table: RoutingTable, writer: asyncio.StreamWriter) -> None:
        taken = self._routes.replace(table)
        anew = taken or self._writer is None
        if anew:
            self._asked.clear()
        if taken:
            self._on_table()  # at once: no request may meet a table that is half in force
        await self._report(writer)
        if anew:
            self._writer = writer
            for model in sorted(self.wanted):
                if not self._may_come(model):
                    self.wanted.discard(model)
                elif model not in self._asked:
                    self._ask_for(writer, model)
        if taken:
            await self._save(table)

    async def _answer(self, message: ListRequests | CancelRequest | UsageStored, writer: asyncio.StreamWriter) -> None:
        match message:
            case ListRequests():
                oldest = heapq.nlargest(REQUESTS_LISTED, self._requests(), key=lambda request: request.age)
                _write(writer, RequestList(message.ask, tuple(oldest)))
            case CancelRequest():
                _write(writer, Cancelled(message.ask, self._cancel(message.id)))
            case UsageStored():
                if self._outbox.stored(message.seq):
                    self._usage_stored.set()
                    if self._outbox.empty:
                        self._all_stored.set()
        await writer.drain()

    def _may_come(self, model: str) -> bool:
        try:
            route = self._routes.route(model)
        except NotFoundError:
            return False
        return route.comes and not route.targets

    # -- what goes out ------------------------------------------------------------------------------------------------

    def _ask_for(self, writer: asyncio.StreamWriter, model: str) -> None:
        self._asked.add(model)
        _write(writer, Wanted(model))

    async def _report_changes(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._changed.wait()
            size = await self._report(writer)
            await asyncio.sleep(max(REPORT_INTERVAL, size / REPORT_RATE))

    async def _report(self, writer: asyncio.StreamWriter) -> int:
        """Say how it is now; the bytes that took."""
        self._changed.clear()
        table = self._routes.table
        report = msgspec.structs.replace(
            self._report_of(), relay=self.name, epoch=table.epoch, version=table.version, protocol=PROTOCOL
        )
        size = _write(writer, report)
        await writer.drain()
        return size

    def _plain_report(self) -> RelayReport:
        return RelayReport("", "", 0, self._routes.outstanding, self._routes.counts)

    async def _send_usage(self, writer: asyncio.StreamWriter) -> None:
        """One report at a time, each until it is stored."""
        while True:
            if (report := self._outbox.report()) is None:
                self._usage_waits.clear()
                await self._usage_waits.wait()
                continue
            self._usage_stored.clear()
            _write(writer, report)
            await writer.drain()
            await _within(USAGE_RETRY, self._usage_stored)
            await _within(USAGE_INTERVAL, self._hurry)

    async def _save(self, table: RoutingTable) -> None:
        try:
            await asyncio.to_thread(save_table, self._file, table)
        except OSError as error:
            if not self._saving_fails:
                log.warning("%s: the routing table cannot be saved: %s", self._file, error)
            self._saving_fails = True
        else:
            self._saving_fails = False


def _write(writer: asyncio.StreamWriter, message: ToController) -> int:
    line = msgspec.json.encode(message) + b"\n"
    writer.write(line)
    return len(line)


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for `event`, but not longer than so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
