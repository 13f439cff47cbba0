"""A memory broker in a process of its own, and simulated engines that share a device through it, for tests."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.fleet.state import Device
from shoal.memory import messages as m
from shoal.memory.elastic import ElasticTerms
from tests.engines.simulated_process import Answer, Process, until
from tests.memory.tool import Tool

DEVICE = "simulated:0"
BLOCK = 64 << 10
TOKENS = 16
"""Tokens of a block."""

_BROKER = """
import asyncio, sys
from pathlib import Path
from shoal.memory.broker import Broker

async def main():
    await Broker(Path(sys.argv[1])).start()
    print("up", flush=True)
    await asyncio.get_running_loop().create_future()

asyncio.run(main())
"""


class Machine:
    """One device of `blocks` blocks. The books are read all the time, and what must always hold is checked."""

    def __init__(self, blocks: int, *, block: int = BLOCK) -> None:
        self.block = block
        self.size = blocks * block
        self.device = Device(DEVICE, "simulated", "pretended", self.size, 0)
        self.directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="shoal-mem-"))
        self.socket = self.directory / "broker"
        self.engines: dict[str, Process] = {}
        self.looks = 0
        self.broken: list[str] = []
        self.owing = False
        """Whether leases may exceed the budget, because a test has just lowered it."""
        self._processes = ExitStack()
        self._ended = threading.Event()
        self._start_broker()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def engine(self, name: str, *args: str, tokens: int = 256, terms: ElasticTerms | None = None) -> Process:
        """Start an engine whose longest context is `tokens`."""
        terms = replace(terms or ElasticTerms(self.socket, name), socket=self.socket, engine=name)
        sizes = ("--simulated-block-bytes", str(self.block), "--kv-cache-memory-bytes", str(self.size))
        engine = Process(
            ("--model-len", str(tokens), *sizes, "--disable-uvicorn-access-log", *args),
            memory=terms,
            devices=(self.device,),
        )
        self.engines[name] = self._processes.enter_context(engine)
        return engine

    def books(self) -> tuple[m.DeviceState | None, dict[str, m.MemberState]]:
        """The device, and its members by engine."""
        tool = Tool(self.socket)
        try:
            found = tool.list().get(DEVICE)
        finally:
            tool.close()
        return (None, {}) if found is None else (found[0], {member.engine: member for member in found[1]})

    def lease(self, name: str) -> int:
        """Blocks that an engine leases; 0 if it is not there."""
        member = self.books()[1].get(name)
        return 0 if member is None else member.lease // self.block

    async def settles(self, name: str, low: int, high: int) -> None:
        """Wait until an engine leases between `low` and `high` blocks."""

        async def there() -> bool:
            return low <= await asyncio.to_thread(self.lease, name) <= high

        await until(there, f"{name} to lease {low} to {high} blocks; {self.books()}")

    async def agrees(self) -> None:
        """Wait until the broker's books say what the engines say themselves."""

        async def agree() -> bool:
            device, members = await asyncio.to_thread(self.books)
            said = {name: await engine.sample("simulated:kv_lease_bytes") for name, engine in self.engines.items()}
            return device is not None and said == {name: member.lease for name, member in members.items()}

        await until(agree, f"the sums to agree; {self.books()}")

    def say(self, message: m.ToBroker) -> m.FromBroker:
        tool = Tool(self.socket)
        try:
            return tool.say(message)
        finally:
            tool.close()

    def restart_broker(self) -> None:
        """Kill it with SIGKILL, and start another."""
        self.kill_broker()
        self._start_broker()

    def kill_broker(self) -> None:
        self._broker.kill()
        self._broker.wait()

    def _start_broker(self) -> None:
        argv = [sys.executable, "-c", _BROKER, str(self.socket)]
        with (self.directory / "log").open("ab") as log:
            self._broker = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log)
        assert self._broker.stdout is not None
        with self._broker.stdout as said:
            assert said.readline() == b"up\n", (self.directory / "log").read_text()

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self._look()

    def _look(self) -> None:
        with suppress(OSError, EOFError):  # there is no broker while one is restarted
            device, members = self.books()
            if device is None:
                return
            self.looks += 1
            leases = sum(member.lease for member in members.values())
            if leases != device.leased:
                self.broken.append(f"{leases} bytes of leases, and {device.leased} leased")
            if device.leased > device.budget and not self.owing:
                self.broken.append(f"{device.leased} leased of {device.budget}")
            self.broken += [f"{e} backs more than its lease" for e, b in members.items() if b.backed > self.size]

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()  # on a busy machine it may be the first
        self._processes.close()
        self.kill_broker()
        shutil.rmtree(self.directory)
        if kind is None:
            assert not self.broken, self.broken[:5]
            assert self.looks, "nobody looked at the books"


def words(count: int, tag: object) -> str:
    """A prompt of `count` words that no other tag has."""
    return " ".join(f"{tag}-{n}" for n in range(count))


async def complete(engine: Process, tag: object, prompt: int = 16, output: int = 16, **more: Any) -> Answer:
    """Complete a prompt of `prompt` tokens with `output` tokens."""
    body = {"model": "fish", "prompt": words(prompt, tag), "max_tokens": output, "ignore_eos": True, **more}
    return await engine.post("/v1/completions", body)


async def complete_all(engine: Process, tag: object, count: int, prompt: int = 16, output: int = 16) -> None:
    """Complete `count` prompts at once; each has to get all its tokens."""
    answers = await asyncio.gather(*(complete(engine, f"{tag}.{n}", prompt, output) for n in range(count)))
    for answer in answers:
        assert answer.status == 200, answer.text
        assert answer.json["usage"]["completion_tokens"] == output
