"""The memory commands that look at the books and change them: ls, watch, limit, floor, priority, trim, budget."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from shoal.cli.memory_common import (
    Socket,
    amount,
    amount_or_none,
    broker_at,
    device_key,
    device_name,
    find_socket,
    refusals,
)
from shoal.cli.memory_view import Change, changes, listed, note, view
from shoal.cli.output import clock, plain, print_json, stdout
from shoal.cli.shell import INTERRUPTED, AsJson
from shoal.memory.nvml import Machine
from shoal.memory.sizes import Amount, format_bytes
from shoal.memory.tools import Books, BrokerTool

Engine = Annotated[
    str, typer.Argument(metavar="ENGINE", help="Its name at the broker, as shoal memory ls has it.", show_default=False)
]
Interval = Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds between two looks, at least.")]


def ls(socket: Socket = None, as_json: AsJson = False) -> None:
    """Show each device and what engines hold of it."""
    with broker_at(socket) as tool:
        books = tool.list()
    name = partial(device_name, Machine())
    if as_json:
        print_json(listed(books, name))
    else:
        stdout().print(view(books, name))


def watch(interval: Interval = 1.0, socket: Socket = None, as_json: AsJson = False) -> None:
    """Tell of every change, one line each, until Ctrl-C."""
    name = partial(device_name, Machine())
    before: Books = {}
    try:
        with broker_at(socket) as tool:
            for books in tool.watch(interval):
                for change in changes(before, books):
                    _tell(change, name, as_json=as_json)
                before = books
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _tell(change: Change, name: partial[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"at": time.time(), **change.as_dict()}, line=True)
    elif (words := change.words(name)) is not None:
        print(f"{clock(time.time())} {plain(words)}", flush=True)


def limit(
    engine: Engine,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="8GiB, 30% of its device, or none.")],
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Set the most that an engine may hold on each device. What is above is asked back, cached blocks first."""
    wanted = amount_or_none(size)
    with broker_at(socket) as tool:
        if wanted is None:
            tool.set_terms(engine, unlimited=True)
        else:
            tool.set_terms(engine, ceiling=_of_engine(tool, engine, wanted))
        _show_engine(tool, engine, as_json=as_json)


def floor(
    engine: Engine,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="2GiB, or 10% of its device.")],
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Set what an engine can always get back on each device, whatever others do."""
    wanted = amount(size)
    with broker_at(socket) as tool:
        tool.set_terms(engine, floor=_of_engine(tool, engine, wanted))
        _show_engine(tool, engine, as_json=as_json)


def priority(
    engine: Engine,
    weight: Annotated[int, typer.Argument(metavar="N", min=1, max=1000, help="1 to 1000; 100 unless told otherwise.")],
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Set an engine's weight: with twice another's it gets twice as much where both need more than there is."""
    with broker_at(socket) as tool:
        tool.set_terms(engine, priority=weight)
        _show_engine(tool, engine, as_json=as_json)


def trim(
    engine: Engine,
    size: Annotated[str, typer.Argument(metavar="[SIZE]", help="Down to this, on each device.")] = "0",
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Have an engine give back, once, what its running requests do not need."""
    wanted = amount(size)
    with broker_at(socket) as tool:
        tool.trim(engine, _of_engine(tool, engine, wanted))
        _show_engine(tool, engine, as_json=as_json)


def budget(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="cuda:0, a GPU's UUID, or host.", show_default=False)],
    size: Annotated[str, typer.Argument(metavar="SIZE", help="60GiB, 80%, or none.")],
    socket: Socket = None,
    as_json: AsJson = False,
) -> None:
    """Set how much of a device all engines together may lease."""
    wanted = amount_or_none(size)
    machine = Machine()
    with broker_at(socket) as tool:
        key = device_key(machine, device)
        if wanted is None:
            tool.set_budget(key, unlimited=True)
        else:
            tool.set_budget(key)  # is refused if there is no such device
            tool.set_budget(key, limit=wanted.of(tool.list()[key].device.size))
        book = {key: tool.list()[key]}
    name = partial(device_name, machine)
    if as_json:
        print_json(listed(book, name)["devices"][0])
        return
    state = book[key].device
    words = f"{name(key)}: budget {format_bytes(state.budget)}, leased {format_bytes(state.leased)}"
    if state.owed:
        words += f"; {format_bytes(state.owed)} asked back"
    stdout().print(plain(words))


def top(interval: Interval = 0.5, socket: Socket = None) -> None:
    """Show the devices and engines live. q or Ctrl-C leaves."""
    with refusals():
        path = find_socket(socket)
    from shoal.cli.memory_top import run

    console = stdout()
    if console.is_terminal:
        run(path, interval, console)
        return
    with refusals(), BrokerTool(path) as tool:
        console.print(view(tool.list(), partial(device_name, Machine())))


def _of_engine(tool: BrokerTool, engine: str, wanted: Amount) -> int:
    """The bytes that `wanted` is for an engine: parts are parts of the smallest device that it is on."""
    if wanted.share is None:
        return wanted.size
    tool.set_terms(engine)  # is refused if there is no such engine
    sizes = [
        book.device.size for book in tool.list().values() if any(member.engine == engine for member in book.members)
    ]
    return wanted.of(min(sizes, default=0))


def _show_engine(tool: BrokerTool, engine: str, *, as_json: bool) -> None:
    import msgspec

    name = partial(device_name, Machine())
    ranks = [
        (key, member)
        for key, book in tool.list().items()
        for member in book.members
        if member.engine == engine
    ]  # fmt: skip
    if as_json:
        print_json({"engine": engine, "ranks": [{"device": key, **msgspec.to_builtins(rank)} for key, rank in ranks]})
        return
    for key, rank in ranks:
        ceiling = "no ceiling" if rank.ceiling is None else f"ceiling {format_bytes(rank.ceiling)}"
        words = (
            f"{engine}{f'/{rank.rank}' if len(ranks) > 1 else ''} on {name(key)}: holds {format_bytes(rank.lease)}, "
            f"floor {format_bytes(rank.floor)}, {ceiling}, priority {rank.priority}"
        )
        special = note(rank)
        stdout().print(plain(f"{words}; {special}" if special else words))
