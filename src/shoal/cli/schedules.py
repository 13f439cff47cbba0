"""`shoal presets schedule`: presets that are applied by the clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.shell import AsJson, Url, connect

Name = Annotated[str, typer.Argument(metavar="NAME", help="The preset's name.", show_default=False)]
LOCALTIME = Path("/etc/localtime")


def schedule(
    name: Name,
    cron: Annotated[
        str,
        typer.Argument(
            metavar="CRON", help="Minute, hour, day of month, month, day of week: '0 8 * * 1-5'.", show_default=False
        ),
    ],
    zone: Annotated[
        str | None,
        typer.Option(metavar="ZONE", help="A time zone such as Europe/Berlin.", show_default="this machine's"),
    ] = None,
    keep_others: Annotated[
        bool, typer.Option("--keep-others", help="Leave running what the preset does not name.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Have a preset applied at times, such as code by day and batch by night."""
    with connect(url) as client:
        view = client.schedule_preset(name, cron, zone=zone or local_zone(), exclusive=not keep_others)
        found = [one for one in client.preset_schedules() if one["preset"] == view["name"]]
    from shoal.cli.output import clock, plain, print_json, stdout

    if as_json:
        print_json(view)
        return
    for one in found:
        following = clock(one["next_at"]) if one["next_at"] is not None else "never"
        stdout().print(plain(f"{one['preset']} is applied {one['words']}; next: {following}"))


def schedules(url: Url = None, as_json: AsJson = False) -> None:
    """List when presets are applied, the next to come first."""
    with connect(url) as client:
        found = client.preset_schedules()
    from shoal.cli.output import clock, print_json, stdout, table

    if as_json:
        print_json({"schedules": found})
    elif not found:
        stdout().print("No preset is scheduled. Schedule one: shoal presets schedule NAME '0 8 * * 1-5'")
    else:
        rows = []
        for one in found:
            following = clock(one["next_at"]) if one["next_at"] is not None else "never"
            others = "" if one["exclusive"] else "others are kept"
            rows.append([one["preset"], one["cron"], one["zone"], following, others])
        stdout().print(table(["PRESET", "CRON", "ZONE", "NEXT", ""], rows))


def unschedule(
    name: Name,
    cron: Annotated[
        str | None, typer.Argument(metavar="[CRON]", help="Only the schedule of this expression.", show_default=False)
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Have a preset not applied by the clock any more."""
    with connect(url) as client:
        view = client.unschedule_preset(name, cron)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(view)
    else:
        left = len(view["schedules"])
        stdout().print(plain(f"{view['name']} has {left or 'no'} schedule{'' if left == 1 else 's'} left."))


def local_zone() -> str:
    """The time zone of this machine, by its name; UTC if it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named and not named.startswith("/"):
        return named
    _, _, name = str(LOCALTIME.resolve()).partition("/zoneinfo/")
    return name or "UTC"
