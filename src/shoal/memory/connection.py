"""One connection to the broker: frames in, frames out, and the peer's credentials."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import cast

from .messages import Error, Frames, FromBroker, ProtocolError, ToBroker, frame, to_broker

MAX_PENDING = 256
"""Messages of one connection that may wait for the broker before it is read no further."""
MAX_UNSENT = 4 * 1024 * 1024
"""Bytes that a peer may leave unread before it is taken for dead."""

_CREDENTIALS = struct.Struct("3i")


def credentials(peer: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end."""
    pid, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


class Connection(asyncio.Protocol):
    """Reads messages for the broker. `received` gets each one, and None exactly once, at the end."""

    def __init__(
        self,
        opened: Callable[[Connection], str | None],
        received: Callable[[Connection, ToBroker | None], None],
    ) -> None:
        self.pid = 0
        self._opened = opened
        self._received = received
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._pending = 0
        self._paused = False
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        refusal = self._opened(self)
        self.pid, uid = credentials(transport.get_extra_info("socket"))
        if uid not in (os.geteuid(), 0):
            self.refuse(
                "forbidden", f"this broker serves user {os.geteuid()}, not user {uid}; run the engine as that user"
            )
        elif refusal is not None:
            self.refuse("busy", refusal)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            messages = [to_broker(payload) for payload in self._frames.feed(data)]
        except ProtocolError as error:
            self.refuse("protocol", str(error))
            return
        for message in messages:
            self._pending += 1
            self._received(self, message)
        if self._pending > MAX_PENDING and self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._closing = True
        self._transport = None
        self._pending += 1
        self._received(self, None)

    def handled(self) -> None:
        """The broker is done with one of its messages."""
        self._pending -= 1
        if self._paused and self._pending <= MAX_PENDING // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def send(self, message: FromBroker) -> None:
        """Write `message`; a peer that is gone or reads nothing is no error here."""
        if self._transport is None or self._closing:
            return
        self._transport.write(frame(message))
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._closing = True
            self._transport.abort()

    def refuse(self, code: str, message: str) -> None:
        """Say why, and close."""
        self.send(Error(code=code, message=message, fatal=True))
        self.close()

    def close(self) -> None:
        """Close, after what is written; what still arrives is not read."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()
