"""A broker on this loop, and where it listens."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.memory.broker import Broker


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
