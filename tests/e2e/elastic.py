"""Real engines that share a part of the host's memory, through a broker in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import psutil

from shoal.engines.base import Environment
from shoal.engines.pythonpath import python_path
from shoal.engines.vllm import elastic
from shoal.memory.elastic import ElasticTerms
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import BrokerError, BrokerTool
from tests.system.harness import until

MIB = 2**20
START = 600.0
"""Seconds that a start of the real engine may take on a slow machine."""
ANSWER = 300.0
"""Seconds that a request may take there."""
SIZE = 1 << 30
"""Bytes of addresses for each engine's KV cache: far more than it can ever have backed here."""
CONTEXT = 2048
MOST_RUNNING = 16

_KEPT = ("PATH", "HOME", "LANG", "XDG_CACHE_HOME", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    status: int
    body: Any

    @property
    def ids(self) -> list[int]:
        """The tokens that were generated."""
        return list(self.body["choices"][0]["token_ids"])

    @property
    def tokens(self) -> int:
        return int(self.body["usage"]["completion_tokens"])

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were found in the prefix cache."""
        return int((self.body["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def cache_resident(pid: int) -> int | None:
    """Bytes of memory in a process's KV cache, or None if it has none.

    It is known by its flags: no swap reserved for its addresses, and no huge pages where it has memory.
    """
    sizes, size = [], 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            size = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:") and {"nr", "nh"} <= set(line.split()):
            sizes.append(size)
    return sum(sizes) if sizes else None


class Engine:
    """One `vllm serve` in a process group of its own."""

    def __init__(self, name: str, folder: Path, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._socket = folder / f"{name}.sock"
        base = {key: value for key in _KEPT if (value := os.environ.get(key)) is not None}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--uds", str(self._socket)],
                env={**base, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(self._socket), limits=httpx2.Limits(max_connections=64)),
            base_url="http://engine",
            timeout=ANSWER,
        )
        self._threads = ThreadPoolExecutor(64)
        self._worker: psutil.Process | None = None

    def wait_ready(self) -> Engine:
        """Wait until it serves."""

        def ready() -> bool:
            assert self.process.poll() is None, f"{self.name} ended:\n{self.logged()[-4000:]}"
            time.sleep(0.2)
            with socket.socket(socket.AF_UNIX) as there:
                return there.connect_ex(str(self._socket)) == 0

        until(ready, self.name, START)
        self._http.get("/health").raise_for_status()
        return self

    def logged(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def ask(self, prompt: str | Sequence[int], tokens: int = 16, **more: Any) -> Answer:
        """Complete `prompt` with just so many tokens, the likeliest each time."""
        sent = {
            "model": "smol", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **more,
        }  # fmt: skip
        answer = self._http.post("/v1/completions", json=sent)
        return Answer(answer.status_code, answer.json())

    def begin(self, prompt: str | Sequence[int], tokens: int = 16, **more: Any) -> Future[Answer]:
        """The same, without waiting for it."""
        return self._threads.submit(self.ask, prompt, tokens, **more)

    def ask_all(self, prompts: Sequence[str | Sequence[int]], tokens: int = 16) -> list[Answer]:
        """All of them at once."""
        return finish([self.begin(prompt, tokens) for prompt in prompts])

    def stream(self, prompt: str | Sequence[int], tokens: int = 16) -> list[str]:
        """The data of each event of a streamed answer."""
        sent = {"model": "smol", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        with self._http.stream("POST", "/v1/completions", json=sent) as answer:
            return [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]

    def post(self, path: str) -> None:
        """Do what has no body and no answer."""
        self._http.post(path).raise_for_status()

    def metric(self, name: str) -> float:
        """The sum of one of vLLM's metrics."""
        lines = self._http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{re.escape(name)}[{{ ]", line))

    @property
    def worker(self) -> psutil.Process:
        """The process that has the KV cache: no other has memory in such a range."""
        if self._worker is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            (self._worker,) = [process for process in family if cache_resident(process.pid) is not None]
        return self._worker

    @property
    def resident(self) -> int:
        """Bytes of memory that the worker has, in all and by the kernel's word."""
        text = Path(f"/proc/{self.worker.pid}/smaps_rollup").read_text()
        return int(re.findall(r"^Rss:\s+(\d+) kB$", text, re.MULTILINE)[0]) << 10

    @property
    def cache_resident(self) -> int:
        """Bytes of them that lie in its KV cache."""
        return cache_resident(self.worker.pid) or 0

    def kill(self) -> None:
        """End the whole process group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait_gone(self) -> None:
        """Wait until nothing of it is left."""
        self.process.wait(60)
        until(lambda: not _group(self.process.pid), f"the end of {self.name}")

    def stop(self) -> None:
        """End it as whoever runs it would, and fail if anything stays."""
        self.process.terminate()
        try:
            self.wait_gone()
        finally:
            self.kill()
            self.process.wait()
            self._threads.shutdown(cancel_futures=True)
            self._http.close()


def finish(requests: Sequence[Future[Answer]]) -> list[Answer]:
    """The answers of requests that were begun."""
    return [request.result(ANSWER) for request in requests]


class Machine:
    """A broker that leases `budget` bytes of the host, and engines.

    While it is open the books are read all the time, and what must always hold is noted if it does not.
    """

    def __init__(self, environment: Environment, model: Path, budget: int) -> None:
        self.budget = budget
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-e2e-"))
        self.socket = self.folder / "broker.sock"
        self.engines: list[Engine] = []
        self.looks = 0
        self.broken: list[str] = []
        self._environment = environment
        self._model = model
        self._ended = threading.Event()
        self.start_broker()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def stock(self, name: str) -> Engine:
        """Start vLLM as it is, with a KV cache of fixed size."""
        return self._start(name, ("--kv-cache-memory-bytes", str(SIZE // 2)), {})

    def elastic(self, name: str, terms: ElasticTerms | None = None, *more: str) -> Engine:
        """Start vLLM with an elastic KV cache."""
        version = self._environment.version
        terms = replace(terms or ElasticTerms(self.socket, name), socket=self.socket, engine=name)
        env = {"PYTHONPATH": str(python_path(self.folder / "path"))} | elastic.environment(terms, version, "cpu")
        return self._start(name, (*elastic.arguments(version, "cpu", SIZE), *more), env)

    def _start(self, name: str, args: Sequence[str], env: Mapping[str, str]) -> Engine:
        argv = [str(self._environment.python), "-m", "vllm.entrypoints.cli.main", "serve", str(self._model)]
        argv += ["--served-model-name", "smol", "--max-model-len", str(CONTEXT), "--max-num-seqs", str(MOST_RUNNING)]
        # Full precision: with less, two equally likely tokens are common enough to make answers depend on company.
        argv += ["--dtype", "float32", "--enforce-eager", "--enable-prompt-tokens-details"]
        own = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # for /sleep
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "PYTHONSAFEPATH": "1",
        }
        engine = Engine(name, self.folder, [*argv, *args], {**own, **env})
        self.engines.append(engine)
        return engine

    def tool(self) -> BrokerTool:
        """A new connection to the broker."""
        return BrokerTool(self.socket)

    def books(self) -> tuple[DeviceState, dict[str, MemberState]]:
        """The host's memory, and who has leased of it."""
        with self.tool() as tool:
            book = tool.list()["host"]
        return book.device, {member.engine: member for member in book.members}

    def member(self, name: str) -> MemberState:
        return self.books()[1][name]

    def kill_broker(self) -> None:
        """With SIGKILL."""
        self._broker.kill()
        self._broker.wait()

    def start_broker(self) -> None:
        """One on its socket; also after one that was killed."""
        argv = [sys.executable, "-m", "shoal.cli", "memory", "broker", "--socket", str(self.socket)]
        argv += ["--limit", f"host={self.budget}", "--headroom", "0"]
        with (self.folder / "broker.log").open("ab") as log:
            self._broker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

        def up() -> bool:
            assert self._broker.poll() is None, (self.folder / "broker.log").read_text()
            with contextlib.suppress(BrokerError):
                self.tool().close()
                return True
            return False

        until(up, "the broker")

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            # There is no broker while one is restarted, and a new one may know no device yet.
            with contextlib.suppress(BrokerError, KeyError), self.tool() as tool:
                while not self._ended.wait(0.01):
                    book = tool.list()["host"]
                    self.looks += 1
                    leases, device = sum(member.lease for member in book.members), book.device
                    if leases != device.leased or device.leased > min(self.budget, device.budget):
                        self.broken.append(f"{leases} in leases, {device.leased} booked, of {device.budget}")

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder)
            stack.callback(self.kill_broker)
            for engine in self.engines:
                stack.callback(engine.stop)
            self._ended.set()
            self._watcher.join()
        assert not self.broken, self.broken[:5]
        assert self.looks, "nobody looked at the books"


def _group(pgid: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
