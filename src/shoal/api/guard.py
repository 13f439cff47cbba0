"""Who gets through to the admin side, and what it says that could not be saved.

A page on another origin must not act through the browser of somebody who runs Shoal, and a name that was made to point
at this machine (DNS rebinding) must not be a way in. Who asks is told by the relay; once there are users they sign in.
Plain ASGI: it touches every event of a stream.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.errors import ShoalError
from shoal.fleet.users import Peer, Way, peer_of, refusal
from shoal.gateway.heads import MAX_SESSION_BODY, SESSION_PATH
from shoal.introduction import SOCKET_HEADER
from shoal.settings import is_loopback
from shoal.sign_in import Admitted

if TYPE_CHECKING:
    from shoal.controller import Controller

PAGE_HEADER = b"x-shoal-page"
"""What the page sends with each change. A web page elsewhere cannot: the browser would ask first, and be refused."""
FORWARDING = frozenset(
    {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"forwarded", b"via"}
)
"""By each of these a proxy says that it asks for somebody else."""
READING = ("GET", "HEAD", "OPTIONS")
_TOO_LARGE = f"nobody sends more than {MAX_SESSION_BODY} bytes here before they have signed in"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as that is known; in the request's scope as `shoal.caller`. `secure`: they came by https;
    `may_look`: the admin side is open to them, which is not so of all who ask a probe."""

    peer: Peer
    admitted: Admitted | None
    secure: bool
    may_look: bool


class _Head:
    """The head of a request, as far as it matters here."""

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.reading = self.method in READING
        self._fields: list[tuple[bytes, bytes]] = list(scope["headers"])
        forwarded = any(name in FORWARDING for name, _ in self._fields)
        self.peer = peer_of(self.all(b"x-shoal-peer"), self.last(b"x-forwarded-for"), forwarded=forwarded)
        self.public = self.path in ("/", SESSION_PATH) or self.path.startswith("/static/")
        """For everybody who could sign in: the page's files, which hold nothing of this Shoal, and signing in."""
        self.probe = self.path.startswith("/health/")
        proxied = self.last(b"x-forwarded-proto").rpartition(",")[2].strip().lower()
        self.secure = self.peer.way is Way.LOCAL and proxied == "https"
        self.host = _host_of(self.last(b"host"))
        here = not self.host or is_loopback(self.host)
        self.way = Way.REMOTE if self.peer.way is Way.LOCAL and (forwarded or not here) else self.peer.way
        """A proxy on this machine lets others in; and so may a name that was made to point here, of whatever owner."""

    def all(self, name: bytes) -> Iterator[str]:
        """Each value of a field."""
        return (value.decode("latin-1") for key, value in self._fields if key == name)

    def last(self, name: bytes) -> str:
        """A field's last value; empty without one."""
        return next(reversed([*self.all(name)]), "")

    def cookies(self, name: str) -> Iterator[str]:
        """Each value of a cookie: those of longer paths first, which need not be ours."""
        for line in self.all(b"cookie"):
            for part in line.split(";"):
                key, _, value = part.partition("=")
                if key.strip() == name:
                    yield value.strip()

    def basic(self) -> tuple[str, str] | None:
        """Name and password of HTTP's Basic scheme (RFC 7617), if that is what was sent."""
        scheme, _, rest = self.last(b"authorization").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, colon, password = base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            name = colon = password = ""
        if not colon:
            raise ShoalError("the header Authorization holds no name and password in Base64", code="invalid_header")
        return name, password


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, controller: Controller) -> None:
        self._app = app
        self._controller = controller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = _Head(scope)
        try:
            self._refuse_pretenders(head)
            caller = await self._admit(head)
            if head.public:
                receive = _bounded(receive, head)
        except ShoalError as error:
            await self._refused(error, head)(scope, receive, send)
            return
        scope["shoal.caller"] = caller
        await self._answer(scope, receive, send, head, caller.admitted)

    def _refuse_pretenders(self, head: _Head) -> None:
        host, origin, settings = head.last(b"host"), head.last(b"origin"), self._controller.settings
        known = not head.host or is_loopback(head.host) or head.host in map(str.lower, settings.hosts)
        if is_loopback(settings.host) and not known:
            raise ShoalError(
                f"this Shoal answers on loopback only, not as {head.host}; if a proxy publishes it so, name it in the "
                "setting `hosts`",
                status=403,
                code="wrong_host",
            )
        if not head.reading and origin and origin.partition("://")[2] != host:
            raise ShoalError(f"{origin} may not change this Shoal", status=403, code="wrong_origin")

    async def _admit(self, head: _Head) -> Caller:
        """Who asks, and what they were found to be. Raises ShoalError if they do not get what they ask for."""
        if head.way is Way.OWN:
            return Caller(head.peer, None, head.secure, may_look=True)
        needed = self._controller.sign_in.needed
        admitted = await self._known(head) if needed else None
        asked = partial(
            refusal,
            head.way,
            None if admitted is None else admitted.user,
            needed=needed,
            insecure=self._controller.settings.insecure,
        )
        caller = Caller(head.peer, admitted, head.secure, may_look=asked(reading=True) is None)
        if head.probe:
            return caller
        error = asked(reading=head.method in ("GET", "HEAD"), public=head.public)
        if error is not None:
            raise error
        by_cookie = admitted is not None and admitted.session is not None
        if by_cookie and not head.reading and not head.last(PAGE_HEADER):
            raise ShoalError(
                f"a change in a browser's session has to carry the header {PAGE_HEADER.decode()}, which only Shoal's "
                "own page can send",
                status=403,
                code="page_header_missing",
            )
        return caller

    async def _known(self, head: _Head) -> Admitted | None:
        """Who has shown who they are. The session goes first: a proxy may ask for passwords of its own by Basic. Raises
        ShoalError if it is a password that shows nobody."""
        sign_in = self._controller.sign_in
        admitted = sign_in.find(head.cookies(sign_in.cookie))
        if admitted is not None or head.public or head.probe:
            return admitted
        given = head.basic()
        return None if given is None else Admitted(await sign_in.check_again(*given, head.peer.address))

    def _refused(self, error: ShoalError, head: _Head) -> JSONResponse:
        headers = dict(error.headers)
        if error.status == 401 and head.peer.way is Way.LOCAL and not head.peer.forwarded:
            headers[SOCKET_HEADER] = self._controller.introduction.header
        return JSONResponse(error.body(), error.status, headers=headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, head: _Head, admitted: Admitted | None) -> None:
        stream = None
        task = asyncio.current_task()  # not always that which sends
        assert task is not None

        async def send_on(message: Message) -> None:
            nonlocal stream
            if message["type"] == "http.response.start":
                if not head.reading:
                    self._warn(message)
                await send(message)
                if head.peer.way is not Way.OWN and _is_endless(message):
                    stream = self._controller.sign_in.open_stream(task, admitted)
            elif stream is None or not stream.ended:
                await send(message)

        try:
            await self._app(scope, receive, send_on)
        except asyncio.CancelledError:
            if stream is None or not stream.ended:
                raise
            task.uncancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if stream is not None:
                self._controller.sign_in.close_stream(stream)

    def _warn(self, message: Any) -> None:
        problem = self._controller.store.problem
        if problem is not None:
            text = f"not saved: {' '.join(problem.split())}".encode("latin-1", "replace")
            message["headers"] = [*message["headers"], (b"x-shoal-warning", text)]


def _is_endless(message: Message) -> bool:
    kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
    return any(kind.startswith(b"text/event-stream") for kind in kinds)


def _bounded(receive: Receive, head: _Head) -> Receive:
    """What anybody may send without signing in is small: it is read whole, and by the loop that all others wait for.

    Raises ShoalError 413 if its head says that it is not; where that turns out later, what reads it gets HTTPException.
    """
    length = head.last(b"content-length")
    if length.isdecimal() and int(length[:20]) > MAX_SESSION_BODY:
        raise ShoalError(_TOO_LARGE, status=413, code="body_too_large")
    size = 0

    async def receive_on() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_SESSION_BODY:
            raise HTTPException(413, _TOO_LARGE)  # the one error that FastAPI lets through while it reads a body
        return message

    return receive_on


def _host_of(header: str) -> str:
    """The name in a Host header; what cannot be read is given back as it is, and so counts as no loopback."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header
