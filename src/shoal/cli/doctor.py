"""`shoal doctor`: what works on this machine, what is missing, and how to get it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shoal.cli.shell import FAILED, AsJson

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


def doctor(
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="The settings file that shoal serve would use.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine: what works, what is missing, how to get it."""
    from pathlib import Path

    from shoal.cli.checks import examine

    checks = examine(Path(config) if config else None)
    failed = [check for check in checks if check.level == "fail"]
    if as_json:
        from dataclasses import asdict

        from shoal.cli.output import print_json

        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    if failed:
        raise typer.Exit(FAILED)


def _print(checks: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from shoal.cli.output import plain, stdout

    out = stdout()
    rows = Table(box=None, pad_edge=False, show_header=False, show_edge=False, padding=(0, 1, 0, 0))
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True, style="bold")
    rows.add_column(overflow="fold")
    for check in checks:
        mark, style = _MARKS[check.level]
        words = Text(plain(check.message))
        if check.hint:
            words.append(f"\n→ {plain(check.hint)}", style=style if check.level != "ok" else "dim")
        rows.add_row(Text(f"{mark} {check.level}", style=style), check.name, words)
    out.print(rows)
    count = {level: sum(check.level == level for check in checks) for level in _MARKS}
    out.print()
    if count["fail"]:
        out.print(f"{count['fail']} to mend before shoal serve can work, {count['warn']} to look at.")
    elif count["warn"]:
        out.print(f"shoal serve can work; {count['warn']} to look at.")
    else:
        out.print("All is well.")
