"""A whole Shoal in processes of its own, for tests that look at it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import yaml

from shoal.client import Client

T = TypeVar("T")
PATIENCE = 40.0
"""Seconds that anything may take on a slow machine before a test gives up."""


def until(look: Callable[[], T], what: str = "it", seconds: float = PATIENCE) -> T:
    """The first true result of `look`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := look()):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.02)
    return result


class Shoal:
    """`shoal serve` in a folder of its own. Starts with `start`; `stop` ends it and checks that nothing is left."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.runtime = folder / "run"
        self.settings: dict[str, Any] = {
            "port": 0,
            "engine": "simulated",
            "state_dir": str(self.state),
            "runtime_dir": str(self.runtime),
            "restart_delay": 0.2,
            "health_interval": 0.3,
            **(settings or {}),
        }
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.output: list[str] = []
        self.env: dict[str, str] = {}
        self._reader: threading.Thread | None = None

    @property
    def config(self) -> Path:
        return self.folder / "shoal.yaml"

    def write_config(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command without waiting for it."""
        self.write_config()
        return subprocess.Popen(
            [sys.executable, "-m", "shoal.cli", "serve", "--config", str(self.config), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}, **self.env},
        )

    def start(self, *arguments: str) -> Shoal:
        """Start it and wait until it serves."""
        process = self.process = self.launch(*arguments)
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

        def serving() -> bool:
            assert process.poll() is None, f"shoal serve ended:\n{self.text}"
            return bool(self.url)

        self.url = ""
        until(serving, "the address")
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.output.append(line)
                if match := re.search(r"serves on (http://\S+)", line):
                    self.url = match[1]

    @property
    def text(self) -> str:
        """All that it has printed."""
        return "".join(self.output)

    @property
    def client(self) -> Client:
        """The admin API."""
        return Client(self.url)

    def http(self, **options: Any) -> httpx2.Client:
        """Plain HTTP to the public port."""
        return httpx2.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)

    def add(self, name: str, *args: str, **settings: Any) -> None:
        """Declare a model of the simulated engine with these arguments."""
        with self.client as client:
            client.add_model({"name": name, "source": "anything", "args": list(args), **settings})

    def load(self, name: str, instances: int | None = None) -> None:
        """Load a model and wait until it serves."""
        with self.client as client:
            client.load(name, instances=instances)
        self.wait(name, "ready", count=instances or 1)

    def model(self, name: str) -> dict[str, Any]:
        with self.client as client:
            return client.model(name)

    def wait(self, name: str, state: str, count: int = 1, seconds: float = PATIENCE) -> list[dict[str, Any]]:
        """Until so many of the model's instances are in a state; those."""
        seen: list[dict[str, Any]] = []

        def look() -> bool:
            seen[:] = [i for i in self.model(name)["instances"] if i["state"] == state]
            return len(seen) >= count

        try:
            until(look, f"{count} x {name} {state}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(self.model(name), indent=1)}\n{self.text}") from None
        return seen

    def chat(self, model: str, **options: Any) -> httpx2.Response:
        """One chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 4, **options}
        with self.http() as http:
            return http.post("/v1/chat/completions", json=body)

    def pid(self, module: str) -> int:
        """The process that runs a module of Shoal, such as shoal.controller, under this supervisor."""
        assert self.process is not None
        for pid in children(self.process.pid):
            with contextlib.suppress(OSError):
                if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    return pid
        raise AssertionError(f"no {module} runs")

    def fleet_processes(self) -> dict[int, str]:
        """Every process that carries this fleet's mark, engines and their shims: pid → command."""
        try:
            fleet = (self.state / "fleet-id").read_text()
        except OSError:
            fleet = (self.runtime / "fleet-id").read_text() if (self.runtime / "fleet-id").exists() else "none"
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"SHOAL_FLEET={fleet}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def stop(self, *, signals: int = 1) -> int:
        """End it as Ctrl-C does; its exit code. No process may be left."""
        assert self.process is not None
        for _ in range(signals):
            self.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        code = self.process.wait(PATIENCE)
        assert not self.fleet_processes(), "engines were left behind"
        return code

    def destroy(self) -> None:
        """Whatever happened, leave nothing."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._reader is not None:
            self._reader.join(PATIENCE)
        for pid in self.fleet_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextlib.contextmanager
def a_shoal(**settings: Any) -> Iterator[Shoal]:
    """A Shoal that has not been started, in a short folder (Unix sockets allow no long ones)."""
    shoal = Shoal(Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp")), settings)
    try:
        yield shoal
    finally:
        shoal.destroy()
