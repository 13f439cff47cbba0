"""`shoal orphans`: engines that run and that no controller has; take them back, or end them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.shell import AsJson, Url, connect
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.client import Client

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Engines that run and that no controller has."
)
Name = Annotated[
    str, typer.Argument(metavar="INSTANCE|PID", help="As `shoal orphans ls` shows it.", show_default=False)
]
INTERVAL = 0.2
PATIENCE = 120.0
"""Seconds that an end may take, whatever grace its shim gives the engine."""


@app.command("ls")
def ls(url: Url = None, as_json: AsJson = False) -> None:
    """List the orphans: what they are of, what they hold, and why they are orphans."""
    with connect(url) as client:
        found = client.orphans()
    from shoal.cli.output import age, plain, print_json, stdout, table

    if as_json:
        print_json({"orphans": found})
        return
    out = stdout()
    if not found:
        out.print("No orphans: every engine of this user is under a controller that runs.")
        return
    rows = [
        [one["instance"], str(one["pid"]), one["model"] or "?", " ".join(one["devices"]), _memory(one),
         age(one["started_at"])]
        for one in found
    ]  # fmt: skip
    out.print(table(["INSTANCE", "PID", "MODEL", "DEVICES", "MEMORY", "RUNS FOR"], rows))
    out.print()
    for one in found:
        can = "" if one["adoptable"] else f"; it cannot be taken back: {one['not_adoptable_because']}"
        out.print(plain(f"{one['instance']}: {one['why']}{can}"))


@app.command("adopt")
def adopt(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Take an orphan back under control; its model is added, if there is none of its name."""
    with connect(url) as client:
        view = client.adopt_orphan(name)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(view)
    else:
        stdout().print(plain(f"{view['id']} of {view['model']} is under control again: {view['state']}."))


@app.command("end")
def end(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Give it no time to end by itself.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """End an orphan, which frees its memory. Says what will be lost, and asks first."""
    from shoal.cli.output import plain, print_json, stdout

    with connect(url) as client:
        one = _find(client, name)
        if not as_json:
            stdout().print(plain(_loss(one)))
        if not yes and not (not as_json and sys.stdin.isatty() and typer.confirm("Go on?", default=False)):
            raise ShoalError("nothing was ended; say yes, or give --yes", status=409, code="not_confirmed")
        ended = client.end_orphan(str(one["pid"]), force=force)
        _until_gone(client, ended)
    if as_json:
        print_json(ended)
    else:
        stdout().print(plain(f"Ended {ended['instance']}; {_memory(ended)} came free."))


def _find(client: Client, name: str) -> dict[str, Any]:
    found = [one for one in client.orphans() if name in (one["instance"], str(one["pid"]))]
    if not found:
        raise ShoalError(
            f"there is no orphan {name}; `shoal orphans ls` lists them", status=404, code="orphan_not_found"
        )
    if len(found) > 1:
        pids = ", ".join(str(one["pid"]) for one in found)
        raise ShoalError(f"several orphans are called {name}; name one by its process: {pids}", status=409)
    return found[0]


def _until_gone(client: Client, ended: Mapping[str, Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(one["pid"] == ended["pid"] for one in client.orphans()):
        if time.monotonic() > deadline:
            raise ShoalError(
                f"{ended['instance']} (process {ended['pid']}) has not ended after {PATIENCE:.0f} s; "
                "end it with --force, and see whether its device still answers"
            )
        time.sleep(INTERVAL)


def _memory(one: Mapping[str, Any]) -> str:
    from shoal.units import format_bytes

    words = [f"{format_bytes(size)} on {device}" for device, size in one["memory"].items() if size]
    return ", ".join(words) or "nothing that can be read"


def _loss(one: Mapping[str, Any]) -> str:
    what = f"an instance of {one['model']}" if one["model"] else "processes of an engine"
    back = " It could be taken back: shoal orphans adopt." if one["adoptable"] else ""
    return (
        f"{one['instance']} is {what} ({one['why']}). Whoever uses it loses running requests; what it holds comes "
        f"free: {_memory(one)}.{back}"
    )
