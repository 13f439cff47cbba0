"""`shoal users`: who may sign in to the page and the admin API."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli.shell import AsJson, Url, connect
from shoal.errors import ConflictError, ShoalError

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Say who may sign in to the page and the admin API."
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.", show_default=False)]
_MOST_INPUT = 64 * 1024


@app.command("set")
def set_(
    name: Name,
    role: Annotated[
        str | None,
        typer.Option(metavar="ROLE", help="admin, or read-only. A new user needs one.", show_default=False),
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input, one line.")
    ] = False,
    keep_password: Annotated[
        bool, typer.Option("--keep-password", help="Change the role alone, of a user that there is.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="For a Shoal that does not run: its settings.", metavar="FILE"),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="For a Shoal that does not run: its state folder.", metavar="FOLDER")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a user, or give one another password or role. The password is asked for, and never an argument.

    As soon as there is a user, everybody signs in. Where no Shoal runs the user is made for the next one.
    """
    from shoal.fleet.users import check_password, check_role, check_user_name

    if url is not None and (config is not None or state_dir is not None):
        raise typer.BadParameter("--url is for a Shoal that runs, --config and --state-dir for one that does not")
    if password_stdin and keep_password:
        raise typer.BadParameter("say either --password-stdin or --keep-password")
    if keep_password and role is None:
        raise typer.BadParameter("say what to change: --role, or leave out --keep-password")
    check_user_name(name)
    if role is not None:
        check_role(role)
    password = None if keep_password else check_password(_from_stdin() if password_stdin else _asked(name))
    if config is not None or state_dir is not None:
        user = _set_stored(name, role, password, config, state_dir)
    else:
        try:
            with connect(url) as client:
                user = client.set_user(name, role=role, password=password)
        except ShoalError as error:
            if error.code != "unreachable" or url is not None or os.environ.get("SHOAL_URL"):
                raise
            user = _set_stored(name, role, password, None, None)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json(user)
    else:
        stdout().print(plain(f"{user['name']} may sign in ({user['role']})."))


@app.command()
def ls(url: Url = None, as_json: AsJson = False) -> None:
    """List the users."""
    with connect(url) as client:
        users = client.users()
    from shoal.cli.output import age, print_json, stdout, table

    if as_json:
        print_json({"users": users})
    elif not users:
        stdout().print(
            "No users: nobody is asked, and only this machine is answered. Make one: shoal users set NAME --role admin"
        )
    else:
        rows = [[one["name"], one["role"], str(one["sessions"]), f"{age(one['changed_at'])} ago"] for one in users]
        stdout().print(table(["NAME", "ROLE", "SESSIONS", "CHANGED"], rows))


@app.command()
def rm(name: Name, url: Url = None, as_json: AsJson = False) -> None:
    """Remove a user; what they have open ends. Without users nobody is asked, and only this machine is answered."""
    with connect(url) as client:
        client.remove_user(name)
    from shoal.cli.output import plain, print_json, stdout

    if as_json:
        print_json({"removed": name})
    else:
        stdout().print(plain(f"Removed {name}."))


def _from_stdin() -> str:
    """The password that standard input holds, without the end of its line."""
    text = sys.stdin.read(_MOST_INPUT)
    return text.removesuffix("\n").removesuffix("\r")


def _asked(name: str) -> str:
    """The password that somebody types, twice."""
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is nobody to ask for the password; give it with --password-stdin")
    password: str = typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt="Once more", err=True)
    return password


def _set_stored(
    name: str, role: str | None, password: str | None, config: Path | None, state_dir: Path | None
) -> dict[str, Any]:
    """Make or change a user in the store of a Shoal that does not run."""
    import asyncio

    from shoal.config import load_settings
    from shoal.fleet.users import check_role
    from shoal.paths import find_paths
    from shoal.sign_in import set_stored_user

    found = load_settings({"state_dir": state_dir}, file=config)
    paths = find_paths(found)
    try:
        wanted = None if role is None else check_role(role)
        user, _ = asyncio.run(set_stored_user(found, paths, name, wanted, password))
    except ShoalError as error:
        if error.code != "already_running":
            raise
        raise ConflictError(
            f"a Shoal runs with the state folder {paths.state}: it has to do this; say where it listens with --url, "
            "without --config and --state-dir",
            code="already_running",
        ) from None
    where = "the database of database_url" if found.database_url else str(paths.database)
    print(f"No Shoal runs here; the user was stored in {where} for the next shoal serve.", file=sys.stderr)
    times = {"created_at": user.created_at, "changed_at": user.changed_at}
    return {"name": user.name, "role": user.role, **times, "sessions": 0}
