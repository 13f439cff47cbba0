"""Peers that talk nonsense to a broker, or read nothing."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from pathlib import Path

import pytest

from shoal.memory import messages as m
from shoal.memory.broker import Broker
from shoal.memory.client import Lease, Rank

from .engines import GPU, MIB
from .tool import Tool, eventually

FRAMES = int(os.environ.get("SHOAL_TEST_FRAMES", "10000"))
"""Random frames to throw at the broker; a nightly run sets 1,000,000."""


def _nonsense(rng: random.Random) -> bytes:
    """A frame: noise, a message with a few bytes changed, or a right one of another kind; half of them cut short."""
    kind = rng.randrange(5)
    if kind == 0:
        data = rng.randbytes(rng.randrange(1, 200))
    elif kind == 1:
        payload = rng.randbytes(rng.randrange(1, 200))
        data = len(payload).to_bytes(4, "big") + payload
    else:
        messages: list[m.ToBroker] = [
            m.Hello(engine=f"x{rng.randrange(9)}", device="moon", device_size=GPU, held=rng.randrange(GPU)),
            m.Ask(need=rng.randrange(GPU), want=rng.randrange(GPU)),
            m.Release(size=rng.randrange(GPU)),
            m.Report(used=rng.randrange(GPU), cached=(1, 2)),
            m.List(),
            m.Watch(),
            m.Trim(engine="x1"),
            m.SetTerms(engine="x1", floor=rng.randrange(GPU)),
            m.SetBudget(device="moon", limit=rng.randrange(1, GPU)),
            m.Reserve(device="moon", size=rng.randrange(GPU), device_size=GPU, arriving=rng.random() < 0.5),
        ]
        data = m.frame(rng.choice(messages))
        if kind < 4:
            changed = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            data = bytes(changed)
    return data[: rng.randrange(len(data))] if rng.random() < 0.5 else data


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _throw(path: Path, frames: int, seed: int) -> int:
    """Throw `frames` frames, over as many connections as the broker closes. Returns how many those were."""
    rng = random.Random(seed)
    connections = 0
    thrown = 0
    while thrown < frames:
        connections += 1
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))  # before the timeout: with one, a full backlog is an error and not a wait
            peer.settimeout(30)
            for _ in range(rng.randrange(1, 20)):
                data = _nonsense(rng)
                thrown += 1
                try:
                    peer.sendall(data)
                except OSError:
                    break
    return connections


@pytest.mark.timeout(max(120, FRAMES // 200))
async def test_random_frames_harm_nobody(broker: Broker, path: Path) -> None:
    honest = Lease(path, Rank("honest", "gpu", GPU))
    await asyncio.to_thread(honest.wait_connected, 30)
    honest.ask(100 * MIB)
    await eventually(lambda: honest.lease == 100 * MIB)
    files = _open_files()
    thrower = asyncio.create_task(asyncio.to_thread(_throw, path, FRAMES, 7))
    asks = 0
    while not thrower.done():
        asks += 1
        honest.ask((100 + asks % 50) * MIB)
        assert await asyncio.to_thread(honest.wait_answered, 30)
        honest.release(honest.lease - 100 * MIB)
        await asyncio.sleep(0.01)
    connections = await thrower
    assert connections > FRAMES // 30
    assert asks > 0
    await eventually(lambda: broker.connections == 1)
    await eventually(lambda: _open_files() <= files)
    assert honest.connected
    assert [member.engine for member in broker.ledger.devices["gpu"].members.values()] == ["honest"]
    moon = broker.ledger.devices.get("moon")
    assert moon is None or (not moon.members and not moon.held_back)
    broker.ledger.check()
    await asyncio.to_thread(honest.close)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\5hello", "not a message"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (b"\0\0\0\0", "a frame of 0 bytes"),
        (b'\0\0\0\x15{"v":9,"type":"list"}', "version 9"),
        (b"GET / HTTP/1.1\r\n\r\n", "bytes; 1 to 65536 are allowed"),
    ],
)
async def test_a_bad_frame_closes_its_connection_with_a_reason(
    broker: Broker, path: Path, data: bytes, words: str
) -> None:
    tool = await asyncio.to_thread(Tool, path)
    tool.socket.sendall(data)
    error = await asyncio.to_thread(tool.hear)
    assert isinstance(error, m.Error)
    assert error.fatal
    assert words in error.message
    with pytest.raises(EOFError):
        await asyncio.to_thread(tool.hear)
    tool.close()


async def test_an_engine_whose_books_differ_starts_over(broker: Broker, path: Path) -> None:
    tool = await asyncio.to_thread(Tool, path)
    await asyncio.to_thread(tool.say, m.Hello(engine="a", device="gpu", device_size=GPU, held=5))
    error = await asyncio.to_thread(tool.say, m.Release(size=6))
    assert isinstance(error, m.Error)
    assert "connect again and say what is held" in error.message
    await eventually(lambda: broker.ledger.devices["gpu"].leased == 0)
    tool.close()


async def test_messages_out_of_turn_are_answered(broker: Broker, path: Path) -> None:
    tool = await asyncio.to_thread(Tool, path)
    for message in (m.Ask(need=1), m.Release(size=1), m.Report(used=1)):
        answer = await asyncio.to_thread(tool.say, message)
        assert isinstance(answer, m.Error)
        assert answer.code == "no_hello"
    hello = m.Hello(engine="a", device="gpu", device_size=GPU)
    assert isinstance(await asyncio.to_thread(tool.say, hello), m.Welcome)
    answer = await asyncio.to_thread(tool.say, hello)
    assert isinstance(answer, m.Error)
    assert answer.code == "hello_twice"
    tool.close()


async def test_a_peer_that_reads_nothing_is_cut_off(broker: Broker, path: Path) -> None:
    tool = await asyncio.to_thread(Tool, path)
    others = []
    for number in range(30):
        others.append(await asyncio.to_thread(Tool, path))
        name = f"engine-{number}-{'x' * 100}"
        await asyncio.to_thread(others[-1].say, m.Hello(engine=name, device="gpu", device_size=GPU))
    ask = m.frame(m.List()) * 100

    def flood() -> None:
        with pytest.raises(OSError):
            for _ in range(100_000):
                tool.socket.sendall(ask)

    await asyncio.to_thread(flood)
    await eventually(lambda: broker.connections == len(others))
    for other in others:
        assert "gpu" in await asyncio.to_thread(other.list)
        other.close()
    tool.close()
