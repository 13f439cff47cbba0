"""How the books are shown: a bar a device, a row an engine, a line a change. Pure, given the terminal's width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from shoal.cli.output import plain
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.sizes import format_bytes
from shoal.memory.tools import Books, DeviceBook


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a device. The marks differ too, for those who see no colours."""

    name: str
    size: int
    mark: str
    style: str


def parts(book: DeviceBook) -> list[Part]:
    """What a device is made of; the sizes add up to its size, unless more is promised than it has."""
    device = book.device
    used = sum(min(member.used, member.lease) for member in book.members)
    cached = sum(min(member.cached, max(0, member.lease - member.used)) for member in book.members)
    taken = device.leased + device.others + device.held_back + device.headroom
    free = max(0, device.budget - device.leased)
    return [
        Part("in use", used, "█", "green"),
        Part("cached", cached, "▓", "cyan"),
        Part("leased, empty", device.leased - used - cached, "▒", "blue"),
        Part("others", device.others, "▚", "magenta"),
        Part("held back", device.held_back, "▞", "yellow"),
        Part("headroom", device.headroom, "▁", "dim"),
        Part("free", free, "░", "dim"),
        Part("beyond the limit", max(0, device.size - taken - free), "╳", "dim"),
    ]


class Bar:
    """The parts of a device as wide as there is room, and below it what each mark means."""

    def __init__(self, shown: Sequence[Part]) -> None:
        self._parts = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(1, options.max_width)
        cells = spread([part.size for part in self._parts], width)
        yield Text.assemble(*((part.mark * n, part.style) for part, n in zip(self._parts, cells, strict=True)))
        line = Text()
        for part in self._parts:
            if not part.size:
                continue
            entry = Text.assemble((part.mark, part.style), f" {part.name} {format_bytes(part.size)}")
            if line and len(line) + 3 + len(entry) > width:
                yield line
                line = Text()
            line = Text.assemble(line, "   ", entry) if line else entry
        yield line


def spread(sizes: Sequence[int], width: int) -> list[int]:
    """`width` cells in proportion to `sizes`: at least one for what is not nothing, as far as there are cells."""
    total = sum(sizes)
    if total <= 0:
        return [0] * len(sizes)
    cells = [max(1, round(size * width / total)) if size > 0 else 0 for size in sizes]
    while sum(cells) > width:
        cells[max(range(len(cells)), key=cells.__getitem__)] -= 1
    while sum(cells) < width:
        cells[max(range(len(cells)), key=lambda i: sizes[i] * width / total - cells[i])] += 1
    return cells


def view(books: Books, name: Callable[[str], str]) -> Group:
    """All devices that somebody is on or that somebody limited, and the engines on each."""
    shown = [book for book in books.values() if book.members or book.device.held_back or book.device.limit is not None]
    pieces: list[Any] = []
    for book in shown:
        if pieces:
            pieces.append(Text())
        pieces += _device(book, name(book.device.key))
    quiet = [name(book.device.key) for book in books.values() if book not in shown]
    if not shown:
        pieces.append(Text("No engine leases memory. See what one needs: shoal memory env"))
    if quiet:
        pieces.append(Text(f"no engine on: {', '.join(map(plain, quiet))}", style="dim"))
    return Group(*pieces)


def _device(book: DeviceBook, name: str) -> Iterator[Any]:
    device = book.device
    title = Text.assemble((plain(name), "bold"), f"  {format_bytes(device.size)}")
    if name != device.key:
        title.append(f"  {plain(device.key)}", style="dim")
    yield title
    yield Bar(parts(book))
    budget = f"budget {format_bytes(device.budget)}, leased {format_bytes(device.leased)}"
    if device.limit is not None:
        budget += f", limited to {format_bytes(device.limit)}"
    line = Text(budget)
    if device.owed:
        line.append(f", {format_bytes(device.owed)} to be given back", style="bold yellow")
    yield line
    if book.members:
        yield Text()
        yield _members(book.members)


def _members(members: Sequence[MemberState]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    several = {member.engine for member in members if member.rank}
    table.add_column("ENGINE", overflow="fold", min_width=12)
    for column in ("LEASE", "USED", "CACHED", "FLOOR", "CEILING", "PRIO"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for member in sorted(members, key=lambda m: (m.engine, m.rank)):
        engine = f"{member.engine}/{member.rank}" if member.engine in several else member.engine
        table.add_row(
            Text(plain(engine)),
            format_bytes(member.lease),
            Text(format_bytes(member.used), style="green" if member.used else "dim"),
            Text(format_bytes(member.cached), style="cyan" if member.cached else "dim"),
            format_bytes(member.floor) if member.floor else Text("-", style="dim"),
            Text("-", style="dim") if member.ceiling is None else format_bytes(member.ceiling),
            str(member.priority),
            note(member),
        )
    return table


def note(member: MemberState) -> Text:
    """What is special about an engine now."""
    words = Text()
    missing = member.need - member.lease
    if member.waiting:
        words.append(f"{member.waiting} waiting", style="bold red")
    if missing > 0:
        words.append(f"{', ' if words else ''}needs {format_bytes(missing)} more", style="red")
    if member.recalled is not None and member.recalled < member.lease:
        back = format_bytes(member.lease - member.recalled)
        words.append(f"{', ' if words else ''}gives {back} back", style="yellow")
    return words


@dataclass(frozen=True, slots=True)
class Change:
    """What a watcher is told: what came, went or changed, and the fields that did."""

    kind: str
    """``engine`` or ``device``."""
    what: str
    """``joined``, ``left`` or ``changed``."""
    device: str
    engine: str
    rank: int
    fields: dict[str, tuple[Any, Any]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: new values by name, and the old ones in `before`."""
        found: dict[str, Any] = {"kind": self.kind, "what": self.what, "device": self.device}
        if self.kind == "engine":
            found |= {"engine": self.engine, "rank": self.rank}
        found |= {name: new for name, (_, new) in self.fields.items()}
        if self.what == "changed":
            found["before"] = {name: old for name, (old, _) in self.fields.items()}
        return found

    def words(self, name: Callable[[str], str]) -> str | None:
        """``coder on cuda:0: lease 1.0 GiB → 2.0 GiB, used 512.0 MiB → 1.0 GiB``; None for what is too small to see."""
        where = name(self.device)
        subject = where if self.kind == "device" else f"{self.engine}{f'/{self.rank}' if self.rank else ''} on {where}"
        if self.what == "left":
            return f"{subject}: has left"
        shown = {field: (_value(field, old), _value(field, new)) for field, (old, new) in self.fields.items()}
        if self.what == "joined":
            return ", ".join([f"{subject}: is here", *(f"{field} {new}" for field, (_, new) in shown.items())])
        told = [f"{field} {old} → {new}" for field, (old, new) in shown.items() if old != new]
        return f"{subject}: {', '.join(told)}" if told else None


_PLAIN = {"priority", "waiting", "rank", "pid"}
_DEVICE_FIELDS = ("size", "budget", "leased", "others", "held_back", "headroom", "limit", "owed")
_MEMBER_FIELDS = ("lease", "used", "cached", "floor", "ceiling", "priority", "need", "waiting", "recalled")


def _value(field: str, value: Any) -> str:
    if value is None:
        return "none"
    return str(value) if field in _PLAIN else format_bytes(value)


def changes(before: Books, after: Books) -> list[Change]:
    """What happened between two books."""
    found: list[Change] = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        found += _compared(
            "device", key, ("", 0), old.device if old else None, new.device if new else None, _DEVICE_FIELDS
        )
        was = {(member.engine, member.rank): member for member in (old.members if old else ())}
        now = {(member.engine, member.rank): member for member in (new.members if new else ())}
        for who in [*was, *(who for who in now if who not in was)]:
            found += _compared("engine", key, who, was.get(who), now.get(who), _MEMBER_FIELDS)
    return found


def _compared(
    kind: str,
    device: str,
    who: tuple[str, int],
    old: DeviceState | MemberState | None,
    new: DeviceState | MemberState | None,
    names: Sequence[str],
) -> Iterator[Change]:
    if new is None:
        yield Change(kind, "left", device, *who, {})
        return
    fields = {name: (getattr(old, name, None), getattr(new, name)) for name in names}
    if old is None:
        fields = {name: pair for name, pair in fields.items() if pair[1]}
    else:
        fields = {name: pair for name, pair in fields.items() if pair[0] != pair[1]}
    if fields or old is None:
        yield Change(kind, "joined" if old is None else "changed", device, *who, fields)


def listed(books: Books, name: Callable[[str], str]) -> dict[str, Any]:
    """The books as `--json` prints them."""
    return {
        "devices": [
            {
                **msgspec.to_builtins(book.device),
                "name": name(key),
                "engines": [msgspec.to_builtins(member) for member in book.members],
            }
            for key, book in books.items()
        ]
    }
