"""What has to be there before Shoal runs: made by the Shoal that runs, or else in the store of the next one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.shell import connect
from shoal.errors import ConflictError, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.paths import Paths
    from shoal.settings import Settings

Json = dict[str, Any]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="For a Shoal that does not run: its settings.", metavar="FILE")
]
StateDir = Annotated[
    Path | None, typer.Option(help="For a Shoal that does not run: its state folder.", metavar="FOLDER")
]


def check_place(url: str | None, config: Path | None, state_dir: Path | None) -> None:
    """Refuse options of which some are for a Shoal that runs and some for one that does not."""
    if url is not None and (config is not None or state_dir is not None):
        raise typer.BadParameter("--url is for a Shoal that runs, --config and --state-dir for one that does not")


def ask_or_store(
    url: str | None,
    config: Path | None,
    state_dir: Path | None,
    *,
    what: str,
    ask: Callable[[Client], Json],
    store: Callable[[Settings, Paths], Coroutine[Any, Any, Json]],
) -> Json:
    """Have `what` made by the Shoal that runs; or in the store, if the options are of a Shoal that does not run, or if
    none runs and none was named. What was made, as the API shows it."""
    if config is None and state_dir is None:
        try:
            with connect(url) as client:
                return ask(client)
        except ShoalError as error:
            if error.code != "unreachable" or url is not None or os.environ.get("SHOAL_URL"):
                raise
    import asyncio

    from shoal.config import load_settings
    from shoal.paths import find_paths

    settings = load_settings({"state_dir": state_dir}, file=config)
    paths = find_paths(settings)
    try:
        made = asyncio.run(store(settings, paths))
    except ShoalError as error:
        if error.code != "already_running":
            raise
        raise ConflictError(
            f"a Shoal runs with the state folder {paths.state}: it has to do this; say where it listens with --url, "
            "without --config and --state-dir",
            code="already_running",
        ) from None
    where = "the database of database_url" if settings.database_url else str(paths.database)
    print(f"No Shoal runs here; the {what} was stored in {where} for the next shoal serve.", file=sys.stderr)
    return made
