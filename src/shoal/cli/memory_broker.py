"""`shoal memory broker`: the broker by itself, for engines that `shoal serve` does not run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.memory_common import amount, device_key, make_user_folder, own_socket, user_folder
from shoal.ending import asked_to_end
from shoal.errors import ShoalError
from shoal.memory.broker import Broker
from shoal.memory.nvml import Machine
from shoal.memory.sizes import Amount


def broker(
    socket: Annotated[
        Path | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            help="Where to listen. Default: SHOAL_MEMORY_SOCKET, or memory.sock in /tmp/shoal-UID.",
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="DEVICE=SIZE",
            help="Lease at most so much of a device (cuda:0, a GPU's UUID, host): 60GiB, or 80%. Repeatable.",
        ),
    ] = None,
    headroom: Annotated[
        str, typer.Option("--headroom", metavar="SIZE", help="Never lease this of each device: 3%, or 2GiB.")
    ] = "3%",
) -> None:
    """Run the memory broker of this machine until Ctrl-C."""
    machine = Machine()
    limits: dict[str, Amount] = {}
    for text in limit or []:
        device, equals, size = text.rpartition("=")
        if not equals or not device:
            raise typer.BadParameter(f"--limit {text}: write it as DEVICE=SIZE, such as cuda:0=60GiB or host=50%")
        limits[device_key(machine, device)] = amount(size)
    kept = amount(headroom)
    if kept.share is not None and kept.share >= 1:
        raise typer.BadParameter("--headroom: 100% would leave nothing to lease")
    path = own_socket(socket)
    if path.parent == user_folder():
        make_user_folder()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_serve(path, limits, kept, machine))
    except OSError as error:
        raise ShoalError(str(error), code="already_running") from None


async def _serve(path: Path, limits: Mapping[str, Amount], headroom: Amount, machine: Machine) -> None:
    asked = asked_to_end()  # before anybody can know that it runs
    broker = Broker(path, limits=limits, headroom=headroom, measure=machine)
    broker.know(await asyncio.to_thread(machine))
    await broker.start()
    try:
        await asked.wait()
    finally:
        await broker.stop()
