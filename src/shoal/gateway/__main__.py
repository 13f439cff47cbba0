"""`python -m shoal.gateway`: the relay process, as the supervisor starts it.

Settings come as plain arguments, because reading `shoal.settings` would import more than the relay itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from shoal.ending import asked_to_end
from shoal.gateway.relay import RelayConfig
from shoal.gateway.relay_aiohttp import AiohttpRelay


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Ends the process with a message if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m shoal.gateway", description="The relay process of shoal serve.")
    parser.add_argument("--fd", type=int, required=True, help="inherited TCP socket to serve on")
    parser.add_argument("--notify-fd", type=int, help="inherited descriptor that gets `ready` once serving")
    parser.add_argument("--controller", type=Path, required=True, help="Unix socket of the controller's HTTP")
    parser.add_argument("--relay-socket", type=Path, required=True, help="Unix socket that sends routing tables")
    parser.add_argument("--table", type=Path, required=True, help="file that keeps the last routing table")
    parser.add_argument("--max-body", type=int, default=RelayConfig.max_body, help="bytes")
    parser.add_argument("--header-timeout", type=float, default=RelayConfig.header_timeout, help="seconds")
    parser.add_argument("--body-timeout", type=float, default=RelayConfig.body_timeout, help="seconds")
    parser.add_argument("--connect-timeout", type=float, default=RelayConfig.connect_timeout, help="seconds")
    parser.add_argument("--idle-timeout", type=float, default=RelayConfig.idle_timeout, help="seconds")
    parser.add_argument("--grace", type=float, default=10, help="seconds for running requests after SIGTERM")
    return parser.parse_args(argv)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asked_to_end()
    relay = AiohttpRelay(
        RelayConfig(
            controller=arguments.controller,
            relay_socket=arguments.relay_socket,
            table=arguments.table,
            max_body=arguments.max_body,
            header_timeout=arguments.header_timeout,
            body_timeout=arguments.body_timeout,
            connect_timeout=arguments.connect_timeout,
            idle_timeout=arguments.idle_timeout,
        )
    )
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
    await relay.stop(arguments.grace)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the relay process."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s relay %(levelname)s %(message)s")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # every running request takes two descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
