"""`shoal presets`: save what runs under a name, see what having it again would change, and have it again."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import schedules
from shoal.cli.loading import interruptible
from shoal.cli.shell import CONFLICT, AsJson, Url, connect
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.client import Client

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="What runs, saved under names.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The preset's name.", show_default=False)]
Replace = Annotated[bool, typer.Option("--replace", help="Replace the preset of this name.")]
KeepOthers = Annotated[bool, typer.Option("--keep-others", help="Leave running what the preset does not name.")]
_STYLES = {
    "keep": "dim", "start": "green", "wake": "green", "stop": "red", "sleep": "yellow", "change": "cyan", "move": "cyan"
}  # fmt: skip
_STATES = {"done": "green", "running": "yellow", "failed": "bold red", "skipped": "red", "waiting": "dim"}
INTERVAL = 0.3
"""Seconds between two looks at a run."""


@app.command("ls")
def ls(url: Url = None, as_json: AsJson = False) -> None:
    """List the presets, and how each was applied last."""
    with connect(url) as client:
        found = client.presets()
    from shoal.cli.output import clock, print_json, stdout, table

    if as_json:
        print_json({"presets": found})
    elif not found:
        stdout().print("No presets yet. Save what runs: shoal presets save NAME")
    else:
        rows = []
        for one in found:
            last = one["last_run"]
            applied = f"{last['state']} {clock(last['started_at'])}" if last else ""
            rows.append([one["name"], str(len(one["models"])), clock(one["changed_at"]), applied, one["description"]])
        stdout().print(table(["NAME", "MODELS", "SAVED", "APPLIED", "DESCRIPTION"], rows))


@app.command("save")
def save(
    name: Name,
    description: Annotated[
        str | None, typer.Option("--description", "-d", metavar="TEXT", help="What it is for.", show_default=False)
    ] = None,
    replace: Replace = False,
    fix_devices: Annotated[
        bool, typer.Option("--fix-devices", help="Models that may run anywhere are to come back where they are now.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Save what runs and sleeps now, with every setting."""
    with connect(url) as client:
        view = client.save_preset(name, description=description, replace=replace, fix_devices=fix_devices)
    _tell_saved(view, as_json)


@app.command("show")
def show(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Show a preset: its models, and where they were."""
    with connect(url) as client:
        view = client.preset(name)
    from shoal.cli.output import plain, print_json, stdout, table

    if as_json:
        print_json(view)
        return
    rows = []
    for entry in view["models"]:
        words = [f"{entry['awake']} awake"] if entry["awake"] else []
        words += [f"{entry['asleep']} asleep (level {entry['sleep_level']})"] if entry["asleep"] else []
        where = "; ".join(", ".join(placed) for placed in entry["devices"])
        rows.append([entry["spec"]["name"], entry["spec"]["source"], ", ".join(words), where])
    out = stdout()
    if view["description"]:
        out.print(plain(view["description"]))
    out.print(table(["MODEL", "SOURCE", "INSTANCES", "DEVICES"], rows))
    for one in view["schedules"]:
        out.print(plain(f"Applied by the clock: {one['cron']} ({one['zone']})"))
    if view["last_run"]:
        out.print(plain(f"Applied last: {view['last_run']['message'] or view['last_run']['state']}"))


@app.command("rm")
def rm(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Forget a preset; what runs goes on."""
    with connect(url) as client:
        client.remove_preset(name)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json({"removed": name})
    else:
        stdout().print(plain(f"Removed {name}."))


@app.command("export")
def export(
    name: Name,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.", show_default="print it")
    ] = None,
    url: Url = None,
) -> None:
    """Write a preset as YAML. It holds the models' `env` too: look for secrets before you pass it on."""
    with connect(url) as client:
        text = client.export_preset(name)
    if file is None:
        sys.stdout.write(text)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ShoalError(f"{file} cannot be written: {error.strerror}", code="file") from None


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or - for standard input.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Call it so.", show_default="its own")
    ] = None,
    replace: Replace = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Keep a preset that was exported, here or elsewhere, or written by hand. Nothing is loaded."""
    text = _read(file)
    with connect(url) as client:
        try:
            view = client.import_preset(text, name=name, replace=replace)
        except ShoalError as error:
            if error.status == 400:
                raise ShoalError(f"{file}: {error.message}", status=400, code=error.code) from None
            raise
    _tell_saved(view, as_json)


@app.command("apply")
def apply(
    name: Name,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would do.")] = False,
    keep_others: KeepOthers = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Have what a preset has, by changing only what differs. Asks first. Exit code 5: not all can be had."""
    from shoal.cli.output import print_json, stdout

    with connect(url) as client:
        plan = client.plan_preset(name, exclusive=not keep_others)
        if not as_json:
            _show_plan(plan)
        if dry_run or plan["in_place"]:
            if as_json:
                print_json(plan)
            if plan["problems"]:
                raise typer.Exit(CONFLICT)
            return
        if not yes and not _agreed(as_json):
            raise ShoalError("nothing was changed; say yes, or give --yes", status=409, code="not_confirmed")
        run: Mapping[str, Any] = client.apply_preset(name, exclusive=not keep_others)
        if wait:
            with interruptible(f"{name} goes on being applied; see shoal presets status, or shoal presets cancel"):
                run = _follow(client, run, quiet=as_json)
    if as_json:
        print_json(run)
    elif wait:
        _show_end(run)
    else:
        stdout().print("It is being applied. See how far it is: shoal presets status")
    if run["state"] not in ("done", "running"):
        raise typer.Exit(CONFLICT)


@app.command("status")
def status(url: Url = None, as_json: AsJson = False) -> None:
    """Show how far a preset's run is, or how the last one ended."""
    with connect(url) as client:
        run = client.preset_run()
    from shoal.cli.output import print_json

    if as_json:
        print_json(run)
    else:
        _show_run(run)


@app.command("cancel")
def cancel(url: Url = None, as_json: AsJson = False) -> None:
    """Have the run begin no further step; a second time, have it not wait for those under way."""
    with connect(url) as client:
        run = client.cancel_preset_run()
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(run)
    else:
        stdout().print(plain(f"{run['preset']}: no further step is begun."))


app.command("schedule")(schedules.schedule)
app.command("schedules")(schedules.schedules)
app.command("unschedule")(schedules.unschedule)


def _read(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise ShoalError(f"{file} cannot be read: {error.strerror}", code="file") from None
    except UnicodeDecodeError:
        raise ShoalError(f"{file} is not UTF-8 text", code="file") from None


def _agreed(as_json: bool) -> bool:
    """Whether somebody at a terminal says yes."""
    return not as_json and sys.stdin.isatty() and typer.confirm("Go on?", default=False)


def _follow(client: Client, run: Mapping[str, Any], *, quiet: bool) -> Mapping[str, Any]:
    """The run once it has ended; what happens on the way is shown."""
    from shoal.cli.output import stdout

    out, shown = stdout(), set[tuple[int, str]]()
    while True:
        for number, one in enumerate(run["steps"]):
            key = (number, one["state"])
            if not quiet and one["state"] != "waiting" and key not in shown and one["step"]["action"] != "keep":
                shown.add(key)
                out.print(_step_line(one))
        if run["state"] != "running":
            return run
        time.sleep(INTERVAL)
        run = client.preset_run()


def _show_plan(plan: Mapping[str, Any]) -> None:
    from rich.text import Text

    from shoal.cli.output import plain, stdout, table

    out = stdout()
    steps = [step for group in plan["groups"] for step in group]
    rows = [[Text(one["action"], style=_STYLES[one["action"]]), one["model"], one["reason"]] for one in steps]
    if rows:
        out.print(table(["", "MODEL", "WHY"], rows))
    for problem in plan["problems"]:
        out.print(Text(plain(f"cannot be had: {problem['model']}: {problem['message']}"), style="bold red"))
    for note in plan["notes"]:
        out.print(Text(plain(f"note: {note}"), style="yellow"))
    if plan["left"]:
        out.print(plain(f"left running beside it: {', '.join(plan['left'])}"))
    if plan["in_place"]:
        out.print(plain(f"{plan['preset']} is in place; there is nothing to do."))


def _show_run(run: Mapping[str, Any]) -> None:
    from shoal.cli.output import plain, stdout

    out = stdout()
    out.print(plain(f"{run['preset']}: {'cancelling' if run['cancelling'] and not run['ended_at'] else run['state']}"))
    for one in run["steps"]:
        out.print(_step_line(one))
    if run["state"] != "running":
        _show_end(run)


def _show_end(run: Mapping[str, Any]) -> None:
    from rich.text import Text

    from shoal.cli.output import plain, stdout

    style = "green" if run["state"] == "done" else "bold red"
    stdout().print(Text(plain(f"{run['message']}."), style=style))


def _step_line(one: Mapping[str, Any]) -> Any:
    from rich.text import Text

    from shoal.cli.output import plain

    step = one["step"]
    words = f" {step['action']} {step['model']}" + (f": {one['message']}" if one["message"] else "")
    return Text.assemble((f"{one['state']:>8}", _STATES[one["state"]]), plain(words))


def _tell_saved(view: Mapping[str, Any], as_json: bool) -> None:
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(view)
    else:
        names = ", ".join(entry["spec"]["name"] for entry in view["models"])
        stdout().print(plain(f"Saved {view['name']}: {names or 'no models'}."))
