"""`shoal users`: who may sign in to the page and the admin API."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.shell import AsJson, Url, connect
from shoal.cli.stored import Config, StateDir, ask_or_store, check_place

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.paths import Paths
    from shoal.settings import Settings

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
    config: Config = None,
    state_dir: StateDir = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a user, or give one another password or role. The password is asked for, and never an argument.

    As soon as there is a user, everybody signs in. Where no Shoal runs the user is made for the next one.
    """
    from shoal.fleet.users import check_password, check_role, check_user_name

    check_place(url, config, state_dir)
    if password_stdin and keep_password:
        raise typer.BadParameter("say either --password-stdin or --keep-password")
    if keep_password and role is None:
        raise typer.BadParameter("say what to change: --role, or leave out --keep-password")
    check_user_name(name)
    wanted = None if role is None else check_role(role)
    password = None if keep_password else check_password(_from_stdin() if password_stdin else _asked(name))

    def ask(client: Client) -> dict[str, Any]:
        return client.set_user(name, role=role, password=password)

    async def store(settings: Settings, paths: Paths) -> dict[str, Any]:
        from shoal.sign_in import set_stored_user

        user, _ = await set_stored_user(settings, paths, name, wanted, password)
        times = {"created_at": user.created_at, "changed_at": user.changed_at}
        return {"name": user.name, "role": user.role, **times, "sessions": 0}

    user = ask_or_store(url, config, state_dir, what="user", ask=ask, store=store)
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
