"""The client half of the aiohttp relay: one connection pool per engine address, and requests sent as they came."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import aiohttp
import yarl
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from shoal.net import UnixAddress, parse_address

KEEPALIVE = 3.0
"""Seconds that an idle connection is kept: less than uvicorn's 5, so that no request meets a closing one."""
_SLICE = 64 * 1024
_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
_LARGEST_FIELD = 256 * 1024


class NotConnectedError(Exception):
    """No connection could be made, so the request cannot have run."""


class BrokenResponseError(Exception):
    """The peer took the request, and did not answer it with a whole response head."""


class BufferedBody(aiohttp.Payload):
    """A request body in memory, written in slices with backpressure and without copying it whole."""

    def __init__(self, body: bytes | bytearray) -> None:
        super().__init__(body, headers={"Content-Length": str(len(body))})
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        view = memoryview(self._value)
        for start in range(0, len(view), _SLICE):
            await writer.write(view[start : start + _SLICE])


class Upstreams:
    """Connections to engines and to the controller, pooled by address.

    Those to `unpooled` serve one request each: a connection may close while it idles, and a request that meets that
    moment fails without need. Engines are asked too often to afford it.
    """

    def __init__(self, connect_timeout: float, unpooled: str = "") -> None:
        self._unpooled = unpooled
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._users: dict[str, int] = {}
        self._wanted: frozenset[str] = frozenset()
        self._closing: set[asyncio.Task[None]] = set()

    async def send(
        self, address: str, method: str, target: str, headers: list[tuple[str, str]], body: bytes | bytearray | None
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its response; the caller closes or releases it.

        `target` is path and query, sent byte for byte, `headers` likewise. Raises NotConnectedError,
        BrokenResponseError, or ValueError for a head that cannot be written.
        """
        parsed = parse_address(address)
        host, port = ("localhost", None) if isinstance(parsed, UnixAddress) else (parsed.host, parsed.port)
        # The whole target stands in as the path: yarl would drop a lone `?` and read a `#`.
        url = yarl.URL.build(scheme="http", host=host, port=port, path=target, encoded=True)

        async def exactly(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            request.headers = CIMultiDict(headers)
            try:
                return await handler(request)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise NotConnectedError(str(error)) from None
            except (aiohttp.ClientError, OSError) as error:
                # Caught in here, or aiohttp would send a GET or DELETE again, which may have run.
                raise BrokenResponseError(_reason(error)) from None

        response = await self._session(address).request(
            method,
            url,
            data=None if body is None else BufferedBody(body),
            # Tells aiohttp how the body is framed; the middleware puts the real headers in its place.
            headers=None if body is None else {"Content-Length": str(len(body))},
            allow_redirects=False,
            middlewares=(exactly,),
        )
        if response.status == 101:
            response.close()
            raise BrokenResponseError("it switched protocols, which nobody asked for")
        return response

    @contextmanager
    def using(self, address: str) -> Iterator[None]:
        """Keep the pool of `address` for as long as the block runs; to be held until a response has ended."""
        self._users[address] = self._users.get(address, 0) + 1
        try:
            yield
        finally:
            self._users[address] -= 1
            if not self._users[address]:
                del self._users[address]
                self._retire()

    def keep_only(self, addresses: Collection[str]) -> None:
        """Close the pools of every other address as soon as no request uses them."""
        self._wanted = frozenset(addresses)
        self._retire()

    def _retire(self) -> None:
        for address in [a for a in self._sessions if a not in self._wanted and a not in self._users]:
            task = asyncio.create_task(self._sessions.pop(address).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*self._closing, *(session.close() for session in self._sessions.values()))
        self._sessions.clear()

    def _session(self, address: str) -> aiohttp.ClientSession:
        session = self._sessions.get(address)
        if session is None:
            session = self._sessions[address] = aiohttp.ClientSession(
                connector=_connector(address, pooled=address != self._unpooled),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_AUTO_HEADERS,
                read_bufsize=_SLICE,
                max_line_size=_LARGEST_FIELD,
                max_field_size=_LARGEST_FIELD,
                max_headers=1000,
            )
        return session


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _connector(address: str, *, pooled: bool) -> aiohttp.BaseConnector:
    parsed = parse_address(address)
    keepalive = KEEPALIVE if pooled else None
    if isinstance(parsed, UnixAddress):
        return aiohttp.UnixConnector(str(parsed.path), limit=0, keepalive_timeout=keepalive, force_close=not pooled)
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive, force_close=not pooled)
