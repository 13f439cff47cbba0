"""`python -m shoal.gateway`: the relay process, as the supervisor starts it.

Settings come as JSON, because reading `shoal.settings` would import more than the relay itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from shoal.ending import asked_to_end
from shoal.gateway.relay import Relay, RelayConfig
from shoal.gateway.repeats import PERIOD, Repeats


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m shoal.gateway", description="The relay process of shoal serve.")
    parser.add_argument("--fd", type=int, required=True, help="inherited TCP socket to serve on")
    parser.add_argument("--notify-fd", type=int, help="inherited descriptor that gets `ready` once serving")
    parser.add_argument("--controller", type=Path, required=True, help="Unix socket of the controller's HTTP")
    parser.add_argument("--relay-socket", type=Path, required=True, help="Unix socket that sends routing tables")
    parser.add_argument("--table", type=Path, required=True, help="file that keeps the last routing table")
    parser.add_argument("--settings", default="{}", help="further fields of RelayConfig, as a JSON object")
    parser.add_argument("--relay", choices=("native", "aiohttp"), default="native", help="which implementation")
    parser.add_argument("--grace", type=float, default=10, help="seconds for running requests after SIGTERM")
    arguments = parser.parse_args(argv)
    paths = {"controller": arguments.controller, "relay_socket": arguments.relay_socket, "table": arguments.table}
    try:
        given = msgspec.json.decode(arguments.settings, type=dict[str, Any])
        arguments.config = msgspec.convert({**given, **paths}, RelayConfig)
        if unknown := given.keys() - {field.name for field in dataclasses.fields(RelayConfig)}:
            parser.error(f"--settings: there is no {', '.join(sorted(unknown))}")
    except msgspec.MsgspecError as error:
        parser.error(f"--settings: {error}")
    return arguments


async def serve(arguments: argparse.Namespace, log: Repeats) -> None:
    """Serve until SIGTERM or SIGINT. `log` is where this process logs to."""
    stop = asked_to_end()
    telling = asyncio.create_task(_tell(log))
    relay = _relay(arguments.relay, arguments.config)
    await relay.start(socket.socket(fileno=arguments.fd))
    stopping = asyncio.create_task(stop.wait())
    informed = asyncio.create_task(relay.informed())
    await asyncio.wait((stopping, informed), return_when=asyncio.FIRST_COMPLETED)
    informed.cancel()
    if arguments.notify_fd is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(arguments.notify_fd, b"ready\n")
        os.close(arguments.notify_fd)
    await stopping
    await _stop(relay, arguments.grace, stop)
    telling.cancel()


async def _tell(log: Repeats) -> None:
    while True:
        await asyncio.sleep(PERIOD)
        log.tell()


async def _stop(relay: Relay, grace: float, asked: asyncio.Event) -> None:
    """Stop it; if that is asked for once more, without waiting for running requests."""
    asked.clear()
    stopping = asyncio.create_task(relay.stop(grace))
    again = asyncio.create_task(asked.wait())
    await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not stopping.done():
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        stopping = asyncio.create_task(relay.stop(0))
    await stopping


def _relay(kind: str, config: RelayConfig) -> Relay:
    if kind == "aiohttp":
        from shoal.gateway.relay_aiohttp import AiohttpRelay

        return AiohttpRelay(config)
    from shoal.gateway.relay_native import NativeRelay

    return NativeRelay(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the relay process."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    log = Repeats(sys.stderr)
    logging.basicConfig(level=logging.INFO, handlers=[log], format="%(asctime)s relay %(levelname)s %(message)s")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # every running request takes two descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What is here already stays; what a request makes is freed at its end without the collector's help.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(arguments, log))
    finally:
        log.tell(all_=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
