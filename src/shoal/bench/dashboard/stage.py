"""A controller whose fleet is a `Stage`: `python -m shoal.bench.dashboard.stage --state DIR …`, until SIGTERM.

The API, the event stream, the history and the page are the real ones. There is no relay, no broker, no engine and no
process of one: what they would tell is made up, so many times a second. It prints its address once it serves.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import time
from pathlib import Path

import uvicorn
import uvloop

from shoal.access import new_store
from shoal.api.app import make_app
from shoal.bench.dashboard.fleet import Stage
from shoal.controller import Controller
from shoal.ending import asked_to_end
from shoal.engines.registry import engines
from shoal.fleet.deltas import SPACING
from shoal.fleet.devices import Devices
from shoal.fleet.hub import Hub
from shoal.paths import find_paths, make_runtime
from shoal.settings import Settings


def make_controller(folder: Path, spacing: float = SPACING) -> Controller:
    """A controller that has nothing and runs nothing. Its hub tells every `spacing` seconds at most."""
    settings = Settings(state_dir=folder / "state", runtime_dir=folder / "run", engine="simulated")
    paths = find_paths(settings)
    make_runtime(paths)
    store = new_store(settings, paths)
    controller = Controller(settings, None, paths, engines(settings), store, Devices())
    if spacing != SPACING:
        controller.hub = Hub(controller.snapshot, spacing)
    return controller


async def play(controller: Controller, stage: Stage, rate: float) -> None:
    """Have the stage change `rate` times a second, for ever."""
    fleet = controller.manager.fleet
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        stage.step()
        tell(controller, stage)
        for name in stage.change(fleet, time.time()):
            controller.hub.publish("model", fleet.model_view(name))
        due = max(due + 1 / rate, loop.time())
        await asyncio.sleep(due - loop.time())


def tell(controller: Controller, stage: Stage) -> None:
    """Publish the readings that the stage has now, as the manager does."""
    fleet = controller.manager.fleet
    fleet.devices = stage.read()
    fleet.ledger.read(stage.books())
    fleet.relays = {1: stage.report()}
    views = {one.id: fleet.memory_view(one) for one in fleet.instances.values()}
    controller.hub.publish("memory", {"instances": views, "devices": fleet.device_views()})


async def serve(options: argparse.Namespace) -> None:
    """Serve until asked to end."""
    controller = make_controller(options.state, options.spacing)
    await controller.store.open()
    stage = Stage(options.devices, options.models)
    stage.furnish(controller.manager.fleet, time.time())
    stage.step()
    controller.manager.fleet.devices = stage.read()
    controller.manager.fleet.ledger.read(stage.books())
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(controller), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener])),
        asyncio.create_task(controller.history.run(controller.manager.fleet)),
    ]
    if options.rate:
        tasks.append(asyncio.create_task(play(controller, stage, options.rate)))
    ended = asked_to_end()
    while not server.started:
        await asyncio.sleep(0.01)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)  # noqa: T201
    await ended.wait()
    server.should_exit = True
    await tasks[0]
    for task in tasks[1:]:
        task.cancel()
    await controller.store.close()


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="shoal.bench.dashboard.stage")
    parser.add_argument("--state", type=Path, required=True, help="an empty folder with a short name")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--rate", type=float, default=4.0, help="changes a second of everything; 0: none")
    parser.add_argument(
        "--spacing", type=float, default=SPACING, help="seconds between two times that changes are told"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    uvloop.run(serve(options))


if __name__ == "__main__":
    main()
