"""The relay on aiohttp: simple enough to be trusted, and the oracle for faster ones behind the same seam.

What aiohttp cannot pass on as it came: a chunked request body leaves with a Content-Length, chunk borders and
trailers of responses are lost, 1xx responses of engines are not passed on, whitespace around header values goes,
and requests whose headers hold bytes that are not UTF-8 are refused with 400 (responses keep theirs). A client that
shuts down its sending side while it waits for an answer counts as gone.

It guards as the other one does, by keys and by who may manage models. It has no queue and holds nothing, knows no
virtual models, counts no usage, and serves no web page of another origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from shoal.errors import ShoalError, told_in_stream
from shoal.gateway import heads
from shoal.gateway.aiohttp_client import BrokenResponseError, NotConnectedError, Upstreams
from shoal.gateway.aiohttp_server import ConnectionServer, RawResponse, error_response, json_response
from shoal.gateway.answers import too_large
from shoal.gateway.inspect import MODEL_HEADER, read_request
from shoal.gateway.keyring import Keyring
from shoal.gateway.link import Link
from shoal.gateway.local import controller_away, health_without_controller, model_list, model_named
from shoal.gateway.relay import ERRANDS, RelayConfig
from shoal.gateway.routes import UNKNOWN, Routes
from shoal.gateway.sharing import joined
from shoal.messages import Key, Outcome, Target
from shoal.net import UnixAddress

log = logging.getLogger(__name__)

HEALTH_TIMEOUT = 2.0
"""Seconds after which a controller that does not answer a health probe counts as away."""
BACKLOG = 2048
_KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})


@dataclass
class _Exchange:
    """One inference request: what it names, and how it ended."""

    model: str = UNKNOWN
    outcome: Outcome = "cancelled"
    key: Key | None = None
    charged: float | None = None
    """The cost with which the key's limits were told that it began."""


class AiohttpRelay:
    """`shoal.gateway.relay.Relay` on aiohttp's low-level server and its client."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        self._controller = str(UnixAddress(config.controller))
        self._stopping = False
        self._ending = False
        self._running: set[asyncio.Task[object]] = set()
        self._errands: set[asyncio.Task[object]] = set()  # of those that run, the ones to the controller

    async def start(self, sock: socket.socket) -> None:
        self.routes = Routes(changed=self._on_change)
        self._keyring = Keyring(joined(self._config))
        self._link = Link(self.routes, self._config.relay_socket, self._config.table, on_table=self._on_table)
        self._upstreams = Upstreams(self._config.connect_timeout, unpooled=self._controller)
        self._informed = asyncio.Event()
        self._link.restore()
        self._server = ConnectionServer(
            self._handle, header_timeout=self._config.header_timeout, idle_timeout=self._config.idle_timeout
        )
        self._listener = await asyncio.get_running_loop().create_server(self._server, sock=sock, backlog=BACKLOG)
        self._link_task = asyncio.create_task(self._link.run())

    async def stop(self, grace: float) -> None:
        self._stopping = True
        self._listener.close()
        self._server.close_idle()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        while (requests := self._running - self._errands) and (left := deadline - loop.time()) > 0:
            await asyncio.wait(requests, timeout=left)
        if self._errands:  # streams of events among them would never end
            await asyncio.wait(set(self._errands), timeout=min(grace, ERRANDS))
        self._ending = True
        for task in set(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=5)
        await self._server.shutdown(timeout=0.5)
        self._link_task.cancel()
        await asyncio.gather(self._link_task, return_exceptions=True)
        await self._upstreams.close()

    def _on_change(self) -> None:
        self._link.changed()

    async def informed(self) -> None:
        await self._informed.wait()

    def _on_table(self) -> None:
        self._informed.set()
        self._keyring.replace(self.routes.table.keys, self.routes.table.keys_required)
        targets = (target for route in self.routes.table.routes for target in route.targets)
        self._upstreams.keep_only({self._controller, *(target.address for target in targets)})

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; nothing that a client or an engine does makes it raise."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            response = await self._dispatch(request)
        except ShoalError as error:
            response = error_response(error, _path(request))
            if not request.content.is_eof():
                response.force_close()
        except asyncio.CancelledError:
            if not self._ending or request.transport is None or request.writer.output_size:
                raise
            task.uncancel()
            response = error_response(
                ShoalError("The relay is stopping; send the request again.", status=503, code="relay_stopping"),
                _path(request),
            )
        finally:
            self._running.discard(task)
            self._errands.discard(task)
        if self._stopping:
            response.force_close()
        return response

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        target = heads.origin_form(request.raw_path)
        path = heads.path_of(target)
        if "websocket" in request.headers.get("Upgrade", "").lower():
            raise ShoalError(
                "WebSockets are not relayed; use the HTTP endpoints.", status=501, code="websocket_not_supported"
            )
        if path == "/v1/models" or heads.model_in_path(path) is not None:
            return self._models(request, path)
        if heads.is_inference(path):
            return await self._infer(request, target)
        task = asyncio.current_task()
        assert task is not None
        self._errands.add(task)
        return await self._administer(request, target, path)

    def _models(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise ShoalError(
                f"{request.method} is not possible here; models are changed under /api/v1/models.",
                status=405,
                code="method_not_allowed",
                headers={"Allow": "GET, HEAD"},
            )
        model = heads.model_in_path(path)
        visible = self._keyring.may_see(self._identify(request))
        if model is None:
            return json_response(200, model_list(self.routes, visible))
        return json_response(200, model_named(self.routes, model, visible))

    def _identify(self, request: web.BaseRequest) -> Key | None:
        given = {name.lower(): value for name, value in request.raw_headers}
        return self._keyring.identify(given.get(b"authorization"), given.get(b"x-api-key"), time.time())

    async def _infer(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        exchange = _Exchange()
        try:
            exchange.key = self._identify(request)
            async with self._engine_response(request, target, exchange) as upstream:
                return await self._pass_back(request, upstream, exchange)
        except ShoalError as error:
            if exchange.outcome == "cancelled":
                refused = error.status in (401, 403, 429)
                exchange.outcome = "refused" if refused else "client_error" if error.status < 500 else "engine_error"
            raise
        finally:
            if exchange.key is not None and exchange.charged is not None:
                self._keyring.end(exchange.key, exchange.charged, None, time.monotonic())
            self.routes.count(exchange.model, exchange.outcome)

    @contextlib.asynccontextmanager
    async def _engine_response(
        self, request: web.BaseRequest, path_and_query: str, exchange: _Exchange
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response of the engine that the request goes to, which counts as its outstanding one until the end.

        An engine that cannot be connected to is passed over for another one, once: nothing else proves that the
        request has not run.
        """
        body: bytearray | None = await self._read_body(request, self._config.max_body)
        named = read_request(
            path_and_query,
            body or b"",
            content_type=request.headers.get("Content-Type", ""),
            content_encoding=request.headers.get("Content-Encoding", ""),
            model_header=request.headers.get(MODEL_HEADER),
        )
        exchange.model = named.model
        raw_headers = request.raw_headers
        if (key := exchange.key) is not None:
            raw_headers = tuple(header for header in raw_headers if header[0].lower() not in _KEY_HEADERS)
            self._keyring.allow(key, named.model)
            self._keyring.begin(key, named.cost, time.monotonic())
            exchange.charged = named.cost
        headers = heads.request_headers(raw_headers, None if body is None else len(body))
        passed_over: list[str] = []
        while True:
            engine = self._pick(exchange, passed_over)
            with self.routes.carrying(engine.instance), self._upstreams.using(engine.address):
                try:
                    upstream = await self._upstreams.send(engine.address, request.method, path_and_query, headers, body)
                except NotConnectedError as error:
                    log.warning("No connection to instance %s of %r: %s", engine.instance, exchange.model, error)
                    passed_over.append(engine.instance)
                    continue
                except BrokenResponseError as error:
                    log.warning("Instance %s of %r broke off: %s", engine.instance, exchange.model, error)
                    raise ShoalError(
                        f"The engine of {exchange.model!r} broke off before it answered; send the request again.",
                        status=502,
                        code="engine_died",
                    ) from None
                except ValueError as error:
                    raise ShoalError(f"The request cannot be passed on: {error}.", code="invalid_header") from None
                body = None  # a stream may run for minutes; its request need not stay in memory
                try:
                    yield upstream
                finally:
                    upstream.close()
                return

    def _pick(self, exchange: _Exchange, passed_over: list[str]) -> Target:
        try:
            if len(passed_over) < 2:
                return self.routes.pick(exchange.model, without=passed_over)
        except ShoalError as error:
            if not passed_over:
                exchange.outcome = "unavailable" if error.status == 503 else "client_error"
                raise
        raise ShoalError(
            f"The engine of {exchange.model!r} does not take connections; send the request again in a moment.",
            status=502,
            code="engine_connection_failed",
        ) from None

    async def _administer(self, request: web.BaseRequest, target: str, path: str) -> web.StreamResponse:
        """Hand a request to the controller, as transparently as to an engine."""
        body: bytearray | None = await self._read_body(request, heads.body_limit(path, self._config.max_body))
        raw_headers = tuple(header for header in request.raw_headers if header[0].lower() != heads.PEER_HEADER)
        headers = heads.request_headers(raw_headers, None if body is None else len(body))
        headers.append(("X-Shoal-Peer", request.remote or "unknown"))
        health = health_without_controller(path, self.routes)
        sent = True
        with self._upstreams.using(self._controller):
            try:
                async with asyncio.timeout(None if health is None else HEALTH_TIMEOUT):
                    upstream = await self._upstreams.send(self._controller, request.method, target, headers, body)
            except (NotConnectedError, BrokenResponseError, TimeoutError) as error:
                sent = not isinstance(error, NotConnectedError)
            except ValueError as error:
                raise ShoalError(f"The request cannot be passed on: {error}.", code="invalid_header") from None
            else:
                body = None
                try:
                    return await self._pass_back(request, upstream, _Exchange())
                finally:
                    upstream.close()
        if health is not None:
            return json_response(*health)
        raise controller_away(sent=sent)

    async def _read_body(self, request: web.BaseRequest, limit: int) -> bytearray | None:
        """The whole body, `limit` bytes at most, or None if there is none. Raises ShoalError 400, 408, 413 or 417."""
        patience = self._config.body_timeout
        length = request.content_length
        if length is not None and length > limit:
            raise too_large(limit)
        if not request.can_read_body:
            return None
        expect = request.headers.get("Expect")
        if expect is not None and request.version >= (1, 1):
            if expect.strip().lower() != "100-continue":
                raise ShoalError("Only `Expect: 100-continue` is known.", status=417, code="expectation_failed")
            if request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        try:
            while True:
                async with asyncio.timeout(patience):
                    chunk = await request.content.readany()
                if not chunk:
                    return body
                body += chunk
                if len(body) > limit:
                    raise too_large(limit)
        except TimeoutError:
            raise ShoalError(
                f"The request body stood still for {patience:g} s; send it without pauses.",
                status=408,
                code="body_timeout",
            ) from None
        except RequestPayloadError as error:
            raise ShoalError(
                f"The request body is broken: {' '.join(str(error).split())[:200]}", code="invalid_body"
            ) from None

    async def _pass_back(
        self, request: web.BaseRequest, upstream: aiohttp.ClientResponse, exchange: _Exchange
    ) -> web.StreamResponse:
        """Stream a response to the client as it comes, and record how it ended."""
        headers = heads.end_to_end(upstream.raw_headers)
        # Engines allow every origin by default.
        headers = [header for header in headers if not header[0].lower().startswith(b"access-control-")]
        response = RawResponse(upstream.status, upstream.reason or "", headers)
        if self._stopping:
            response.force_close()
        tail = b""
        try:
            await response.prepare(request)
            while True:
                try:
                    chunk = await upstream.content.readany()
                except (aiohttp.ClientError, OSError) as error:
                    exchange.outcome = "engine_error"
                    log.warning("A response broke off (model %r): %s", exchange.model, error)
                    await _break_off(
                        response,
                        headers,
                        tail,
                        _path(request),
                        "The engine broke off while it answered.",
                        "engine_died",
                    )
                    return response
                if not chunk:
                    break
                tail = (tail + chunk[-4:])[-4:]
                await response.write(chunk)
            await response.write_eof()
        except ConnectionError:
            response.abort()  # the client has left
            return response
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._ending or request.transport is None or task is None or not response.prepared:
                raise
            task.uncancel()
            await _break_off(response, headers, tail, _path(request), "The relay is stopping.", "relay_stopping")
            return response
        exchange.outcome = _outcome(upstream.status)
        return response


def _outcome(status: int) -> Outcome:
    return "ok" if status < 400 else "client_error" if status < 500 else "engine_error"


def _path(request: web.BaseRequest) -> str:
    """The path of a request; none if its target makes no sense."""
    try:
        return heads.path_of(heads.origin_form(request.raw_path))
    except ShoalError:
        return ""


async def _break_off(
    response: RawResponse, headers: heads.RawHeaders, tail: bytes, path: str, message: str, code: str
) -> None:
    """End a response that its source did not finish: an error event where that is possible, and never a clean end."""
    kind = (heads.header(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    encoding = heads.header(headers, b"content-encoding") or b"identity"
    sized = heads.header(headers, b"content-length") is not None
    if kind != b"text/event-stream" or encoding.lower() != b"identity" or sized:
        response.abort()
        return
    between = b"" if not tail or tail.endswith((b"\n\n", b"\r\r", b"\r\n\r\n")) else b"\n\n"
    error = ShoalError(f"{message} Send the request again.", status=502, code=code)
    await response.end_with(between + told_in_stream(path, error))
