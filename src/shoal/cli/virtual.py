"""`shoal virtual`: names that stand for other models."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from shoal.cli.shell import AsJson, Url, connect, model_names

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Names that stand for other models.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name that clients send.", show_default=False)]


@app.command("ls")
def ls(url: Url = None, as_json: AsJson = False) -> None:
    """List the virtual models."""
    with connect(url) as client:
        found = client.virtual_models()
    from shoal.cli.output import print_json, stdout, table

    if as_json:
        print_json({"virtual_models": found})
    elif not found:
        stdout().print("No virtual models yet. Add one: shoal virtual set NAME --model MODEL")
    else:
        rows = []
        for one in found:
            spec = one["spec"]
            served_by = " → ".join([spec["model"], *spec["fallback"]])
            rows.append([one["name"], served_by, _changes(spec), one["origin"]])
        stdout().print(table(["NAME", "SERVED BY", "CHANGES", "FROM"], rows))


@app.command("set")
def set_(
    name: Name,
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The model that serves it.", autocompletion=model_names, show_default=False),
    ],
    fix: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=VALUE", help="A field of requests to replace or add; repeatable."),
    ] = None,
    default: Annotated[
        list[str] | None, typer.Option(metavar="K=VALUE", help="A field to add where it is missing; repeatable.")
    ] = None,
    strip: Annotated[list[str] | None, typer.Option(metavar="K", help="A field to take out; repeatable.")] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Put before messages that have no system message.")
    ] = None,
    fallback: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Asked where the model cannot serve; repeatable.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Add a virtual model, or replace the one of this name. A VALUE is JSON, or else text."""
    spec: dict[str, Any] = {
        "model": model,
        "set": _fields(fix, "--set"),
        "defaults": _fields(default, "--default"),
        "strip": strip or [],
        "system": system,
        "fallback": fallback or [],
    }
    with connect(url) as client:
        view, new = client.put_virtual_model(name, spec)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(view)
    else:
        stdout().print(plain(f"{'Added' if new else 'Replaced'} {name}, which stands for {model}."))


@app.command("rm")
def rm(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Forget a virtual model."""
    with connect(url) as client:
        client.remove_virtual_model(name)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json({"removed": name})
    else:
        stdout().print(plain(f"Removed {name}."))


def _fields(values: list[str] | None, option: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for text in values or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def _changes(spec: dict[str, Any]) -> str:
    """What is done to a request, in a few words."""
    words = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in spec["set"].items()]
    words += [f"{name}?={json.dumps(value, ensure_ascii=False)}" for name, value in spec["defaults"].items()]
    words += [f"no {name}" for name in spec["strip"]]
    return ", ".join([*words, *(["system message"] if spec["system"] else [])])
