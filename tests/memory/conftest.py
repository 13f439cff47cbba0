"""A broker on this loop, where it listens, and engines of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.memory.broker import Broker

from .engines import Engines


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: with xdist its name can be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        yield Path(folder) / "broker.sock"


@pytest.fixture
async def broker(path: Path) -> AsyncIterator[Broker]:
    broker = Broker(path)
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def engines(path: Path) -> AsyncIterator[Engines]:
    engines = Engines(path)
    yield engines
    await asyncio.to_thread(engines.close)
