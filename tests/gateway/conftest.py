from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from shoal.gateway import relay_native
from tests.gateway.harness import World
from tests.gateway.linked import Controller
from tests.gateway.native import NativeWorld


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The relay's own event loop, as in production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as name:
        yield Path(name)


@pytest.fixture(params=["native", "aiohttp"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each relay behind the seam: what a test expects of one it expects of the other."""
    return str(request.param)


@pytest.fixture
async def world(folder: Path, kind: str) -> AsyncIterator[World]:
    world = World(folder, kind)
    yield world
    await world.end()


@pytest.fixture
async def native_world(folder: Path) -> AsyncIterator[NativeWorld]:
    """For what only the native relay does."""
    world = NativeWorld(folder)
    yield world
    await world.end()


@pytest.fixture
async def controller(folder: Path) -> AsyncIterator[Controller]:
    """What links to `r.sock` in the folder find there, once it is started."""
    controller = Controller(folder / "r.sock")
    yield controller
    await controller.stop()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays here end after their controllers: none of those comes back to store what was used."""
    monkeypatch.setattr(relay_native, "STORING", 0.1)


@pytest.fixture(autouse=True)
def no_tracebacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that these tests do is a fault of the relay, so none of it may be logged as one."""
    yield
    assert [r for r in caplog.get_records("call") if r.exc_info or r.levelno >= logging.ERROR] == []
