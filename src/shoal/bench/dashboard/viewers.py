"""Those who look at a page: `python -m shoal.bench.dashboard.viewers --url U --count N`, until SIGTERM.

So many connections to the event stream, which are read and hardly looked at, so that this costs little beside what is
measured. Prints a line once each has its snapshot, and `Seen` in the end.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from urllib.parse import urlsplit

import msgspec
import uvloop

from shoal.ending import asked_to_end


class Seen(msgspec.Struct, frozen=True):
    """What all viewers together have seen: bytes, events by kind, and connections that broke."""

    bytes: int
    events: dict[str, int]
    broken: int


class Viewers:
    """Connects and counts."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._events: Counter[str] = Counter()
        self._bytes = self._broken = self._there = 0
        self.all_there = asyncio.Event()

    async def run(self, count: int) -> Seen:
        """Watch until this process is asked to end."""
        ended = asked_to_end()
        watchers = [asyncio.create_task(self._watch(count)) for _ in range(count)]
        all_there = asyncio.create_task(self.all_there.wait())
        all_there.add_done_callback(lambda _: print("watching", flush=True))  # noqa: T201
        await ended.wait()
        for task in (all_there, *watchers):
            task.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        return Seen(self._bytes, dict(self._events), self._broken)

    async def _watch(self, count: int) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**20)
        try:
            head = (
                f"GET /api/v1/events HTTP/1.1\r\nhost: {self._host}:{self._port}\r\naccept: text/event-stream\r\n\r\n"
            )
            writer.write(head.encode())
            first = True
            while piece := await reader.read(2**18):
                self._bytes += len(piece)
                # A name that lies across two pieces is not counted; few do.
                for kind in (b"snapshot", b"model", b"memory", b"devices", b"message"):
                    if found := piece.count(b"event: " + kind + b"\n"):
                        self._events[kind.decode()] += found
                        if first and kind == b"snapshot":
                            first = False
                            self._there += 1
                            if self._there == count:
                                self.all_there.set()
            self._broken += 1
        finally:
            writer.close()


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="shoal.bench.dashboard.viewers")
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()

    async def run() -> Seen:
        return await Viewers(options.url).run(options.count)

    print(msgspec.json.encode(uvloop.run(run())).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
