"""A memory broker for a benchmark in a process of its own, and what is asked of it.

`python -m shoal.bench.broker --socket PATH --device KEY --limit BYTES` runs it; a GPU is measured, so that what others
take of it shrinks the budget. The host's memory is not: what others do there is not the benchmark's question.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from pathlib import Path

from shoal.ending import asked_to_end
from shoal.memory.broker import Broker
from shoal.memory.messages import MemberState
from shoal.memory.nvml import HOST, Machine
from shoal.memory.tools import BrokerError, BrokerTool


def connect(path: Path, timeout: float = 10.0) -> BrokerTool:
    """A tool of the broker on `path`, which may be about to start. Raises BrokerError."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return BrokerTool(path)
        except BrokerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def members(tool: BrokerTool) -> dict[str, MemberState]:
    """The first rank of each engine, by the engine's name. Raises BrokerError."""
    return {member.engine: member for book in tool.list().values() for member in book.members if member.rank == 0}


def wait_lease(tool: BrokerTool, engine: str, at_most: int, timeout: float) -> float:
    """Wait until `engine` has a lease of at most so many bytes; the seconds. Raises TimeoutError, BrokerError."""
    began = time.monotonic()
    while True:
        member = members(tool).get(engine)
        if member is not None and member.lease <= at_most:
            return time.monotonic() - began
        if time.monotonic() - began > timeout:
            held = "is not connected" if member is None else f"still has a lease of {member.lease} bytes"
            raise TimeoutError(f"{engine} {held} after {timeout:g} s; {at_most} were to be left")
        time.sleep(0.005)


async def _serve(path: Path, key: str, limit: int, headroom: float) -> None:
    broker = Broker(
        path, limits={key: limit}, headroom=headroom, measure=None if key == HOST else Machine(), interval=0.1
    )
    await broker.start()
    try:
        await asked_to_end().wait()
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
