"""What is read of an engine's log while it starts, with an engine that answers on a real socket."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from aiohttp import web

from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.fleet import facts
from shoal.fleet.monitor import Monitor
from shoal.fleet.shim import BEGIN
from shoal.fleet.state import Instance, InstanceState
from tests.fleet.fakes import spec

GIB = 2**30


async def _healthy(folder: Path, log: str) -> facts.Healthy:
    """What is told of an engine that has logged this and is healthy."""
    (folder / "log").write_text(log)

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "s")).start()
    told: asyncio.Queue[facts.Fact] = asyncio.Queue()
    monitor = Monitor(
        SimulatedEngine(), folder / "log", told.put_nowait, engine_pid=lambda: 7, interval=60, hang_timeout=60
    )
    instance = Instance(
        "i", "m", "simulated", InstanceState.STARTING, ("host",), 0.0, 0.0, spec=spec(), address=f"unix:{folder / 's'}"
    )
    task = asyncio.create_task(monitor.run(instance, []))
    try:
        while True:
            fact = await asyncio.wait_for(told.get(), 30)
            if isinstance(fact, facts.Healthy):
                return fact
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()


def _told(log: str) -> int | None:
    with tempfile.TemporaryDirectory(prefix="shoal-", dir="/tmp") as folder:  # Unix sockets allow no long ones
        return asyncio.run(_healthy(Path(folder), log)).weights


def test_the_fullest_rank_tells_what_the_weights_took() -> None:
    assert _told("Model loading took 7.50 GiB and 1 seconds\nModel loading took 8.00 GiB and 1 seconds\n") == 8 * GIB


def test_an_earlier_start_in_the_same_log_does_not_count() -> None:
    assert _told(f"Model loading took 9.00 GiB memory\n{BEGIN}\nModel loading took 7.50 GiB memory\n") == int(7.5 * GIB)
    assert _told(f"Model loading took 9.00 GiB memory\n{BEGIN}\n") is None


def test_a_line_without_end_is_not_searched_to_its_end() -> None:
    assert _told("x" * 100_000 + " Model loading took 9.00 GiB memory\n") is None
