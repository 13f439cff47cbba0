"""A server's side of a websocket (RFC 6455): the handshake, and messages of text both ways."""

from __future__ import annotations

import base64
import hashlib
from typing import NamedTuple

from shoal.engines.simulated.http import Reply, Request

MAX_MESSAGE = 16 * 1024 * 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUED, _TEXT, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x8, 0x9, 0xA
_NORMAL, _PROTOCOL, _UNSUPPORTED, _NOT_UTF8, _TOO_BIG = 1000, 1002, 1003, 1007, 1009


class _Frame(NamedTuple):
    final: bool
    kind: int
    payload: bytes


class _ClosedError(Exception):
    """The connection has to be closed, with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def is_asked(request: Request) -> bool:
    """Whether a request asks for a websocket."""
    return request.header("upgrade").lower() == "websocket" and bool(request.header("sec-websocket-key"))


class WebSocket:
    """One connection, open from the start. Pings are answered; what a client must not do closes it."""

    def __init__(self, request: Request, reply: Reply) -> None:
        self._reply = reply
        self._buffer = bytearray()
        key = request.header("sec-websocket-key").encode("latin-1")
        accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
        reply.switch({"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-accept": accept})

    async def send(self, text: str) -> None:
        """Send a message; waits while the client is slow."""
        await self._write(_TEXT, text.encode("utf-8", "replace"))

    async def receive(self) -> str | None:
        """The next message; None once the connection is closed."""
        try:
            return (await self._message()).decode()
        except UnicodeDecodeError:
            code = _NOT_UTF8
        except _ClosedError as closed:
            code = closed.code
        await self._write(_CLOSE, code.to_bytes(2))
        return None

    async def _message(self) -> bytes:
        message = bytearray()
        begun = False
        while True:
            frame = await self._frame()
            if frame.kind == _PING:
                await self._write(_PONG, frame.payload)
            elif frame.kind == _CLOSE:
                raise _ClosedError(_NORMAL)
            elif frame.kind in (_TEXT, _CONTINUED):
                if (frame.kind == _CONTINUED) != begun:
                    raise _ClosedError(_PROTOCOL)
                begun = True
                message += frame.payload
                if len(message) > MAX_MESSAGE:
                    raise _ClosedError(_TOO_BIG)
                if frame.final:
                    return bytes(message)
            elif frame.kind != _PONG:
                raise _ClosedError(_UNSUPPORTED)

    async def _frame(self) -> _Frame:
        head = await self._take(2)
        final, kind, size = bool(head[0] & 0x80), head[0] & 0x0F, head[1] & 0x7F
        is_control = kind >= _CLOSE
        if head[0] & 0x70 or not head[1] & 0x80 or (is_control and (size > 125 or not final)):
            raise _ClosedError(_PROTOCOL)  # extensions that were not agreed on; no mask; a long or cut control frame
        if size > 125:
            size = int.from_bytes(await self._take(2 if size == 126 else 8))
        if size > MAX_MESSAGE:
            raise _ClosedError(_TOO_BIG)
        mask = await self._take(4)
        payload = await self._take(size)
        repeated = (mask * (size // 4 + 1))[:size]
        unmasked = int.from_bytes(payload) ^ int.from_bytes(repeated)
        return _Frame(final, kind, unmasked.to_bytes(size))

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += await self._reply.read()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _write(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            length = bytes((size,))
        elif size < 2**16:
            length = b"\x7e" + size.to_bytes(2)
        else:
            length = b"\x7f" + size.to_bytes(8)
        await self._reply.write(bytes((0x80 | kind,)) + length + payload)
