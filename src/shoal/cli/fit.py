"""`shoal fit`: what models need, where they fit, and how likely their KV caches want too much together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from shoal.cli.shell import CONFLICT, AsJson, Url, connect, model_names

_LOAD = re.compile(r"(?:(?P<name>.+)=)?(?P<requests>\d+(?:\.\d+)?)x(?P<tokens>\d+)(?:~(?P<spread>\d+(?:\.\d+)?))?")
_STYLES = {"fits": "green", "loaded": "green", "fits_if_others_give_way": "yellow", "unknown": "yellow"}


def fit(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Names of models, folders, or hub ids, one after the other: each counts as there for the next.",
            autocompletion=model_names,
            show_default=False,
        ),
    ],
    devices: Annotated[
        str | None, typer.Option(metavar="IDS", help="Only these, such as cuda:0,cuda:1.", show_default=False)
    ] = None,
    load: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]NxTOKENS[~SPREAD]",
            help="Requests that run at once on average, their tokens (prompt and answer), and the spread of that over "
            "its mean (1). Without MODEL for all others. Repeatable.",
            show_default=False,
        ),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Say what models need, where they fit and what would have to give way. Exit code 5: one does not fit."""
    loads = dict(_load(text) for text in load or ())
    wanted = None if devices is None else [word.strip() for word in devices.split(",") if word.strip()]
    if wanted == []:
        raise typer.BadParameter("name a device such as cuda:0", param_hint="--devices")
    with connect(url) as client:
        found = client.fit(models, devices=wanted, load=loads)
    from shoal.cli.output import print_json

    if as_json:
        print_json(found)
    else:
        _show(found)
    if any(one["verdict"] == "does_not_fit" for one in found["models"]):
        raise typer.Exit(CONFLICT)


def _load(text: str) -> tuple[str, dict[str, float]]:
    match = _LOAD.fullmatch(text)
    if match is None or not int(match["tokens"]):
        raise typer.BadParameter(
            f"{text!r} is no load; write 8x2000 or coder=8x2000 for eight requests of 2000 tokens", param_hint="--load"
        )
    given = {"concurrency": float(match["requests"]), "tokens": float(match["tokens"])}
    return match["name"] or "*", given if match["spread"] is None else {**given, "spread": float(match["spread"])}


def _show(found: Mapping[str, Any]) -> None:
    from rich.text import Text

    from shoal.cli.output import plain, stdout, table

    out = stdout()
    rows = list(_rows(found["models"]))
    if rows:
        header = ["MODEL", "DEVICE", "WEIGHTS", "OVERHEAD", "KV", "NEEDS", "FREE", "", ""]
        out.print(table(header, rows))
        out.print()
    for one in found["models"]:
        style = _STYLES.get(one["verdict"], "red")
        out.print(Text.assemble((plain(one["message"]), style)))
        for note in (one["needs"] or {}).get("notes", ()):
            out.print(Text(f"  {plain(note)}", style="dim"))
        if load := one["load"]:
            how = "observed" if load["observed"] else "as given"
            said = f"load: {load['concurrency']:.3g} requests of {load['tokens']:,.0f} tokens on average, {how}"
            out.print(Text(f"  {said}", style="dim"))
    if found["collisions"]:
        out.print()
    for one in found["collisions"]:
        out.print(Text(plain(one["message"])))


def _rows(models: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    from rich.text import Text

    from shoal.cli.output import plain
    from shoal.units import format_bytes

    def size(number: int | None) -> str:
        return "?" if number is None else format_bytes(number)

    for model in models:
        needs = model["needs"] or {}
        for one in model["devices"]:
            parts = {part["what"]: part["bytes"] for part in one["parts"]}
            kv = parts.get("KV cache from the start", parts.get("KV cache"))
            verdict = Text(one["verdict"].replace("_", " "), style=_STYLES.get(one["verdict"], "red"))
            away = ", ".join(
                [*(f"{name} sleeps" for name in one["sleep"]), *(f"{n} is unloaded" for n in one["unload"])]
            )
            how = "measured" if one["measured"] else ""
            yield [
                plain(model["name"]), plain(one["device"]), size(parts.get("weights")), size(parts.get("overhead")),
                size(kv), size(one["needed"]), size(one["free"]), verdict, plain(away or how),
            ]  # fmt: skip
        if not model["devices"]:
            where = ", ".join(model["on"]) or "-"
            verdict = Text(model["verdict"].replace("_", " "), style=_STYLES.get(model["verdict"], "red"))
            yield [plain(model["name"]), where, size(needs.get("weights")), size(needs.get("overhead")),
                   size(needs.get("kv")), size(needs.get("total")), "", verdict, ""]  # fmt: skip
