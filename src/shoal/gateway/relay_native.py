"""The relay: `asyncio.Protocol` on both sides, llhttp for heads, and bytes of bodies passed on as they came."""

from __future__ import annotations

import asyncio
import logging
import socket

from shoal.errors import ShoalError
from shoal.gateway import heads
from shoal.gateway.administration import Administration, Told
from shoal.gateway.http1 import RequestHead
from shoal.gateway.inference import Inference
from shoal.gateway.link import Link
from shoal.gateway.local import model_list, model_view
from shoal.gateway.passage import Passage
from shoal.gateway.relay import RelayConfig
from shoal.gateway.routes import Routes
from shoal.gateway.server import ClientConnection, Exchange
from shoal.gateway.upstream import Pool, Pools
from shoal.net import UnixAddress

BACKLOG = 2048
SWEEP = 0.1
"""Seconds between two looks at what has lasted too long."""
ENDING = 5.0
"""Seconds for writing the ends of responses that were broken off."""
_log = logging.getLogger(__name__)


class NativeRelay:
    """`shoal.gateway.relay.Relay` by hand."""

    def __init__(self, config: RelayConfig) -> None:
        self.config = config
        self.header_timeout = config.header_timeout
        self.body_timeout = config.body_timeout
        self.idle_timeout = config.idle_timeout
        self.stopping = False
        self.connections: set[ClientConnection] = set()
        self.running: set[Passage] = set()

    async def start(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self.routes = Routes(changed=self._on_change)
        self._link = Link(self.routes, self.config.relay_socket, self.config.table, on_table=self._on_table)
        self.pools = Pools(self.config.connect_timeout)
        self.controller = Pool(str(UnixAddress(self.config.controller)), self.config.connect_timeout)
        self._informed = asyncio.Event()
        self._link.restore()
        self._listener = await loop.create_server(lambda: ClientConnection(self, loop), sock=sock, backlog=BACKLOG)
        self._tasks = [asyncio.create_task(self._link.run()), asyncio.create_task(self._sweep())]

    async def informed(self) -> None:
        await self._informed.wait()

    async def stop(self, grace: float) -> None:
        self.stopping = True
        self._listener.close()
        for connection in list(self.connections):
            if connection.idle:
                connection.close()
        await self._until_none_runs(grace)
        stopping = ShoalError("The relay is stopping; send the request again.", status=503, code="relay_stopping")
        for passage in list(self.running):
            passage.break_off(stopping)
        await self._until_no_connection(ENDING)
        for connection in list(self.connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.pools.close()
        self.controller.close()

    # -- for connections ----------------------------------------------------------------------------------------------

    def open(self, connection: ClientConnection, head: RequestHead) -> Exchange:
        """Begin an exchange. Raises ShoalError to refuse it."""
        target = heads.origin_form(head.target.decode("latin-1"))
        path = heads.path_of(target)
        if head.upgrade and b"websocket" in head.fields.get(b"upgrade", b"").lower():
            raise ShoalError(
                "WebSockets are not relayed; use the HTTP endpoints.", status=501, code="websocket_not_supported"
            )
        if path == "/v1/models" or heads.model_in_path(path) is not None:
            return self._models(connection, head, path)
        exchange: Passage
        if heads.is_inference(path):
            exchange = Inference(self, connection, head, target)
        else:
            exchange = Administration(self, connection, head, target, path)
        self.running.add(exchange)
        return exchange

    def fault(self, error: BaseException) -> None:
        """Log a fault of the relay's own."""
        _log.error("A request failed by a fault of the relay", exc_info=error)

    def full(self) -> bool:
        """Whether there are as many connections as are allowed."""
        return len(self.connections) >= self.config.max_connections

    def _models(self, connection: ClientConnection, head: RequestHead, path: str) -> Exchange:
        if head.method not in (b"GET", b"HEAD"):
            raise ShoalError(
                f"{head.method.decode('latin-1')} is not possible here; models are changed under /api/v1/models.",
                status=405,
                code="method_not_allowed",
                headers={"Allow": "GET, HEAD"},
            )
        model = heads.model_in_path(path)
        body = model_list(self.routes) if model is None else model_view(self.routes.route(model))
        return Told(connection, head, 200, body)

    # -- the outside --------------------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        self._link.changed()

    def _on_table(self) -> None:
        self._informed.set()
        self.pools.keep_only({target.address for route in self.routes.table.routes for target in route.targets})

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = self.now()
            for connection in [c for c in self.connections if 0 < c.deadline <= now]:
                connection.on_deadline()
            self.pools.sweep(now)

    async def _until_none_runs(self, seconds: float) -> None:
        deadline = self.now() + seconds
        while self.running and self.now() < deadline:
            await asyncio.sleep(0.02)

    async def _until_no_connection(self, seconds: float) -> None:
        deadline = self.now() + seconds
        while self.connections and self.now() < deadline:
            await asyncio.sleep(0.02)
