"""A controller that only takes what relays report: it sends each the routing table and remembers the last report."""

from __future__ import annotations

import socketserver
import threading
from pathlib import Path
from types import TracebackType

import msgspec

from shoal.messages import RelayReport, RoutingTable, ToController, UsageReport, UsageStored


class Controller:
    """Listens on a Unix socket from `__enter__` to `__exit__`, on threads of its own."""

    def __init__(self, path: Path, table: RoutingTable) -> None:
        self._table = msgspec.json.encode(table) + b"\n"
        self._reports: dict[str, RelayReport] = {}
        self._server = _Server(str(path), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Controller:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def carried(self) -> int:
        """Requests that relays say are running or waiting, as of their last reports. Raises LookupError before one."""
        if not self._reports:
            raise LookupError("no relay has reported yet")
        reports = list(self._reports.values())
        running = sum(sum(report.outstanding.values()) for report in reports)
        return running + sum(one.queued + one.held for report in reports for one in report.waiting)

    @property
    def ended(self) -> int:
        """Requests that ended, as relays report them."""
        return sum(count.requests for report in list(self._reports.values()) for count in report.counts)

    def converse(self, handler: _Handler) -> None:
        """One relay's connection, to its end."""
        handler.wfile.write(self._table)
        decoder = msgspec.json.Decoder(ToController)
        for line in handler.rfile:
            message = decoder.decode(line)
            if isinstance(message, RelayReport):
                self._reports[message.relay] = message
            elif isinstance(message, UsageReport):
                handler.wfile.write(msgspec.json.encode(UsageStored(message.seq)) + b"\n")


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        try:
            self.server.controller.converse(self)
        except (ConnectionError, ValueError):
            return  # the relay has ended, perhaps in the middle of a line


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: str, controller: Controller) -> None:
        self.controller = controller
        super().__init__(path, _Handler)
