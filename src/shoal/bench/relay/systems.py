"""The systems that are compared, each started in front of the same upstreams, on the proxy's core."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from shoal.gateway import sharing
from shoal.gateway.link import save_table
from shoal.messages import Key, Route, RoutingTable, Target
from shoal.net import TcpAddress, UnixAddress

from ..processes import Processes, Running
from . import bodies, nginx
from .controller import Controller
from .cores import Cores, starting_on

HOST = "127.0.0.1"
MODELS = (bodies.ANSWERS, *bodies.STREAMS)
CAPACITY = 256
"""Requests at once that an instance is said to run, so that admission counts and never refuses."""
WORKERS = 4
"""Of how many relays `shared` is one."""
START_TIMEOUT = 90.0


class MissingError(RuntimeError):
    """A system cannot run on this machine. The message says what is missing."""


@dataclass(frozen=True, slots=True)
class System:
    """Something to send requests to: the port for each model, and the process that serves it, if there is a proxy."""

    name: str
    ports: Mapping[str, int]
    serving: Mapping[str, Running] = field(default_factory=dict)
    controller: Controller | None = None
    holds: Path | None = None
    """Where a counted relay says what it holds (see `counted`)."""

    def pids(self, model: str) -> list[int]:
        """The processes between client and engine."""
        return [self.serving[model].process.pid] if model in self.serving else []


@dataclass(frozen=True, slots=True)
class Engine:
    """Where a fake engine listens: on a Unix socket, as Shoal's engines do, and on a port for who knows no sockets."""

    port: int
    socket: Path


@dataclass(slots=True)
class Stage:
    """Where systems are started. `upstreams` has the engine for each model; `stack` ends what is no process."""

    processes: Processes
    stack: ExitStack
    cores: Cores
    folder: Path
    venvs: Path
    key: str = field(default_factory=lambda: f"sk-bench-{secrets.token_hex(12)}")
    upstreams: dict[str, Engine] = field(default_factory=dict)
    tcp: bool = False
    """Whether engines are reached by their ports even by those that could use their sockets."""
    reserved: set[int] = field(default_factory=set)

    def place(self, name: str) -> Path:
        """A new folder for what `name` writes."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def address(self, engine: Engine) -> UnixAddress | TcpAddress:
        """Where a proxy that knows Unix sockets reaches an engine."""
        return TcpAddress(HOST, engine.port) if self.tcp else UnixAddress(engine.socket)

    def port(self) -> int:
        """A free port, never the same twice."""
        while True:
            with socket.create_server((HOST, 0)) as sock:
                port = int(sock.getsockname()[1])
            if port not in self.reserved:
                self.reserved.add(port)
                return port

    def listening(self, name: str, argv: list[str], core: int, fds: Sequence[int] = ()) -> tuple[Running, int]:
        """Start a process that serves an inherited socket, its standard input; the port too."""
        with socket.create_server((HOST, 0), backlog=2048) as sock, starting_on(core):
            return self.processes.start(name, argv, stdin=sock.fileno(), fds=fds), int(sock.getsockname()[1])


def start_upstreams(stage: Stage, core: int) -> dict[str, Engine]:
    """Start the fake engine, and nginx for what is no stream if this machine has it; the engine for each model."""
    path = stage.place("upstream") / "e.sock"
    argv = [sys.executable, "-m", "shoal.bench.relay.upstream", "--fd", "0", "--uds", str(path)]
    running, port = stage.listening(f"upstream-{core}", argv, core)
    engines, serving = dict.fromkeys(MODELS, Engine(port, path)), dict.fromkeys(MODELS, running)
    if (binary := nginx.binary()) is not None:
        folder = stage.place("upstream-nginx")
        answers = engines[bodies.ANSWERS] = Engine(stage.port(), folder / "e.sock")
        config = folder / "nginx.conf"
        config.write_text(nginx.answering(folder, answers.port, answers.socket))
        with starting_on(core):
            serving[bodies.ANSWERS] = stage.processes.start(f"upstream-nginx-{core}", nginx.command(binary, config))
    wait(stage, System("upstream", _ports(engines), serving))
    return engines


def direct(stage: Stage) -> System:
    """No proxy: load and upstream where they are for the others too, with two cores on the same one."""
    return System("direct", _ports(stage.upstreams))


def across(stage: Stage) -> System:
    """No proxy, and the upstream on the core that is the proxy's: what it costs alone that a hop crosses cores."""
    return System("across", _ports(start_upstreams(stage, stage.cores.proxy)))


def nginx_proxy(stage: Stage) -> System:
    """nginx with one worker. Raises MissingError if this machine has none."""
    binary = nginx.binary()
    if binary is None:
        raise MissingError("nginx is not installed: `apt-get install nginx-light`, or leave it out by --systems")
    folder = stage.place("nginx")
    ports = {engine: stage.port() for engine in set(stage.upstreams.values())}
    config = folder / "nginx.conf"
    config.write_text(nginx.passing(folder, {port: stage.address(engine) for engine, port in ports.items()}))
    with starting_on(stage.cores.proxy):
        running = stage.processes.start("nginx", nginx.command(binary, config))
    return _of("nginx", {model: ports[engine] for model, engine in stage.upstreams.items()}, running)


def table(stage: Stage, workers: int = 1) -> RoutingTable:
    """A routing table with the upstreams as instances, and a key that every request needs. Each of so many relays lets
    `CAPACITY` requests run."""
    routes = tuple(
        Route(
            model=model,
            state="ready",
            created=0,
            targets=(Target(f"{model}-0", str(stage.address(engine)), capacity=CAPACITY * workers),),
        )
        for model, engine in stage.upstreams.items()
    )
    key = Key(
        id="bench",
        name="bench",
        digest=hashlib.sha256(stage.key.encode()).hexdigest(),
        # Limits that are never met are kept account of all the same.
        requests_per_minute=10**9,
        tokens_per_minute=10**12,
        concurrent=10**6,
    )
    return RoutingTable(epoch="bench", version=1, routes=routes, keys=(key,), keys_required=True)


def relay_kinds() -> tuple[str, ...]:
    """The relays that `python -m shoal.gateway` can be told to run; empty if there is nothing to choose."""
    helped = subprocess.run(
        [sys.executable, "-m", "shoal.gateway", "--help"], capture_output=True, text=True, check=True
    ).stdout
    _, found, rest = helped.partition("--relay {")
    return tuple(rest.partition("}")[0].split(",")) if found else ()


def shoal_relay(kind: str, name: str = "", workers: int = 1, *, counted: bool = False) -> Callable[[Stage], System]:
    """Our own relay, `native` or `aiohttp`, as `shoal serve` runs it, with a controller that takes its reports. One of
    several `workers` shares with them what keys have used; the others are not started. `counted`: as in `counted.py`.

    Starting it raises MissingError if there is no such relay.
    """
    name = name or kind

    def start(stage: Stage) -> System:
        kinds = relay_kinds()
        if kinds and kind not in kinds:
            raise MissingError(f"python -m shoal.gateway has no relay {kind!r}, only {', '.join(kinds)}")
        if not kinds and kind != "aiohttp":
            raise MissingError(f"python -m shoal.gateway cannot be told to run the relay {kind!r}")
        folder = stage.place(f"shoal-{name}")
        fds: tuple[int, ...] = ()
        settings = "{}"
        if workers > 1:
            fds = (sharing.create(),)
            stage.stack.callback(os.close, fds[0])
            settings = json.dumps({"relay_workers": workers, "limits_fd": fds[0]})
        routing = table(stage, workers)
        save_table(folder / "table.json", routing)
        controller = stage.stack.enter_context(Controller(folder / "relay.sock", routing))
        holds = folder / "blocks" if counted else None
        argv = [
            *(sys.executable, "-m"),
            *(("shoal.gateway",) if holds is None else ("shoal.bench.relay.counted", str(holds))),
            *("--fd", "0", *(("--relay", kind) if kinds else ())),
            *("--controller", str(folder / "controller.sock")),
            *("--relay-socket", str(folder / "relay.sock"), "--table", str(folder / "table.json")),
            *("--settings", settings),
        ]
        running, port = stage.listening(name, argv, stage.cores.proxy, fds)
        return dataclasses.replace(_of(name, dict.fromkeys(stage.upstreams, port), running, controller), holds=holds)

    return start


def litellm(stage: Stage) -> System:
    """LiteLLM's proxy with one worker and a master key."""
    python = venv(stage, "litellm", "litellm[proxy]")
    folder, port = stage.place("litellm"), stage.port()
    models = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": f"http://{HOST}:{engine.port}/v1",
                "api_key": "x",
            },
        }
        for model, engine in stage.upstreams.items()
    ]
    config = folder / "config.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": stage.key}}))
    argv = [
        *(str(python.parent / "litellm"), "--config", str(config)),
        *("--host", HOST, "--port", str(port), "--num_workers", "1"),
    ]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    with starting_on(stage.cores.proxy):
        running = stage.processes.start("litellm", argv, env)
    return _of("litellm", dict.fromkeys(stage.upstreams, port), running)


def vllm_router(stage: Stage) -> System:
    """vllm-router; it sends every model to every worker, so there is one for each upstream."""
    python = venv(stage, "vllm-router", "vllm-router")
    served: dict[Engine, tuple[Running, int]] = {}
    for engine in dict.fromkeys(stage.upstreams.values()):
        port = stage.port()
        argv = [
            *(str(python), "-m", "vllm_router.launch_router", "--host", HOST, "--port", str(port)),
            *("--worker-urls", f"http://{HOST}:{engine.port}", "--policy", "round_robin"),
            *("--prometheus-host", HOST, "--prometheus-port", str(stage.port()), "--log-level", "error"),
        ]
        with starting_on(stage.cores.proxy):
            served[engine] = stage.processes.start(f"vllm-router-{len(served)}", argv), port
    return System(
        "vllm-router",
        {model: served[engine][1] for model, engine in stage.upstreams.items()},
        {model: served[engine][0] for model, engine in stage.upstreams.items()},
    )


SYSTEMS: Mapping[str, Callable[[Stage], System]] = {
    "direct": direct,
    "across": across,
    "nginx": nginx_proxy,
    "aiohttp": shoal_relay("aiohttp"),
    "native": shoal_relay("native"),
    "shared": shoal_relay("native", "shared", WORKERS),
    "litellm": litellm,
    "vllm-router": vllm_router,
}
OURS = ("native", "aiohttp")


def venv(stage: Stage, name: str, requirement: str) -> Path:
    """The interpreter of an environment that has `requirement`, made at the first use. Raises MissingError."""
    folder = stage.venvs / name
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
        ):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise MissingError(f"{requirement} cannot be installed into {folder}: {made.stderr[-1000:]}")
        done.touch()
    return python


def wait(stage: Stage, system: System, timeout: float = START_TIMEOUT) -> None:
    """Wait until every model is answered. Raises DiedError, or TimeoutError with the last answer."""
    deadline = time.monotonic() + timeout
    for model, port in system.ports.items():
        while (said := _ask(port, model, stage.key)) != "200":
            if model in system.serving:
                system.serving[model].check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{system.name} does not serve {model!r}: {said}")
            time.sleep(0.05)


def _ask(port: int, model: str, key: str) -> str:
    """What one request comes to: its status, with the body if that is not 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", bodies.PATH, bodies.chat(model), headers)
        response = connection.getresponse()
        if response.status == 200:
            return "200"
        return f"{response.status} {response.read(500)!r}"
    except (http.client.HTTPException, OSError) as error:
        return repr(error)
    finally:
        connection.close()


def _ports(engines: Mapping[str, Engine]) -> dict[str, int]:
    return {model: engine.port for model, engine in engines.items()}


def _of(name: str, ports: Mapping[str, int], running: Running, controller: Controller | None = None) -> System:
    return System(name, ports, dict.fromkeys(ports, running), controller)
