"""`shoal memory top` on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from shoal.cli.memory_common import device_name
from shoal.cli.memory_view import view
from shoal.cli.output import plain
from shoal.ending import asked_to_end
from shoal.memory.nvml import Machine
from shoal.memory.tools import AsyncBrokerTool, Books


def run(path: Path, interval: float, console: Console) -> None:
    """Show the books of the broker at `path` until q or Ctrl-C."""
    asyncio.run(_run(path, interval, console))


async def _run(path: Path, interval: float, console: Console) -> None:
    loop = asyncio.get_running_loop()
    ended = asked_to_end()
    name = partial(device_name, Machine())
    async with AsyncBrokerTool(path) as tool:
        with _keys(loop, ended), Live(console=console, screen=True, auto_refresh=False) as live:
            following = asyncio.create_task(_follow(tool, interval, live, name))
            waiting = asyncio.create_task(ended.wait())
            await asyncio.wait({following, waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in (following, waiting):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


async def _follow(tool: AsyncBrokerTool, interval: float, live: Live, name: partial[str]) -> None:
    last: Books = {}

    def draw(problem: str | None) -> None:
        foot = Text(plain(f"{problem}; trying again"), style="bold red") if problem else Text("q leaves", style="dim")
        live.update(Group(view(last, name), Text(), foot), refresh=True)

    # A terminal that changes its size is drawn on anew at once.
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, lambda: draw(tool.problem))
    async for books in tool.listings(interval):
        last = last if books is None else books
        draw(tool.problem if books is None else None)


@contextlib.contextmanager
def _keys(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> Iterator[None]:
    """Read single keys while this lasts, if there is a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed() -> None:
        keys = os.read(fd, 64)
        if not keys or b"q" in keys.lower():
            ended.set()

    tty.setcbreak(fd)
    loop.add_reader(fd, pressed)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
