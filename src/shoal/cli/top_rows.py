"""The models of `shoal top`: which, in which order, and a row of words for each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from shoal.cli.output import STATE_STYLE, progress_words
from shoal.cli.top_looks import SHAPES, Glyphs
from shoal.cli.top_state import Fleet
from shoal.cli.top_words import ago, brief, fit, label, rate, right, size

View = Mapping[str, Any]

_GROUPS = ("ready", "waking", "starting", "queued", "draining", "stopping", "failed", "sleeping", "unloaded")
ORDERS = ("state", "name", "requests/s", "tokens/s", "waiting", "KV", "last use")
_WIDEST_NAME = 40
_NARROWEST_NAME = 14
_NARROWEST_NOTE = 20


@dataclass(frozen=True, slots=True)
class Looking:
    """What a person has chosen: a model, one of `ORDERS`, words that models have to have, and characters."""

    selected: str = ""
    order: str = ORDERS[0]
    search: str = ""
    glyphs: Glyphs = SHAPES


def kv(model: View) -> tuple[int, int] | None:
    """KV cache in use and cached, in bytes over all devices; None if it leases none."""
    memories = [one["memory"] for one in model["instances"] if one["memory"]["lease"] is not None]
    if not memories:
        return None
    used = sum(one["used"] or 0 for one in memories)
    return used, max(0, sum(one["backed"] or 0 for one in memories) - used)


def _keys(fleet: Fleet) -> dict[str, Callable[[View], float]]:
    return {
        "state": lambda model: _GROUPS.index(model["state"]) if model["state"] in _GROUPS else len(_GROUPS),
        "name": lambda _: 0,
        "requests/s": lambda model: -fleet.rates_of(model["name"]).requests,
        "tokens/s": lambda model: -fleet.rates_of(model["name"]).tokens,
        "waiting": lambda model: -fleet.rates_of(model["name"]).waiting,
        "KV": lambda model: -sum(kv(model) or (0, 0)),
        "last use": lambda model: -fleet.last_use.get(model["name"], 0.0),
    }


def arranged(fleet: Fleet, looking: Looking) -> list[View]:
    """The models that have every word that is searched for, in order; larger numbers come first."""
    words = looking.search.lower().split()

    def has(model: View) -> bool:
        spec = model["spec"]
        devices = [device for one in model["instances"] for device in one["devices"]]
        text = " ".join([model["name"], spec["source"], spec["engine"], model["state"], *devices]).lower()
        return all(word in text for word in words)

    key = _keys(fleet)[looking.order]
    return sorted(filter(has, fleet.models.values()), key=lambda model: (key(model), model["name"].lower()))


def beside(names: Sequence[str], selected: str, step: int) -> str:
    """The name `step` further on in a list, or at its end; the first if what was selected is not there."""
    if not names:
        return ""
    if selected not in names:
        return names[0]
    return names[max(0, min(len(names) - 1, names.index(selected) + step))]


def note(model: View) -> str:
    """What a model waits for or suffers from, in one line; empty if it serves."""
    found = [one for one in model["instances"] if one["state"] == model["state"]] or list(model["instances"])
    if not found or found[0]["state"] == "ready":
        waiting = sum(one["memory"]["waiting"] or 0 for one in model["instances"])
        wait = "request waits" if waiting == 1 else "requests wait"
        return f"{waiting} {wait} for memory" if waiting else ""
    one = found[0]
    if one.get("failure"):
        return label(" ".join(part for part in (one["failure"]["message"], one["failure"].get("hint")) if part))
    if one["state"] == "starting" and one.get("progress"):
        return label(progress_words(one["progress"]))
    return label(one.get("reason") or "")


@dataclass(frozen=True, slots=True)
class Columns:
    """How wide what is. `numbers` are those that there is room for."""

    name: int
    numbers: tuple[tuple[str, int], ...]
    note: int


_NUMBERS = (("REQ/S", 5), ("TOK/S", 5), ("RUN", 3), ("WAIT", 4), ("TTFT 50/95", 11), ("KV/CACHED", 11), ("USED", 4))
_GIVEN_UP = ("USED", "TOK/S", "TTFT 50/95", "RUN", "REQ/S", "KV/CACHED", "WAIT")
_KEPT = ("KV/CACHED", "USED")
_STATE = 10
_FIXED = 2 + 1 + 1 + _STATE  # the mark of what is selected, a pin, a space, the state


def columns(width: int, longest: int) -> Columns:
    """The columns of a table of `width` characters, for names of at most `longest`. Where it is narrow, numbers go
    before names."""
    numbers = dict(_NUMBERS)
    for number in _GIVEN_UP:
        if width - _FIXED - sum(1 + one for one in numbers.values()) >= _NARROWEST_NAME:
            break
        del numbers[number]
    left = max(1, width - _FIXED - sum(1 + one for one in numbers.values()))
    name = min(left, _WIDEST_NAME, max(_NARROWEST_NAME, longest))
    if left - name - 1 < _NARROWEST_NOTE:
        name = left
    return Columns(name, tuple(numbers.items()), max(0, left - name - 1))


def header(shape: Columns, title: str) -> Text:
    """The names of the columns; `title` stands above the names of models."""
    line = f"  {fit(title, shape.name)}  {fit('STATE', _STATE)}"
    line += "".join(f" {right(name, width)}" for name, width in shape.numbers)
    return Text(line + (f" {fit('NOTE', shape.note)}" if shape.note else ""), style="bold underline")


def row(model: View, fleet: Fleet, looking: Looking, shape: Columns, colour: str, now: float) -> Text:
    """A model in one line. One that does not serve has no rates: there it says what it waits for."""
    chosen = model["name"] == looking.selected
    state = str(model["state"])
    line = Text()
    line.append("> " if chosen else "  ", "bold")
    line.append(fit(label(model["name"]), shape.name), colour)
    line.append("P " if model["spec"].get("pin") else "  ", "bold")
    line.append(fit(f"{looking.glyphs.states.get(state, '?')} {label(state)}", _STATE), STATE_STYLE.get(state, ""))
    words = note(model)
    style = "red" if state == "failed" else ""
    numbers = _numbers(model, fleet, now)
    # What a row has to say beyond numbers stands in their place, unless there is a column for it.
    room = sum(1 + width for name, width in shape.numbers if name not in _KEPT) - 1
    instead = bool(words) and state != "ready" and not shape.note and room > 0
    if instead:
        waiting = fleet.rates_of(model["name"]).waiting
        words = f"{waiting} wait; {words}" if waiting else words
        line.append(f" {fit(words, room)}", style)
    for name, width in shape.numbers:
        if not instead or name in _KEPT:
            line.append(f" {right(numbers[name], width)}")
    if shape.note:
        line.append(f" {fit(words, shape.note)}", style)
    return Text(line.plain, style="bold reverse") if chosen else line


def _numbers(model: View, fleet: Fleet, now: float) -> dict[str, str]:
    found = fleet.rates_of(model["name"])
    used = fleet.last_use.get(model["name"])
    memory = kv(model)
    return {
        "REQ/S": rate(found.requests),
        "TOK/S": rate(found.tokens),
        "RUN": str(found.running or "-"),
        "WAIT": str(found.waiting or "-"),
        "TTFT 50/95": "-" if found.p50 is None else f"{brief(found.p50)}/{brief(found.p95 or 0.0)}",
        "KV/CACHED": "-" if memory is None or not any(memory) else f"{size(memory[0])}/{size(memory[1])}",
        "USED": "-" if used is None else ago(max(0.0, now - used)),
    }
