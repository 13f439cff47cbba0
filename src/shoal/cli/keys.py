"""`shoal keys`: make, list, show, change, rotate and revoke API keys."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.shell import AsJson, Url, connect
from shoal.cli.stored import Config, StateDir, ask_or_store, check_place

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.paths import Paths
    from shoal.settings import Settings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Make and manage API keys.")

Key = Annotated[str, typer.Argument(metavar="KEY", help="Its id or its name.", show_default=False)]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="A model that it may use; repeatable. Default: every model."),
]
Priority = Annotated[str | None, typer.Option(metavar="CLASS", help="high, normal or low.", show_default=False)]
Weight = Annotated[
    float | None, typer.Option(metavar="W", help="Its share among the keys of its class; 1 unless told otherwise.")
]
Rpm = Annotated[str | None, typer.Option("--rpm", metavar="N", help="Requests a minute, or none.")]
Tpm = Annotated[str | None, typer.Option("--tpm", metavar="N", help="Tokens of prompts and answers a minute, or none.")]
Concurrent = Annotated[str | None, typer.Option(metavar="N", help="Requests under way at once, or none.")]
Expires = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="30d from now, or with the day 2026-12-31 (UTC); or none.", show_default=False),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, or what it is for.", show_default=False)],
    model: Models = None,
    priority: Priority = None,
    weight: Weight = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    expires: Expires = None,
    config: Config = None,
    state_dir: StateDir = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed this once, alone on standard output.

    Where no Shoal runs it is made for the next one, so that shoal serve may listen for other machines.
    """
    check_place(url, config, state_dir)
    given = {"name": name, **_settings(model, priority, weight, rpm, tpm, concurrent, expires)}
    given = {field: value for field, value in given.items() if value is not None}

    def ask(client: Client) -> dict[str, Any]:
        return client.create_key(given)

    async def store(settings: Settings, paths: Paths) -> dict[str, Any]:
        from shoal.access import create_stored_key
        from shoal.api.keys import shown
        from shoal.fleet.keys import parse_key

        new = await create_stored_key(settings, paths, parse_key(given))
        return {**shown(new.record, {}).model_dump(mode="json"), "key": new.key}

    made = ask_or_store(url, config, state_dir, what="key", ask=ask, store=store)
    _show_new(made, as_json=as_json)


@app.command()
def ls(
    all_: Annotated[bool, typer.Option("--all", "-a", help="Also those that were revoked.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the keys."""
    with connect(url) as client:
        keys = client.keys(all_=all_)
    from shoal.cli.output import age, print_json, stdout, table

    if as_json:
        print_json({"keys": keys})
    elif not keys:
        stdout().print("No keys yet: whoever can connect may use every model. Make one: shoal keys create NAME")
    else:
        rows = []
        for key in keys:
            last = f"{age(key['last_used_at'])} ago" if key["last_used_at"] else "never"
            used = "?" if key["used"] is None else f"{key['used']['requests']:,}"
            rows.append([key["id"], key["name"], key["state"], " ".join(key["models"]) or "all", used, last])
        stdout().print(table(["KEY", "NAME", "STATE", "MODELS", "REQUESTS", "LAST USED"], rows))


@app.command()
def show(key: Key, url: Url = None, as_json: AsJson = False) -> None:
    """Show a key's settings, and what was used with it."""
    with connect(url) as client:
        found = client.key(key)
    _show(found, as_json=as_json)


@app.command()
def edit(
    key: Key,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Another name.", show_default=False)] = None,
    model: Models = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="It may use every model.")] = False,
    priority: Priority = None,
    weight: Weight = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrent: Concurrent = None,
    expires: Expires = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Change a key. What is not named stays; `none` takes a limit away."""
    if model and all_models:
        raise typer.BadParameter("say either --model or --all-models")
    changes = _settings([] if all_models else model, priority, weight, rpm, tpm, concurrent, expires)
    if name is not None:
        changes["name"] = name
    if not changes:
        raise typer.BadParameter("say what to change, such as --rpm 60 or --expires 30d")
    with connect(url) as client:
        found = client.edit_key(key, changes)
    _show(found, as_json=as_json)


@app.command()
def rotate(
    key: Key,
    grace: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long the former secret goes on to work, such as 1h.", show_default="0s"),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Give a key another secret; its id and settings stay. It is printed this once, alone on standard output."""
    from shoal.fleet.keys import parse_duration

    try:
        seconds = 0.0 if grace is None else parse_duration(grace)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--grace") from None
    with connect(url) as client:
        made = client.rotate_key(key, grace=seconds)
    _show_new(made, as_json=as_json)


@app.command()
def revoke(key: Key, url: Url = None, as_json: AsJson = False) -> None:
    """End a key for good."""
    with connect(url) as client:
        found = client.revoke_key(key)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(found)
    else:
        stdout().print(plain(f"Revoked {found['name']} ({found['id']})."))


def _settings(
    models: list[str] | None,
    priority: str | None,
    weight: float | None,
    rpm: str | None,
    tpm: str | None,
    concurrent: str | None,
    expires: str | None,
) -> dict[str, Any]:
    """What the options say, by the names of the API; None is `none`, and what was not said is not in it."""
    said: dict[str, Any] = {"models": models, "priority": priority, "weight": weight}
    said = {field: value for field, value in said.items() if value is not None}
    limits = (("requests_per_minute", "--rpm", rpm), ("tokens_per_minute", "--tpm", tpm))
    for field, option, text in (*limits, ("concurrent", "--concurrent", concurrent)):
        if text is not None:
            said[field] = _number(text, option)
    if expires is not None:
        from shoal.fleet.keys import parse_expiry

        try:
            said["expires_at"] = None if expires == "none" else parse_expiry(expires, time.time())
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--expires") from None
    return said


def _number(text: str, option: str) -> int | None:
    if text == "none":
        return None
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise typer.BadParameter(f"{text!r} is no number from 1; give one, or none", param_hint=option)
    return number


def _show_new(made: Mapping[str, Any], *, as_json: bool) -> None:
    from shoal.cli.output import clock, plain, print_json

    if as_json:
        print_json(made)
        return
    words = f"The key {made['name']} ({made['id']}) is shown this once; keep it. Clients send it as their API key."
    if made["former_until"]:
        words += f" The former one works until {clock(made['former_until'])}."
    print(plain(words), file=sys.stderr)
    print(made["key"])


def _show(key: Mapping[str, Any], *, as_json: bool) -> None:
    from shoal.cli.output import clock, pairs, print_json, stdout

    if as_json:
        print_json(key)
        return
    limits = (("requests_per_minute", "requests a minute"), ("tokens_per_minute", "tokens a minute"))
    rows: list[tuple[str, str]] = [
        ("key", f"{key['prefix']}-…"),
        ("name", key["name"]),
        ("state", key["state"]),
        ("models", " ".join(key["models"]) or "all"),
        ("priority", f"{key['priority']}, weight {key['weight']:g}"),
    ]
    rows += [
        (words, "no limit" if key[field] is None else f"{key[field]:,}")
        for field, words in (*limits, ("concurrent", "at once"))
    ]
    times = (
        ("created", "created_at"),
        ("expires", "expires_at"),
        ("rotated", "rotated_at"),
        ("former until", "former_until"),
        ("revoked", "revoked_at"),
        ("last used", "last_used_at"),
    )
    rows += [(words, clock(key[field])) for words, field in times if key[field] is not None]
    if key["used"] is not None:
        used = key["used"]
        tokens = f"{used['prompt_tokens']:,} + {used['completion_tokens']:,} tokens"
        rows.append(("used", f"{used['requests']:,} requests, {tokens}"))
    stdout().print(pairs(rows))
