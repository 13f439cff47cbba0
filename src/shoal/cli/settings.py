"""`shoal config`, `shoal reload` and `shoal version`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli.shell import AsJson, Url, connect

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Show and check settings.")
File = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="A YAML file.", show_default="SHOAL_CONFIG, if set"),
]


@app.command()
def show(
    file: File = None,
    live: Annotated[bool, typer.Option("--live", help="Ask the running Shoal instead.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show the settings that shoal serve would use here: file, SHOAL_ variables and defaults."""
    from shoal.cli.output import print_json

    if live:
        with connect(url) as client:
            values = client.settings()["settings"]
    else:
        from shoal.config import load_settings

        values = load_settings(file=file).model_dump(mode="json")
    if values.get("database_url"):
        values["database_url"] = hide_password(values["database_url"])
    if as_json:
        print_json(values)
        return
    import yaml

    print(yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=100), end="")


@app.command()
def schema(as_json: AsJson = False) -> None:
    """Print the JSON schema of the settings file, for editors and checks."""
    del as_json  # a schema is JSON either way
    from shoal.cli.output import print_json
    from shoal.settings import Settings

    print_json(Settings.model_json_schema())


@app.command()
def check(file: File = None, as_json: AsJson = False) -> None:
    """Check a settings file and the SHOAL_ variables."""
    from shoal.cli.output import print_json, stdout
    from shoal.config import load_settings

    settings = load_settings(file=file)
    if as_json:
        print_json({"ok": True, "file": str(file) if file else None, "models": sorted(settings.models)})
    else:
        where = str(file) if file else "The settings"
        stdout().print(f"{where}: no faults, {len(settings.models)} models.", soft_wrap=True)


def reload(url: Url = None, as_json: AsJson = False) -> None:
    """Have the running Shoal read its settings file again."""
    with connect(url) as client:
        found = client.reload_settings()
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json(found)
        return
    out = stdout()
    words = {"added": "added", "changed": "changed", "removed": "removed", "restart_needed": "only after a restart"}
    said = [(words[key], found.get(key) or []) for key in words]
    for word, names in said:
        if names:
            out.print(f"{word}: {', '.join(map(str, names))}")
    if not any(names for _, names in said):
        out.print("Nothing has changed.")


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    import platform

    from shoal import __version__

    if as_json:
        from shoal.cli.output import print_json

        print_json({"version": __version__, "python": platform.python_version()})
    else:
        print(f"shoal {__version__}")


def hide_password(url: Any) -> str:
    """A database URL that may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", str(url))
