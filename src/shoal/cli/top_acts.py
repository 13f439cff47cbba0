"""What a key does to a model: the call of the API, the command that does the same, and what would be lost. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.memory.sizes import Amount

if TYPE_CHECKING:
    from shoal.client import Client

View = Mapping[str, Any]
Limit = Literal["floor", "ceiling"]
_ENDED = ("stopped", "failed")


@dataclass(frozen=True, slots=True)
class Act:
    """Something to do with a model. `ask` is what to ask before: empty where nothing is lost."""

    model: str
    command: str
    call: Callable[[Client], View]
    ask: str = ""


def load(model: View) -> Act:
    """Start it, or try again."""
    name = model["name"]
    return Act(name, _command("load", name), lambda client: client.load(name))


def unload(model: View) -> Act:
    """End it; that is asked for, if there is something to end."""
    name = model["name"]
    states = {one["state"] for one in model["instances"]} - set(_ENDED)
    if "ready" in states:
        lost = "Running requests may finish. What is in its KV cache is lost."
    elif "sleeping" in states:
        lost = "Its weights leave the host's memory: the next load reads them from disk."
    else:
        lost = "What has been loaded so far is lost."
    ask = f"Unload {name}? {lost}" if states else ""
    return Act(name, _command("unload", name), lambda client: client.unload(name), ask)


def sleep(model: View) -> Act:
    """Put it to sleep at level 1."""
    name = model["name"]
    return Act(name, _command("sleep", name), lambda client: client.sleep(name))


def wake(model: View) -> Act:
    """Wake it."""
    name = model["name"]
    return Act(name, _command("wake", name), lambda client: client.wake(name))


def pin(model: View) -> Act:
    """Pin it, or take the pin away."""
    name, pinned = model["name"], bool(model["spec"].get("pin"))
    command = _command("models", "set", "--no-pin" if pinned else "--pin", name)
    return Act(name, command, lambda client: client.change_model(name, {"pin": not pinned}))


def limit(model: View, which: Limit, text: str, devices: Sequence[View]) -> Act:
    """Set a floor or a ceiling: bytes such as `8GiB`, a part of the smallest device that it is on such as `20%`, or for
    a ceiling `none`. Raises ValueError where `text` is none of these, or a part of no device."""
    name = model["name"]
    size = None if which == "ceiling" and text.strip().lower() == "none" else _bytes(model, text.strip(), devices)
    command = _command("models", "set", f"--{which}", "none" if size is None else str(size), name)
    return Act(name, command, lambda client: client.change_model(name, {which: size}))


def _bytes(model: View, text: str, devices: Sequence[View]) -> int:
    amount = Amount.parse(text)
    if amount.share is None:
        return amount.size
    names = {device for one in model["instances"] if one["state"] not in _ENDED for device in one["devices"]}
    if not names and isinstance(model["spec"].get("devices"), list):
        names = set(model["spec"]["devices"])
    sizes = [device["memory_total"] for device in devices if device["id"] in names and device["memory_total"]]
    if not sizes:
        raise ValueError(f"{model['name']} is on no device that {text} could be a part of; give a size such as 8GiB")
    return amount.of(min(sizes))


def _command(*words: str) -> str:
    *head, name = words
    return shlex.join(["shoal", *head, *(["--"] if name.startswith("-") else []), name])
