"""`shoal top`: the overview in the terminal. Textual is imported only when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from shoal.cli.shell import Url, connect
from shoal.errors import ShoalError


def top(
    ascii_: Annotated[
        bool | None,
        typer.Option(
            "--ascii/--no-ascii",
            help="Draw with ASCII characters alone. Default: where the terminal is dumb or does not take UTF-8.",
            show_default=False,
        ),
    ] = None,
    url: Url = None,
) -> None:
    """Show devices and models live, and act on them by keys. ? says which, q leaves."""
    if not _on_a_terminal():
        raise ShoalError(
            "shoal top draws on a terminal, and standard input, output or error is none; "
            "to list what runs use `shoal ps`, for devices `shoal devices`, both with --json for programs",
            code="not_a_terminal",
        )
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    if dumb:
        os.environ["NO_COLOR"] = "1"
    with connect(url) as client:
        client.status()  # where there is no Shoal, that is said before anything is drawn
        address = client.url
    from shoal.cli.top_app import Top

    utf8 = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
    app = Top(address, ascii_only=(dumb or not utf8) if ascii_ is None else ascii_)
    app.run(mouse=False)  # so that the terminal's own way to mark and copy works
    if app.return_code:
        raise typer.Exit(app.return_code)


def _on_a_terminal() -> bool:
    # The error stream too: that is where Textual draws.
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
