"""`python -m shoal.gateway` as the supervisor runs it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from shoal.gateway.link import save_table
from tests.gateway.harness import PATIENCE, Message, World, eventually, get, post, reply, route, table


@contextmanager
def gateway(world: World, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A relay process on an inherited socket, ready to serve."""
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        world.port = sock.getsockname()[1]
        sockets = ["--controller", str(world.config.controller), "--relay-socket", str(world.config.relay_socket)]
        inherited = ["--relay", world.kind, "--fd", str(sock.fileno()), "--notify-fd", str(write)]
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal.gateway", *inherited, *sockets, "--table", str(world.config.table), *more],
            pass_fds=(sock.fileno(), write),
            stderr=subprocess.PIPE,
        )
    os.close(write)
    try:
        with os.fdopen(read, "rb") as notes:
            assert notes.read() == b"ready\n"  # written, and then closed
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


async def test_serves_and_stops(world: World) -> None:
    engine = await world.engine()
    save_table(world.config.table, table(route("m", engine)))
    with gateway(world) as process:
        assert (await world.ask(post())).status == 200
        assert (await world.ask(get("/health/live"))).status == 200
        process.terminate()
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_requests_end(world: World, number: signal.Signals) -> None:
    gate = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await reply(writer, body=b"done")

    engine = await world.engine(script=script)
    save_table(world.config.table, table(route("m", engine)))
    with gateway(world, "--grace", "60") as process:
        client = await world.client()
        await client.send(post())
        await eventually(lambda: engine.received)
        process.send_signal(number)
        with pytest.raises(OSError):  # it takes no new connections
            for _ in range(1000):
                (await world.client()).close()
                await asyncio.sleep(0.01)
        gate.set()
        assert (await client.response()).body == b"done"
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0


async def test_large_bodies_are_held_once_and_let_go(world: World) -> None:
    size = 64 * 2**20
    gate = asyncio.Event()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message.body = b""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
        await gate.wait()
        writer.write(b"k")

    engine = await world.engine(script=script)
    save_table(world.config.table, table(route("m", engine)))
    with gateway(world, "--settings", f'{{"max_body": {size + 1000}}}') as process:
        relay = psutil.Process(process.pid)
        assert (await world.ask(get("/v1/models"))).status == 200
        before, peak = relay.memory_info().rss, 0
        client = await world.client()
        asking = asyncio.create_task(client.send(post(body=b'{"model":"m","x":"' + b"x" * size + b'"}')))
        while not engine.received:
            peak = max(peak, relay.memory_info().rss)
            await asyncio.sleep(0.002)
        await asking
        assert peak - before < 1.75 * size  # the body, and no second copy of it
        await client.response(head_only=True)
        await eventually(lambda: relay.memory_info().rss - before < size / 2)  # a long answer does not keep it
        gate.set()
        assert await client.reader.readexactly(2) == b"ok"


async def test_descriptors_do_not_leak(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if message.target == "/v1/die":
            writer.close()
        elif message.target == "/v1/hang":
            await reader.read()
        else:
            await reply(writer)

    engine = await world.engine(script=script)
    save_table(world.config.table, table(route("m", engine)))
    with gateway(world) as process:
        relay = psutil.Process(process.pid)

        async def round_of_everything() -> None:
            for path in ("/v1/x", "/v1/die", "/api/v1/models"):
                client = await world.client()
                await client.ask(post(path))
                client.close()
            client = await world.client()
            await client.send(post("/v1/hang"))
            await eventually(lambda: engine.received[-1].target == "/v1/hang")
            client.close()

        await round_of_everything()
        before = relay.num_fds()
        for _ in range(20):
            await round_of_everything()
        await eventually(lambda: relay.num_fds() <= before + 1)


def test_imports_stay_light() -> None:
    modules = "sys, shoal.gateway.__main__, shoal.gateway.relay_native"
    code = f"import {modules}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "uvloop" in loaded
    assert "aiohttp" not in loaded  # only the relay that is built on it needs it
    assert not {"fastapi", "starlette", "sqlalchemy", "pydantic", "pydantic_settings", "uvicorn", "typer"} & set(loaded)


def test_wrong_arguments(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "shoal.gateway"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--controller" in done.stderr
