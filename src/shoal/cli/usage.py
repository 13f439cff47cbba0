"""`shoal usage`: requests and tokens by day, key and model."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from shoal.cli.shell import AsJson, Url, connect, model_names

_BY = ("day", "key", "model")
_DAYS = 30


def usage(
    by: Annotated[str, typer.Option(metavar="WHAT", help="day, key or model; several as day,model.")] = "day",
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="DAY", help="First day, such as 2026-01-31 (UTC).", show_default="30 days ago"),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day.", show_default="today")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Only this key's, by id or name.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Only this model's.", autocompletion=model_names, show_default=False)
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show what was used: requests and tokens by day, key and model."""
    columns = [word.strip() for word in by.split(",")]
    for word in columns:
        if word not in _BY:
            raise typer.BadParameter(f"{word!r} is none of day, key and model", param_hint="--by")
    first = (
        _day(since, "--from") or (datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(_DAYS)).isoformat()
    )
    with connect(url) as client:
        found = client.usage(columns, since=first, until=_day(until, "--to"), key=key, model=model)
    from shoal.cli.output import print_json, stdout, table

    if as_json:
        print_json(found)
    elif not found["usage"]:
        stdout().print(f"Nothing was used since {first}.")
    else:
        rows = [[*(_word(row, column) for column in columns), *_numbers(row)] for row in found["usage"]]
        if len(rows) > 1:
            rows.append(["in all", *[""] * (len(columns) - 1), *_numbers(found["total"])])
        stdout().print(table([*(word.upper() for word in columns), "REQUESTS", "PROMPT TOKENS", "ANSWER TOKENS"], rows))


def _day(text: str | None, option: str) -> str | None:
    if text is None:
        return None
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a day; write it as 2026-01-31", param_hint=option) from None


def _word(row: Mapping[str, Any], column: str) -> str:
    if column == "key":
        return str(row["key_name"] or row["key"] or "(no key)")
    return str(row[column])


def _numbers(row: Mapping[str, Any]) -> list[str]:
    return [f"{row[field]:,}" for field in ("requests", "prompt_tokens", "completion_tokens")]
