"""`shoal requests`: what waits and runs in the relays, and an end to it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shoal.cli.shell import AsJson, Url, connect, model_names

app = typer.Typer(
    invoke_without_command=True, pretty_exceptions_enable=False, help="List the requests that wait or run, or end one."
)

Model = Annotated[
    str | None, typer.Option(help="Only this model's.", autocompletion=model_names, show_default=False, metavar="NAME")
]


@app.callback()
def _requests(ctx: typer.Context, model: Model = None, url: Url = None, as_json: AsJson = False) -> None:
    """List the requests that wait or run, or end one."""
    if ctx.invoked_subcommand is None:
        ls(model, url, as_json)
    elif model is not None or url is not None or as_json:
        raise typer.BadParameter(
            f"options go behind {ctx.invoked_subcommand}: shoal requests {ctx.invoked_subcommand} …"
        )


@app.command("ls")
def ls(model: Model = None, url: Url = None, as_json: AsJson = False) -> None:
    """List the requests that wait or run, the oldest first."""
    with connect(url) as client:
        found = client.requests(model=model)
    from shoal.cli.output import print_json, stdout, table
    from shoal.units import format_seconds

    if as_json:
        print_json(found)
        return
    for relay in found["silent"]:
        print(f"warning: relay {relay} did not say in time what it has", file=sys.stderr)
    if not found["requests"]:
        stdout().print("No request waits or runs.")
        return
    rows = [
        [one["id"], one["model"], one["key"] or one["tenant"], one["priority"], one["phase"],
         format_seconds(one["age"]), str(one["tokens"]), str(one["position"] or "")]
        for one in found["requests"]
    ]  # fmt: skip
    stdout().print(table(["REQUEST", "MODEL", "TENANT", "CLASS", "PHASE", "AGE", "TOKENS", "POSITION"], rows))


@app.command("cancel")
def cancel(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The request's id.", show_default=False)],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """End a request; its client gets an error."""
    with connect(url) as client:
        client.cancel_request(id_)
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json({"id": id_, "cancelled": True})
    else:
        stdout().print(f"Cancelled {id_}.")
