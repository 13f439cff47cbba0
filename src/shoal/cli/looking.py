"""The commands that look: ps, status, devices, events, logs."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.shell import INTERRUPTED, AsJson, Url, connect, model_names
from shoal.errors import NotFoundError, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client


def ps(
    all_: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the instances."""
    with connect(url) as client:
        instances = client.instances(all_=all_)
    from shoal.cli.output import age, instance_note, memory_words, print_json, state_text, stdout, table

    if as_json:
        print_json({"instances": instances})
    elif not instances:
        stdout().print("Nothing runs. Load a model: shoal load NAME   (shoal models ls lists them)")
    else:
        rows = [
            [one["id"], one["model"], state_text(one["state"]), age(one["changed_at"]), " ".join(one["devices"]),
             memory_words(one["memory"])]
            for one in instances
        ]  # fmt: skip
        out = stdout()
        out.print(table(["INSTANCE", "MODEL", "STATE", "SINCE", "DEVICES", "MEMORY"], rows))
        notes = [(one["id"], note) for one in instances if (note := instance_note(one))]
        if notes:
            out.print()
            out.print(table(["INSTANCE", "NOTE"], notes))


def status(url: Url = None, as_json: AsJson = False) -> None:
    """Say how Shoal is."""
    with connect(url) as client:
        found = client.status()
        address = client.url
    from rich.text import Text

    from shoal.cli.output import age, pairs, plain, print_json, stdout

    if as_json:
        print_json(found)
        return
    counts = ", ".join(f"{count} {state}" for state, count in found["instances"].items() if count)
    store = found["store"]
    kept = "saved" if store["ok"] else f"NOT saved: {store['problem']} ({store['unsaved']} changes wait)"
    rows: list[tuple[str, str | Text]] = [
        ("shoal", f"{found['version']} at {address}, up {age(found['started_at'])}"),
        ("models", str(found["models"])),
        ("instances", counts or "none"),
        ("relay", Text(_relays(found["relays"]), style="" if found["relays"] else "bold red")),
        ("memory", Text("broker connected") if found["memory"]["ok"] else Text("no broker", style="bold red")),
        ("state", Text(plain(kept), style="" if store["ok"] else "bold red")),
        ("settings", found["config_file"] or "defaults and variables, no file"),
    ]
    rows += [("warning", Text(plain(warning), style="yellow")) for warning in found["warnings"]]
    stdout().print(pairs(rows))


def _relays(connected: int) -> str:
    if connected > 1:
        return f"{connected} connected"
    return "connected" if connected else "not connected"


def devices(url: Url = None, as_json: AsJson = False) -> None:
    """List the devices, and what their memory holds."""
    with connect(url) as client:
        found = client.devices()
    from rich.text import Text

    from shoal.cli.output import bar, plain, print_json, stdout, table
    from shoal.units import format_bytes

    if as_json:
        print_json({"devices": found})
        return
    if not found:
        stdout().print("Shoal found no devices. See what is missing: shoal doctor")
        return
    rows: list[list[str | Text]] = []
    for device in found:
        used, total = device["memory_used"], device["memory_total"]
        load = [
            words
            for key, words in (
                ("utilization", f"{100 * (device['utilization'] or 0):.0f} % busy"),
                ("temperature", f"{device['temperature'] or 0:.0f} °C"),
                ("power", f"{device['power'] or 0:.0f} W"),
            )
            if device[key] is not None
        ]
        if device["pool"]:
            pool = device["pool"]
            load.insert(0, f"KV {format_bytes(pool['used'])} used, {format_bytes(pool['backed'])} held")
        note = Text(plain(device["error"]), style="red") if device["error"] else Text(", ".join(load))
        rows.append(
            [device["id"], device["name"], bar(used, total), f"{format_bytes(used)} of {format_bytes(total)}", note]
        )
    stdout().print(table(["DEVICE", "NAME", "MEMORY", "", ""], rows))


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens.")] = False,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="How many past events to show.")] = 50,
    model: Annotated[
        str | None, typer.Option(help="Only this model's.", autocompletion=model_names, show_default=False)
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only of this kind; may be repeated.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only from then on: 30m, 2h, 7d ago, or a date.", show_default=False),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened, newest last: what was decided and why, and how long each phase took."""
    from shoal.cli.output import print_json

    first = None if since is None else _moment(since)
    with connect(url) as client:
        past = client.history(limit=limit, model=model, kinds=kind or (), since=first) if limit else []
        if not follow:
            if as_json:
                print_json({"events": past})
            elif not past:
                print("Nothing has happened yet.")
            else:
                for message in past:
                    _print_event(message, as_json=False)
            return
        for message in past:
            _print_event(message, as_json=as_json)
        try:
            for event in client.events(patience=3600.0):
                if event.kind != "message" or (kind and event.data["kind"] not in kind):
                    continue
                if model is None or event.data["model"] == model:
                    _print_event(event.data, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _moment(text: str) -> float:
    """Unix seconds of so long ago, or of a date or time in ISO 8601, in the time zone of this machine if it names none.
    Raises BadParameter."""
    from shoal.units import parse_seconds

    try:
        return time.time() - abs(parse_seconds(text))
    except ValueError:
        pass
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(
            f"{text!r} is neither so long ago (30m, 2h, 7d) nor a date (2026-01-31, 2026-01-31T08:00)",
            param_hint="--since",
        ) from None


def _print_event(message: Mapping[str, Any], *, as_json: bool) -> None:
    from rich.text import Text

    from shoal.cli.output import clock, plain, print_json, stdout

    if as_json:
        print_json(message, line=True)
        return
    style = {"error": "bold red", "warning": "yellow"}.get(message["level"], "")
    names = [name for name in (message["instance"], message["model"]) if name]
    named = not names or any(name in message["message"] for name in names)
    text = message["message"] if named else f"{names[0]}: {message['message']}"
    line = Text.assemble((clock(message["at"]), "dim"), " ", (plain(text), style))
    stdout().print(line, soft_wrap=True)


def logs(
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME|INSTANCE", help="A model, or one instance.", autocompletion=model_names, show_default=False
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many lines from the end.")] = 200,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show an engine's log."""
    from shoal.cli.output import print_json

    with connect(url) as client:
        instance = _instance_of(client, target)
        if not follow:
            text = client.logs(instance, tail=tail) if tail else ""
            if as_json:
                print_json({"instance": instance, "lines": text.splitlines()})
            else:
                for line in text.splitlines():
                    _print_line(line)
            return
        try:
            for event in client.follow_logs(instance, tail=tail):
                if as_json:
                    print_json({"event": event.kind, **event.data}, line=True)
                elif event.kind == "line":
                    _print_line(event.data["text"])
                elif event.kind == "end":
                    print(f"{instance} has ended: {event.data['state']}", file=sys.stderr)
                if event.kind == "end":
                    return
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _print_line(line: str) -> None:
    from shoal.cli.output import plain

    print(plain(line) if sys.stdout.isatty() else line, flush=True)


def _instance_of(client: Client, target: str) -> str:
    """The instance that `target` names; for a model, the one that changed last."""
    try:
        model: Mapping[str, Any] | None = client.model(target)
    except ShoalError as error:
        if error.status != 404:
            raise
        model = None
    if model is None:
        try:
            return str(client.instance(target)["id"])
        except ShoalError as error:
            if error.status != 404:
                raise
        raise NotFoundError(f"there is no model and no instance {target}; see shoal models ls and shoal ps --all")
    found = model["instances"] or [one for one in client.instances(all_=True) if one["model"] == model["name"]]
    if not found:
        raise NotFoundError(f"{target} has not been loaded yet, so there is no log; load it with shoal load")
    latest = max(found, key=lambda one: (one["state"] not in ("stopped", "failed"), one["changed_at"]))
    if sum(one["state"] not in ("stopped", "failed") for one in found) > 1:
        others = ", ".join(one["id"] for one in found if one["id"] != latest["id"])
        print(f"the log of {latest['id']}; {target} also has {others}", file=sys.stderr)
    return str(latest["id"])
