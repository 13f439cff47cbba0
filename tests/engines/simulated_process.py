"""Starts the simulated engine as Shoal does, for tests, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from shoal.engines.promtext import parse_samples
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device
from shoal.memory.elastic import ElasticTerms

DEADLINE = 60.0
CHAT = {"model": "fish", "messages": [{"role": "user", "content": "hello there"}]}


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + DEADLINE
    while not await condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE:.0f} s in vain: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Process:
    """One simulated engine over a Unix socket, its log in a file."""

    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    context_length: int | None = None
    memory: ElasticTerms | None = None
    devices: tuple[Device, ...] = ()

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="shoal-sim-"))
        self.socket = self.directory / "s"
        spec = ModelSpec(
            name="fish",
            source="any",
            engine="simulated",
            args=self.args,
            env=self.env,
            context_length=self.context_length,
        )
        engine = SimulatedEngine()
        self.launch = engine.launch(
            spec,
            instance="i",
            address=f"unix:{self.socket}",
            devices=self.devices,
            environment=engine.environment(spec, ()),
            memory=self.memory,
        )
        self.log_path = self.directory / "log"
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                self.launch.argv, env={"PATH": os.environ["PATH"], **self.launch.env}, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    async def ready(self) -> Process:
        async def answers() -> bool:
            assert self.popen.poll() is None, self.log
            with suppress(aiohttp.ClientConnectionError):
                return (await self.get("/health")).status == 200
            return False

        await until(answers, "the engine to answer")
        return self

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.UnixConnector(str(self.socket))
        timeout = aiohttp.ClientTimeout(total=DEADLINE)
        async with aiohttp.ClientSession("http://engine", connector=connector, timeout=timeout) as session:
            yield session

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session() as session, session.request(method, path, **options) as response:
            return Answer(response.status, await response.text())

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def post(self, path: str, body: Any = None) -> Answer:
        return await self.request("POST", path, json=body)

    async def stream(self, path: str, body: Any) -> list[Any]:
        """The events of a stream, `[DONE]` checked and left out."""
        answer = await self.post(path, {**body, "stream": True})
        assert answer.status == 200, answer.text
        events = answer.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    async def sample(self, name: str) -> float:
        return parse_samples((await self.get("/metrics")).text)[name]

    async def samples_to(self, name: str, value: float) -> None:
        async def reached() -> bool:
            return await self.sample(name) == value

        await until(reached, f"{name} to become {value}")

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.popen.wait, DEADLINE)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.popen.kill()
        self.popen.wait()
        for line in self.log.splitlines():
            if line.startswith("child pid="):
                with suppress(ProcessLookupError):
                    os.kill(int(line.removeprefix("child pid=")), signal.SIGKILL)
        shutil.rmtree(self.directory)
