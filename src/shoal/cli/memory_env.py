"""`shoal memory env`: what a `vllm serve` that is started by hand needs to be elastic."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
import platformdirs
import typer

from shoal.cli.memory_common import Socket, amount, device_key, find_socket, refusals
from shoal.cli.output import print_json
from shoal.cli.shell import AsJson
from shoal.engines.environments import Environments
from shoal.engines.pythonpath import PACKAGE, python_path
from shoal.engines.vllm.elastic import UnsupportedVersionError, Variant, arguments, environment
from shoal.errors import NotFoundError, ShoalError
from shoal.memory.elastic import ElasticTerms
from shoal.memory.messages import Name
from shoal.memory.nvml import HOST, Machine
from shoal.memory.sizes import Amount, format_bytes
from shoal.memory.tools import BrokerError, BrokerTool

HOST_SHARE = 0.75
"""Of what the host has free, for the KV cache of an engine that nobody gave a size."""


@dataclass(frozen=True, slots=True)
class Target:
    """The vLLM that is to be started."""

    version: str
    variant: Variant | None
    command: str


def env(
    vllm: Annotated[
        str | None, typer.Option("--vllm", metavar="VERSION", help="Its version, if it is not on this machine.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            "--python",
            metavar="PATH",
            help="Its interpreter, or the name of an engine environment. Default: that of the vllm on PATH.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where it will run: cuda:0, a GPU's UUID, host. Default: cuda:0, or host for the CPU build."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="How far its KV cache may ever grow on each device: 40GiB, or 80%. Default: the whole GPU, or "
            "75% of what the host has free.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call it at the broker. Default: vllm- and its process id.")
    ] = None,
    floor: Annotated[str, typer.Option(metavar="SIZE", help="What it can always get back: 2GiB, or 5%.")] = "0",
    ceiling: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What it may never exceed, until that is changed: 40GiB, or 80%.")
    ] = None,
    priority: Annotated[int, typer.Option(min=1, max=1000, help="Its weight when engines compete.")] = 100,
    required: Annotated[
        bool, typer.Option("--required", help="Refuse a model whose KV cache cannot be elastic.")
    ] = False,
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Print the variables and flags that make a `vllm serve` elastic, for a shell to read."""
    with refusals():
        path = find_socket(socket)
    target = _target(vllm, python)
    machine = Machine()
    key = _device(machine, device, target)
    variant: Variant = "cpu" if key == HOST else "cuda"
    reading = machine().get(key)
    if reading is None:
        raise NotFoundError(f"device {key} cannot be measured; see shoal doctor", code="no_device")
    whole = reading.total
    most = _size(size, whole, int(reading.free * HOST_SHARE) >> 20 << 20 if variant == "cpu" else whole)
    least = _part("--floor", floor, whole)
    top = None if ceiling is None else _part("--ceiling", ceiling, whole)
    if top is not None and top < least:
        raise typer.BadParameter(f"--floor of {format_bytes(least)} is above the --ceiling of {format_bytes(top)}")
    if least > most:
        raise typer.BadParameter(f"--floor of {format_bytes(least)} is above the --size of {format_bytes(most)}")
    terms = ElasticTerms(
        socket=path,
        engine=_name(name),
        floor=least,
        ceiling=top,
        priority=priority,
        mode="required" if required else "auto",
    )
    try:
        variables = environment(terms, target.version, variant)
        flags = arguments(target.version, variant, most)
    except UnsupportedVersionError as error:
        raise ShoalError(str(error), code="unsupported_version") from None
    folder = str(python_path(_python_folder()))
    if as_json:
        before = os.environ.get("PYTHONPATH")
        variables["PYTHONPATH"] = f"{folder}:{before}" if before else folder
        print_json({"env": variables, "args": flags, "vllm": target.version, "device": key})
    else:
        for line in shell_lines(variables, folder, flags, target.command):
            print(line)
    _warn_without_broker(path)


def shell_lines(variables: dict[str, str], folder: str, flags: list[str], command: str) -> list[str]:
    """What a shell may `eval` and a person may copy."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in variables.items()]
    lines.append(f'export PYTHONPATH={shlex.quote(folder)}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines.append(f"ELASTIC={shlex.quote(shlex.join(flags))}")
    lines.append(f"# then: {shlex.quote(command)} serve MODEL $ELASTIC      (zsh: ${{=ELASTIC}}), which is")
    lines.append(f"# {shlex.quote(command)} serve MODEL {shlex.join(flags)}")
    return lines


def _target(version: str | None, python: str | None) -> Target:
    if version is not None:
        if python is not None:
            raise typer.BadParameter("--vllm and --python: give one of them")
        return Target(version, None, "vllm")
    environments = Environments(_engines_dir())
    if python is not None:
        looks_like_path = "/" in python
        found = environments.get(str(Path(python).expanduser().absolute()) if looks_like_path else python)
        return Target(found.version, _variant(found.variant), str(found.python.parent / "vllm"))
    command = shutil.which("vllm")
    if command is None:
        raise ShoalError(
            "there is no vllm on PATH; name its interpreter with --python, or its version with --vllm "
            "(shoal engines ls lists the environments that Shoal made)",
            code="engine_not_installed",
        )
    found = environments.get(str(_interpreter(Path(command))))
    return Target(found.version, _variant(found.variant), "vllm")


def _engines_dir() -> Path:
    from shoal.config import load_settings

    return load_settings().engines_dir


def _variant(text: str) -> Variant:
    return "cpu" if text == "cpu" else "cuda"


def _interpreter(command: Path) -> Path:
    """The Python that runs an installed command: the one its first line names, or the one beside it."""
    with command.open("rb") as file:
        first = file.readline(512)
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    named = Path(words[0]) if words else None
    if named is not None and named.name.startswith("python") and named.exists():
        return named
    return command.parent / "python"


def _device(machine: Machine, given: str | None, target: Target) -> str:
    if given is None:
        on_host = target.variant == "cpu" or (target.variant is None and not machine.gpus())
        return HOST if on_host else device_key(machine, "cuda:0")
    key = device_key(machine, given)
    if key != HOST and key not in machine.gpus():
        known = [*(f"cuda:{i}" for i in range(len(machine.gpus()))), HOST]
        raise NotFoundError(f"no device {given}; this machine has {', '.join(known)}", code="no_device")
    if target.variant is not None and (target.variant == "cpu") != (key == HOST):
        build = "the CPU build, which runs on host" if target.variant == "cpu" else "a CUDA build, which runs on GPUs"
        raise typer.BadParameter(f"--device {given}: this vLLM {target.version} is {build}")
    return key


def _size(text: str | None, whole: int, default: int) -> int:
    size = default if text is None else _part("--size", text, whole)
    if size <= 0:
        raise typer.BadParameter("--size: a KV cache needs more than nothing")
    return size


def _part(option: str, text: str, whole: int) -> int:
    found: Amount = amount(text)
    size = found.of(whole)
    if size > whole:
        raise typer.BadParameter(f"{option} of {format_bytes(size)} is more than the device has: {format_bytes(whole)}")
    return size


def _name(given: str | None) -> str:
    if given is None:
        return ""
    try:
        return msgspec.convert(given, Name)
    except msgspec.ValidationError:
        raise typer.BadParameter(
            f"--name {given!r}: up to 128 characters, none of them a quote, backslash or control character"
        ) from None


def _python_folder() -> Path:
    # One for each installation of Shoal: an engine that runs must not find another's modules under its feet.
    mark = sha256(os.fsencode(PACKAGE)).hexdigest()[:8]
    return platformdirs.user_cache_path("shoal") / f"python-{mark}"


def _warn_without_broker(path: Path) -> None:
    try:
        BrokerTool(path, timeout=2.0).close()
    except BrokerError as error:
        print(f"warning: {error}", file=sys.stderr)
