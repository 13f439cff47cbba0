"""A plain, blocking speaker of the broker's protocol, and patience."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

from shoal.memory import messages as m


class Tool:
    """One connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(30)
        self._frames = m.Frames()
        self._heard: list[m.FromBroker] = []

    def say(self, message: m.ToBroker) -> m.FromBroker:
        """Send, and return the next message."""
        self.socket.sendall(m.frame(message))
        return self.hear()

    def hear(self) -> m.FromBroker:
        while not self._heard:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._heard += [m.from_broker(payload) for payload in self._frames.feed(data)]
        return self._heard.pop(0)

    def list(self) -> dict[str, tuple[m.DeviceState, list[m.MemberState]]]:
        """The books by device."""
        self.socket.sendall(m.frame(m.List()))
        found: dict[str, tuple[m.DeviceState, list[m.MemberState]]] = {}
        while True:
            listing = self.hear()
            if not isinstance(listing, m.Listing):
                continue
            if listing.device is not None:
                found.setdefault(listing.device.key, (listing.device, []))[1].extend(listing.members)
            if not listing.more:
                return found

    def close(self) -> None:
        self.socket.close()


async def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)
