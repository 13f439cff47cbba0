"""A memory broker for a benchmark in a process of its own, and a tool that reads and steers it.

`python -m shoal.bench.broker --socket PATH --device KEY --limit BYTES` runs it; a GPU is measured, so that what others
take of it shrinks the budget.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from shoal.memory import messages as m
from shoal.memory.broker import Broker
from shoal.memory.measuring import Reading

from . import devices


class BrokerError(RuntimeError):
    """The broker refused, or is not there."""


class Tool:
    """One connection to a broker. Thread-safe; blocking."""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._lock = threading.Lock()
        self._frames = m.Frames()
        self._heard: list[m.FromBroker] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._socket.connect(str(path))
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    self._socket.close()
                    raise BrokerError(f"no broker answers on {path}: {error}") from error
                time.sleep(0.02)

    def books(self) -> dict[str, tuple[m.DeviceState, list[m.MemberState]]]:
        """Devices and their members by the device's key."""
        found: dict[str, tuple[m.DeviceState, list[m.MemberState]]] = {}
        with self._lock:
            self._socket.sendall(m.frame(m.List()))
            while True:
                listing = self._hear()
                if not isinstance(listing, m.Listing):
                    raise BrokerError(f"the broker answers {listing}")
                if listing.device is not None:
                    found.setdefault(listing.device.key, (listing.device, []))[1].extend(listing.members)
                if not listing.more:
                    return found

    def members(self) -> dict[str, m.MemberState]:
        """The first rank of each engine, by the engine's name."""
        return {member.engine: member for _, members in self.books().values() for member in members if member.rank == 0}

    def trim(self, engine: str, lease: int = 0) -> None:
        """Have `engine` come down to `lease` bytes. Raises BrokerError."""
        with self._lock:
            self._socket.sendall(m.frame(m.Trim(engine=engine, lease=lease)))
            answer = self._hear()
        if not isinstance(answer, m.Done):
            raise BrokerError(f"the broker answers {answer}")

    def wait_backed(self, engine: str, at_most: int, timeout: float) -> float:
        """Wait until `engine` has at most so many bytes backed; the seconds. Raises BrokerError after `timeout`."""
        began = time.monotonic()
        while True:
            member = self.members().get(engine)
            if member is not None and member.backed <= at_most:
                return time.monotonic() - began
            if time.monotonic() - began > timeout:
                held = "is not connected" if member is None else f"still has {member.backed} bytes backed"
                raise BrokerError(f"{engine} {held} after {timeout:g} s; {at_most} were asked for")
            time.sleep(0.01)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _hear(self) -> m.FromBroker:
        while not self._heard:
            data = self._socket.recv(65536)
            if not data:
                raise BrokerError("the broker closed the connection")
            self._heard += [m.from_broker(payload) for payload in self._frames.feed(data)]
        return self._heard.pop(0)


async def _serve(path: Path, key: str, limit: int, headroom: float) -> None:
    device = devices.of(key)

    def measure() -> Mapping[str, Reading]:
        return {key: device.read()}

    # The host's memory is not measured: what others do there is not the benchmark's question.
    broker = Broker(
        path, limits={key: limit}, headroom=headroom, measure=None if key == devices.HOST else measure, interval=0.1
    )
    await broker.start()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await ended.wait()
    finally:
        await broker.stop()


def main() -> None:
    """Run a broker until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m shoal.bench.broker", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket that engines connect to")
    parser.add_argument("--device", required=True, help="the GPU's UUID as NVML writes it, or host")
    parser.add_argument("--limit", type=int, required=True, help="bytes of it that may be leased")
    parser.add_argument("--headroom", type=float, default=0.0, help="part of the device that is never leased")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_serve(options.socket, options.device, options.limit, options.headroom))


if __name__ == "__main__":
    main()
