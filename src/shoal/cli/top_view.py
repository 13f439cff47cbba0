"""The picture that `shoal top` draws, line by line: from what is known of the fleet to texts that fit. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from shoal.cli.output import STATE_STYLE
from shoal.cli.top_empty import all_failed, no_gpu
from shoal.cli.top_looks import WORDS, colours, drawn, legend, marked
from shoal.cli.top_rows import Looking, arranged, columns, header, note, row
from shoal.cli.top_state import Fleet
from shoal.cli.top_tins import ORDER, Tin, spans, tin_of
from shoal.cli.top_words import clock, fit, label, of, right, wrapped
from shoal.units import format_bytes, format_seconds

View = Mapping[str, Any]

_KEYS = (("l", "load"), ("u", "unload"), ("s", "sleep"), ("w", "wake"), ("p", "pin"), ("f", "floor"), ("c", "ceiling"),
         ("/", "search"), ("o", "order"), ("?", "help"), ("q", "leave"))  # fmt: skip
_SEEN = 40
"""What has no place in a bar of so many characters is not marked below it."""
_FEWEST = 12
"""Lines that devices, models and what explains them keep before there is room for next steps."""
_DROPPED = ("order", "search", "ceiling", "floor", "pin", "wake", "sleep", "unload", "load")


@dataclass(frozen=True, slots=True)
class Room:
    """How many lines there are for what; their sum is the height, with `blank` left over."""

    devices: int
    marks: bool
    legend: int
    models: int
    details: int
    events: int
    blank: int


def allot(height: int, *, devices: int, marked: int, models: int, details: int, events: int) -> Room:
    """Share `height` lines out: some models and the devices first, what explains them after that, marks and more events
    last. `models` counts their header; `marked` are the devices that have marks below them."""
    left = max(0, height)

    def take(wanted: int) -> int:
        nonlocal left
        given = max(0, min(wanted, left))
        left -= given
        return given

    rows = take(min(models, 4))
    shown = take(min(devices, max(1, left // 2)))
    told = take(details)
    explained = take(1 if devices else 0)
    heard = take(min(events, 2))
    rows += take(min(models, 9) - rows)
    marks = 0 < marked <= left
    if marks:
        take(marked)
    rows += take(models - rows)
    heard += take(min(events, 8) - heard)
    return Room(shown, marks, explained, rows, told, heard, left)


def head(fleet: Fleet, url: str, width: int, now: float) -> list[Text]:
    """What runs where and how it is; below it, why nothing is heard any more."""
    if not fleet.known:
        lines = [Text(fit(f"shoal at {label(url)}", width), style="bold")]
        return [*lines, *_old(f"not connected: {label(fleet.lost)}", width)] if fleet.lost else lines
    status = fleet.status
    counts = ", ".join(f"{count} {label(state)}" for state, count in _counts(fleet).items())
    words = f"shoal {status['version']} at {label(url).removeprefix('http://')}"
    faults = _faults(status)
    state = "OLD" if fleet.lost else "live"
    text = f"{words}  {counts or 'nothing runs'}{'  ' + faults if faults else ''}"
    first = Text(fit(text, max(0, width - len(state) - 1)), style="bold")
    first.append(f" {state}", style="bold reverse" if fleet.lost else "bold green")
    first.truncate(width)
    if not fleet.lost:
        return [first]
    since = f"as of {clock(fleet.heard_at)}, {format_seconds(max(0.0, now - fleet.heard_at))} ago; trying again"
    return [first, *_old(f"{since}: {label(fleet.lost)}", width)]


def _counts(fleet: Fleet) -> dict[str, int]:
    counts: dict[str, int] = {}
    for model in fleet.models.values():
        for one in model["instances"]:
            counts[one["state"]] = counts.get(one["state"], 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (item[0] != "ready", item[0])))


def _faults(status: View) -> str:
    found = []
    if not status.get("relays"):
        found.append("NO RELAY")
    if not status["memory"]["ok"]:
        found.append("NO BROKER")
    if not status["store"]["ok"]:
        found.append("NOT SAVED")
    return " ".join(found)


def _old(text: str, width: int) -> list[Text]:
    return [Text(fit(line, width), style="bold reverse red") for line in wrapped(text, max(1, width), 2)]


def keys(width: int) -> Text:
    """What the keys do, as much as there is room for; `?` and `q` always."""
    shown = list(_KEYS)
    for word in _DROPPED:
        if sum(len(key) + len(name) + 3 for key, name in shown) - 2 <= width:
            break
        shown = [one for one in shown if one[1] != word]
    line = Text()
    for key, word in shown:
        line.append("  " if line else "")
        line.append(key, "bold")
        line.append(f" {word}", "dim")
    line.truncate(width)
    return line


def body(fleet: Fleet, looking: Looking, width: int, height: int, now: float) -> list[Text]:
    """Everything between the head and the keys: `height` lines of at most `width` cells. What is old is dim."""
    if fleet.lost:
        now = fleet.heard_at  # what is old must not seem to live
    if not fleet.known:
        return [Text()] * height
    models = arranged(fleet, looking)
    picked = next((one for one in models if one["name"] == looking.selected), None)
    tins = [tin_of(device, list(fleet.models.values())) for device in fleet.devices]
    told = [] if picked is None else details(picked, fleet, tins, looking, width, now)
    heard = [_event(one, width) for one in fleet.events]
    steps = _steps(fleet, width, height - _FEWEST)
    room = allot(
        height - len(steps),
        devices=max(1, len(tins)),
        marked=sum(_has_marks(tin, looking.selected) for tin in tins),
        models=max(2, 1 + len(models)),
        details=len(told),
        events=len(heard),
    )
    lines = _devices(fleet, tins, looking, width, room)
    if room.legend and tins:
        hidden = f"+{len(tins) - room.devices} devices  " if len(tins) > room.devices else ""
        lines.append(Text.assemble((hidden, "bold"), legend(tins, looking.glyphs, width - len(hidden))))
    lines += [*steps, *_table(models, fleet, looking, width, room.models, now)]
    blank = [Text()] * (height - len(lines) - room.details - room.events)
    lines += [*blank, *told[: room.details], *heard[len(heard) - room.events :]]
    for line in lines:
        line.truncate(width)
        line.plain = line.plain.replace("…", looking.glyphs.cut)
        if fleet.lost:
            line.stylize("dim")
    return lines[:height]


def _steps(fleet: Fleet, width: int, room: int) -> list[Text]:
    """What to do next where there is no GPU, or where all models have failed, which goes first where there is no room
    for both."""
    gpu = [Text(fit(line, width).rstrip(), style="dim") for line in no_gpu(fleet)]
    found: list[Text] = []
    if (failed := all_failed(list(fleet.models.values()))) is not None:
        found.append(Text(fit(failed.head, width).rstrip(), style="bold red"))
        found += [Text(line) for line in wrapped(failed.why, max(1, width), 2)]
        both = f"{failed.step} {failed.log}"  # a command is not broken: two lines if it does not fit into one
        lines = [both] if cell_len(both) <= width else [failed.step, failed.log]
        found += [Text(fit(line, width).rstrip()) for line in lines]
    return [*gpu, *found] if len(gpu) + len(found) <= room else found[: max(0, room)]


def _has_marks(tin: Tin, selected: str) -> bool:
    start, end = spans(tin, _SEEN, selected)
    return end > start or any(one.floor or one.ceiling for one in tin.holdings)


def _devices(fleet: Fleet, tins: Sequence[Tin], looking: Looking, width: int, room: Room) -> list[Text]:
    if not tins:
        return [Text(fit("No devices found. See what is missing: shoal doctor", width))][: room.devices]
    colour = colours(list(fleet.models.values()))
    shown = _shown(fleet, looking.selected, room.devices)
    name_width = min(16, max(cell_len(_device_name(fleet.devices[index])) for index in shown))
    sizes = {index: of(tins[index].used, tins[index].total) for index in shown}
    size_width = max(map(len, sizes.values()))
    readings = {index: _readings(fleet.devices[index], width) for index in shown}
    reading_width = max(map(cell_len, readings.values()))
    bar_width = max(8, width - name_width - size_width - reading_width - 8 - 2 * bool(reading_width))
    lines = []
    for index in shown:
        tin = tins[index]
        share = f"{100 * tin.used / tin.total:.0f} %" if tin.total else ""
        line = Text.assemble((fit(_device_name(fleet.devices[index]), name_width), "bold"), " ")
        line.append_text(drawn(tin, bar_width, looking.glyphs, colour))
        line.append(f" {right(share, 5)} {right(sizes[index], size_width)}")
        if reading_width:
            line.append(f"  {readings[index]}", "red" if fleet.devices[index]["error"] else "dim")
        lines.append(line)
        if room.marks and _has_marks(tin, looking.selected):
            below = marked(tin, bar_width, looking.glyphs, colour, looking.selected)
            lines.append(Text.assemble(" " * (name_width + 1), below))
    return lines


def _device_name(device: View) -> str:
    return label(device["id"])


def _readings(device: View, width: int) -> str:
    if device["error"]:
        return fit(label(device["error"]), 24).rstrip()
    words = []
    if device["utilization"] is not None:
        words.append(f"{100 * device['utilization']:.0f} % busy")
    if device["temperature"] is not None and width >= 100:
        words.append(f"{device['temperature']:.0f} °C")
    if device["power"] is not None and width >= 100:
        words.append(f"{device['power']:.0f} W")
    return " ".join(words)


def _shown(fleet: Fleet, selected: str, count: int) -> list[int]:
    """Which devices there is room for: those of the model that is selected, then the first; in their order."""
    model = fleet.models.get(selected, {"instances": []})
    wanted = {device for one in model["instances"] for device in one["devices"]}
    ranked = sorted(range(len(fleet.devices)), key=lambda index: (fleet.devices[index]["id"] not in wanted, index))
    return sorted(ranked[: max(1, count)])


def _table(models: Sequence[View], fleet: Fleet, looking: Looking, width: int, room: int, now: float) -> list[Text]:
    shape = columns(width, max((cell_len(label(name)) for name in fleet.models), default=0))
    rows = max(0, room - 1)
    names = [one["name"] for one in models]
    at = names.index(looking.selected) if looking.selected in names else 0
    start = max(0, min(at - rows // 2, len(models) - rows))
    if not models:
        text = "No models yet. Add one: shoal models add NAME --source FOLDER_OR_HUB_ID"
        if looking.search:
            text = f"No model has {looking.search!r}. / and Esc: all of them"
        return [header(shape, "MODEL"), Text(fit(f"  {label(text)}", width))][:room]
    window = models[start : start + rows]
    title = f"MODEL by {looking.order}"
    if len(window) < len(models):
        title = f"{start + 1}-{start + len(window)}/{len(models)} {looking.order}"
    elif looking.search:
        title = f"{len(models)}/{len(fleet.models)} {looking.order}"
    colour = colours(list(fleet.models.values()))
    lines = [header(shape, title)]
    lines += [row(one, fleet, looking, shape, colour[one["name"]], now) for one in window]
    return lines[:room]


def details(model: View, fleet: Fleet, tins: Sequence[Tin], looking: Looking, width: int, now: float) -> list[Text]:
    """All that matters of one model: its whole name and state, its memory on each device, its limits, its note."""
    ready = sum(one["state"] == "ready" for one in model["instances"])
    spec = model["spec"]
    since = max((one["changed_at"] for one in model["instances"]), default=None)
    facts = [str(model["state"])]
    if since is not None:
        facts[0] += f" for {format_seconds(max(0.0, now - since))}"
    facts += [f"{ready} of {model['desired']} ready"] if model["desired"] > 1 else []
    facts += ["pinned"] if spec.get("pin") else []
    facts += [f"priority {spec['priority']}"] if spec.get("priority", 100) != 100 else []
    words = f" {looking.glyphs.dot} ".join(label(fact) for fact in facts)
    name = label(model["name"])
    name = fit(name, max(8, width - cell_len(words) - 8)).rstrip()
    line = Text.assemble(
        f"{looking.glyphs.rule * 2} ", (name, "bold"), " ", (words, STATE_STYLE.get(model["state"], "")), " "
    )
    line.append(looking.glyphs.rule * max(0, width - line.cell_len))
    lines = [line]
    limits = [f"floor {format_bytes(spec['floor'])}"] if spec.get("floor") else []
    limits += [f"ceiling {format_bytes(spec['ceiling'])}"] if spec.get("ceiling") is not None else []
    texts = ["; ".join([*_lies(model["name"], fleet, tins), *limits]), note(model)]
    return [*lines, *(Text(part) for text in texts if text for part in wrapped(text, width, 2))]


def _lies(model: str, fleet: Fleet, tins: Sequence[Tin]) -> list[str]:
    """What a model has in the memory of each device."""
    found = []
    for device, tin in zip(fleet.devices, tins, strict=True):
        for one in tin.holdings:
            if one.model == model and one.size:
                parts = (f"{WORDS[kind]} {format_bytes(one.parts[kind])}" for kind in ORDER if kind in one.parts)
                found.append(f"{_device_name(device)}: {', '.join(parts)}")
    return found


def _event(message: View, width: int) -> Text:
    names = [name for name in (message.get("instance"), message.get("model")) if name]
    said = message["message"]
    text = said if not names or any(name in said for name in names) else f"{names[0]}: {said}"
    level = {"error": ("error: ", "bold red"), "warning": ("warning: ", "yellow")}.get(message["level"], ("", ""))
    return Text.assemble((clock(message["at"]), "dim"), " ", (fit(level[0] + label(text), max(0, width - 9)), level[1]))
