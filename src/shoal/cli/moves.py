"""`shoal move`, `shoal change` and `shoal moves`: another instance takes one's place, and nobody waits for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.loading import interruptible
from shoal.cli.shell import CONFLICT, AsJson, ModelName, Url, connect

if TYPE_CHECKING:
    from shoal.client import Client

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Moves: list them, or cancel one.")
Id = Annotated[str, typer.Argument(metavar="ID", help="The move's id.", show_default=False)]
Instance = Annotated[
    str | None,
    typer.Option(
        "--instance", metavar="ID", help="This instance alone; default: all of the model.", show_default=False
    ),
]
StopFirst = Annotated[
    bool, typer.Option("--stop-first", help="End the old one before the new one loads; requests are held meanwhile.")
]
Drain = Annotated[
    float | None,
    typer.Option("--drain", metavar="SECONDS", min=0, help="What requests of the old one may take. Default: an hour."),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")]
INTERVAL = 0.2
"""Seconds between two looks at a move."""
_STYLES = {"done": "green", "running": "yellow", "failed": "bold red", "cancelled": "red", "waiting": "dim"}
_WORDS = {
    "asking": "the old one answers the canary",
    "loading": "another one loads",
    "checking": "the new one answers the canary",
    "draining": "the new one serves, the old one drains",
    "undoing": "the new one ends, the old one serves on",
    "restoring": "the old one is loaded again",
}


def move(
    name: ModelName,
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="IDS", help="Such as cuda:1, or cuda:0,cuda:1; repeatable.", show_default=False),
    ],
    instance: Instance = None,
    stop_first: StopFirst = False,
    drain: Drain = None,
    wait: Wait = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Move a model to other devices while it serves. Exit code 5: it stays where it was."""
    devices = [part.strip() for value in to for part in value.split(",") if part.strip()]
    with connect(url) as client:
        found = client.begin_move(name, to=devices, instance=instance, stop_first=stop_first, drain=drain)
        _end(client, found, wait=wait, as_json=as_json)


def change(
    name: ModelName,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A setting, its value as YAML; repeatable.", show_default=False
        ),
    ] = None,
    instance: Instance = None,
    stop_first: StopFirst = False,
    drain: Drain = None,
    wait: Wait = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Replace a model's instances by ones with other settings. Without --set: those that run with earlier settings."""
    changes = dict(_setting(one) for one in settings or [])
    with connect(url) as client:
        found = client.begin_move(name, changes=changes, instance=instance, stop_first=stop_first, drain=drain)
        _end(client, found, wait=wait, as_json=as_json)


@app.command("ls")
def ls(url: Url = None, as_json: AsJson = False) -> None:
    """List moves: those that wait or are under way, and the last that have ended."""
    with connect(url) as client:
        found = client.moves()
    from rich.text import Text

    from shoal.cli.output import clock, plain, print_json, stdout, table

    if as_json:
        print_json({"moves": found})
    elif not found:
        stdout().print("No moves yet. Move a model: shoal move MODEL --to DEVICE")
    else:
        rows = [
            [one["id"], one["model"], Text(one["state"], style=_STYLES[one["state"]]), clock(one["created_at"]),
             _where(one), plain(_what(one))]
            for one in found
        ]  # fmt: skip
        stdout().print(table(["MOVE", "MODEL", "STATE", "SINCE", "WAY", ""], rows))


@app.command("show")
def show(id_: Id, url: Url = None, as_json: AsJson = False) -> None:
    """Show one move, instance by instance."""
    with connect(url) as client:
        found = client.move(id_)
    from shoal.cli.output import plain, print_json, stdout, table

    if as_json:
        print_json(found)
        return
    rows = [
        [leg["source"], leg["target"] or "", " → ".join((_on(leg["was_on"]), _on(leg["devices"]))), leg["step"],
         leg["cause"] or leg["note"]]
        for leg in found["legs"]
    ]  # fmt: skip
    stdout().print(table(["OLD", "NEW", "WAY", "STEP", ""], rows))
    stdout().print(plain(f"{found['state']}: {found['message']}" if found["message"] else found["state"]))


@app.command("cancel")
def cancel(id_: Id, wait: Wait = True, url: Url = None, as_json: AsJson = False) -> None:
    """Undo a move: the new instance ends, the old one serves on. Exit code 5 once it is too late."""
    with connect(url) as client:
        found: Mapping[str, Any] = client.cancel_move(id_)
        if wait:
            found = _follow(client, found, quiet=as_json)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(found)
    else:
        stdout().print(plain(found["message"] or f"{found['id']} is being undone."))


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise typer.BadParameter(f"the value of {name} is not YAML: {value!r}", param_hint="--set") from None


def _end(client: Client, found: Mapping[str, Any], *, wait: bool, as_json: bool) -> None:
    """Say how it ended, or that it goes on."""
    from shoal.cli.output import plain, print_json, stdout

    if wait:
        with interruptible(f"{found['id']} goes on; see shoal moves ls, or shoal moves cancel {found['id']}"):
            found = _follow(client, found, quiet=as_json)
    if as_json:
        print_json(found)
    elif wait:
        stdout().print(plain(f"{found['message']}."))
    else:
        stdout().print(plain(f"{found['id']} is under way. See how far it is: shoal moves ls"))
    if found["state"] in ("failed", "cancelled"):
        raise typer.Exit(CONFLICT)


def _follow(client: Client, found: Mapping[str, Any], *, quiet: bool) -> Mapping[str, Any]:
    """The move once it has ended; what happens on the way is shown."""
    from shoal.cli.output import plain, stdout

    shown = ""
    while found["state"] in ("waiting", "running"):
        words = _what(found)
        if words != shown and not quiet:
            stdout().print(plain(f"{found['model']}: {words}"))
        shown = words
        time.sleep(INTERVAL)
        found = client.move(found["id"])
    return found


def _what(found: Mapping[str, Any]) -> str:
    """How far it is, in words."""
    if found["state"] != "running":
        return str(found["message"])
    at = next((n for n, leg in enumerate(found["legs"]) if leg["step"] in _WORDS), 0)
    count = f" ({at + 1} of {len(found['legs'])})" if len(found["legs"]) > 1 else ""
    step = str(found["legs"][at]["step"])
    return _WORDS.get(step, step) + count


def _where(found: Mapping[str, Any]) -> str:
    """From where to where, and which settings."""
    ways = dict.fromkeys(f"{_on(leg['was_on'])} → {_on(leg['devices'])}" for leg in found["legs"])
    settings = sorted(set(found["changes"]) - {"devices"})
    return "; ".join(ways) + (f" ({', '.join(settings)})" if settings else "")


def _on(devices: list[str]) -> str:
    return ", ".join(devices) or "anywhere"
