"""How things look in `shoal top`: characters, and colours that only say again what a word or a shape says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from shoal.cli.top_tins import ORDER, Kind, Tin, bar, marks, spans

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_blue", "bright_green")
"""Of models, in the terminal's own palette; red is for what is wrong."""

WORDS: Mapping[Kind, str] = {
    "weights": "weights",
    "used": "KV in use",
    "cached": "KV cached",
    "other": "graphs, other",
    "others": "other processes",
    "held": "held back",
    "free": "free",
}
_SHORT: Mapping[Kind, str] = {
    "weights": "weights",
    "used": "KV used",
    "cached": "cached",
    "other": "other",
    "others": "others",
    "held": "held",
    "free": "free",
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One character for each part of a bar, and for each state of a model."""

    parts: Mapping[Kind, str]
    states: Mapping[str, str]
    floor: str
    ceiling: str
    span: str
    rule: str
    dot: str
    cut: str


_STATES = ("ready", "waking", "starting", "queued", "sleeping", "draining", "stopping", "failed", "unloaded")
_PARTS: tuple[Kind, ...] = ("weights", "used", "cached", "other", "others", "held", "free")
SHAPES = Glyphs(dict(zip(_PARTS, "█▓▒░╱╌·", strict=True)), dict(zip(_STATES, "●◐◐○☾▽▽✕–", strict=True)),
                "▲", "▼", "─", "─", "·", "…")  # fmt: skip
ASCII = Glyphs(dict(zip(_PARTS, "#=-o/+.", strict=True)), dict(zip(_STATES, "*>>?zvvX ", strict=True)),
               "^", "v", "_", "-", "|", "~")  # fmt: skip
"""For terminals that have no more."""


def colours(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A colour for each model that it keeps when others come."""
    ordered = sorted(models, key=lambda one: (one["created_at"], one["name"]))
    return {one["name"]: COLOURS[index % len(COLOURS)] for index, one in enumerate(ordered)}


def drawn(tin: Tin, width: int, glyphs: Glyphs, colour: Mapping[str, str]) -> Text:
    """A bar of exactly `width` characters."""
    text = Text()
    for piece in bar(tin, width):
        style = colour.get(piece.model, "") if piece.model else "dim"
        text.append(glyphs.parts[piece.kind] * piece.cells, style)
    return text


def marked(tin: Tin, width: int, glyphs: Glyphs, colour: Mapping[str, str], selected: str) -> Text:
    """What belongs below the bar: floors, ceilings, and a line below the part of the model that is selected."""
    cells = [(" ", "")] * width
    start, end = spans(tin, width, selected)
    cells[start:end] = [(glyphs.span, "")] * (end - start)
    for at, kind, model in marks(tin, width):
        cells[at] = (glyphs.floor if kind == "floor" else glyphs.ceiling, colour.get(model, ""))
    return Text.assemble(*cells) if cells else Text()


def legend(tins: Sequence[Tin], glyphs: Glyphs, width: int) -> Text:
    """What the characters mean, of those that are there: in short words if it is narrow, and only what there is room
    for."""
    kinds: set[Kind] = {"free"}
    if any(tin.holdings for tin in tins):
        kinds.update(ORDER)
    if any(tin.others for tin in tins):
        kinds.add("others")
    if any(tin.held_back for tin in tins):
        kinds.add("held")
    holdings = [one for tin in tins for one in tin.holdings]
    limits = [f"{glyphs.floor} floor"] if any(one.floor for one in holdings) else []
    limits += [f"{glyphs.ceiling} ceiling"] if any(one.ceiling for one in holdings) else []
    shown = "  ".join([*(f"{glyphs.parts[kind]} {WORDS[kind]}" for kind in _PARTS if kind in kinds), *limits])
    if len(shown) > width:
        words = [*(f"{glyphs.parts[kind]} {_SHORT[kind]}" for kind in _PARTS if kind in kinds), *limits]
        while len(shown := " ".join(words)) > width and words:
            words.pop()
    return Text(shown, style="dim")
