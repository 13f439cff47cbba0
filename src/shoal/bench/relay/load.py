"""The load generator: `python -m shoal.bench.relay.load requests|streams|aborts --port N …`; prints one `tally`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence

import psutil
import uvloop

from ..stats import percentile
from . import bodies, tally, usage
from .client import Asker, Client, Reader

HOST = "127.0.0.1"
SETTLE = 1.0
"""Seconds between the first event of the last stream and the begin of what is counted."""
PATIENCE = 30.0
"""Seconds in which a stream has to have begun, or it counts as failed."""
LONGEST = 0.4
"""Seconds until the last moment at which a stream is broken off: most are then in their middle."""
_TO_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset."""


async def requests(port: int, model: str, key: str, *, connections: int, seconds: float) -> tally.Served:
    """Requests one after the other on so many connections. Raises OSError if none can be made."""
    loop = asyncio.get_running_loop()
    request = bodies.request(model, port, key)
    done: list[Asker] = []
    over = asyncio.Event()

    async def worker() -> None:
        while not over.is_set():
            _, asker = await loop.create_connection(lambda: Asker(request), HOST, port)
            done.append(asker)
            await asker.closed.wait()

    began = time.monotonic()
    tasks = [asyncio.create_task(worker()) for _ in range(connections)]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        took = time.monotonic() - began
    finally:
        over.set()
        for asker in done:
            asker.finish()
    await asyncio.gather(*tasks)
    latencies = [1e-3 * each for asker in done for each in asker.latencies]
    return tally.Served(
        requests=len(latencies),
        seconds=took,
        p50_us=percentile(latencies, 0.5) if latencies else 0.0,
        p99_us=percentile(latencies, 0.99) if latencies else 0.0,
        failed=sum(asker.failed for asker in done),
    )


async def streams(
    port: int, model: str, key: str, *, number: int, seconds: float, proxy: Sequence[psutil.Process] = ()
) -> tally.Streamed:
    """Open so many streams, spread over a second, read all of them for `seconds`, and break them off.

    Raises TimeoutError if none begins, OSError if one cannot be opened.
    """
    loop = asyncio.get_running_loop()
    request = bodies.request(model, port, key)
    readers: list[Reader] = []
    try:
        for _ in range(number):
            _, reader = await loop.create_connection(lambda: Reader(request), HOST, port)
            readers.append(reader)
            await asyncio.sleep(1 / number)
        waiting = asyncio.gather(*(reader.begun.wait() for reader in readers))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(waiting, PATIENCE)
        await asyncio.sleep(SETTLE)
        for reader in readers:
            reader.restart()
        began, before = time.monotonic(), usage.read(proxy)
        await asyncio.sleep(seconds)
        after, took = usage.read(proxy), time.monotonic() - began
        failed = sum(bool(reader.wrong) or not reader.first for reader in readers)
        events = sum(reader.events for reader in readers)
        delays = [1e-3 * each for reader in readers for each in reader.delays]
    finally:
        for reader in readers:
            reader.abort()
    first = [1e-3 * (reader.first - reader.sent) for reader in readers if reader.first]
    if not first:
        raise TimeoutError(f"none of {number} streams of {model!r} began within {PATIENCE:g} s")
    return tally.Streamed(
        streams=number,
        events=events,
        seconds=took,
        first_p50_us=percentile(first, 0.5),
        first_p99_us=percentile(first, 0.99),
        delay_p50_us=percentile(delays, 0.5) if delays else 0.0,
        delay_p99_us=percentile(delays, 0.99) if delays else 0.0,
        cpu=after.cpu - before.cpu,
        rss=after.rss,
        failed=failed,
    )


async def aborts(port: int, model: str, key: str, *, number: int, together: int, seed: int) -> tally.Aborted:
    """Begin `number` streams, so many at a time, and break each off at a random moment: some before their request was
    whole, some before its answer, most in the middle; half by closing and half by a reset."""
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    request = bodies.request(model, port, key)
    left = number
    partial = unanswered = 0
    wrong: Counter[str] = Counter()

    async def one() -> None:
        nonlocal partial, unanswered
        cut = rng.randrange(len(request)) if rng.random() < 0.1 else len(request)
        _, reader = await loop.create_connection(lambda: Reader(request[:cut]), HOST, port)
        await asyncio.sleep(rng.uniform(0, LONGEST))
        if rng.random() < 0.5:
            _reset_on_close(reader)
        partial += cut < len(request)
        unanswered += cut == len(request) and not reader.first
        if reader.wrong:
            wrong[reader.wrong] += 1
        reader.abort()
        await reader.closed.wait()

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one()

    began = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(min(together, number))))
    return tally.Aborted(number, time.monotonic() - began, partial, unanswered, wrong.total(), wrong)


def _reset_on_close(client: Client) -> None:
    sock = None if client.transport is None else client.transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _TO_RESET)


def main() -> None:
    """Run one load and print its result."""
    parser = argparse.ArgumentParser(prog="python -m shoal.bench.relay.load", description=__doc__)
    parser.add_argument("what", choices=["requests", "streams", "aborts"])
    parser.add_argument("--port", type=int, required=True, help="of the server on 127.0.0.1")
    parser.add_argument("--key", required=True, help="the API key to send")
    parser.add_argument("--model", required=True, help="one of the fake engine's")
    parser.add_argument("--number", type=int, default=1, help="connections, streams, or streams to break off")
    parser.add_argument("--together", type=int, default=100, help="streams that are broken off at a time")
    parser.add_argument("--seconds", type=float, default=5.0, help="for requests and streams")
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which streams are broken off")
    parser.add_argument("--proxy", type=int, action="append", default=[], help="process whose use is read")
    o = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result: tally.Served | tally.Streamed | tally.Aborted
        if o.what == "requests":
            result = runner.run(requests(o.port, o.model, o.key, connections=o.number, seconds=o.seconds))
        elif o.what == "streams":
            proxy = usage.family(o.proxy)
            result = runner.run(streams(o.port, o.model, o.key, number=o.number, seconds=o.seconds, proxy=proxy))
        else:
            result = runner.run(aborts(o.port, o.model, o.key, number=o.number, together=o.together, seed=o.seed))
    print(tally.line(result))  # noqa: T201


if __name__ == "__main__":
    main()
