"""What every command shares: options, exit codes, errors, and commands that are imported when they run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from shoal.errors import ShoalError, error_body

if TYPE_CHECKING:
    from shoal.client import Client

OK, FAILED, USAGE, UNREACHABLE, NOT_FOUND, CONFLICT = range(6)
INTERRUPTED = 130
EPILOG = (
    "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 Shoal cannot be reached; 4 no such model or instance; "
    "5 the present state forbids it; 130 interrupted.\n\n"
    "With --json, standard output holds JSON and nothing else, and errors are JSON on standard error."
)

_JSON = "shoal.json"
_UsageError: Any = typer.BadParameter.__mro__[1]  # Typer does not export the class, and moved it between versions

Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Where Shoal listens. Default: SHOAL_URL, or 127.0.0.1:8000.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class DetailedError(ShoalError):
    """A failure with what to do about it, and the last lines of the log that shows it."""

    def __init__(self, message: str, *, code: str, hint: str = "", instance: str = "", log: Sequence[str] = ()) -> None:
        super().__init__(message, status=500, code=code)
        self.hint = hint
        self.instance = instance
        self.log = list(log)

    def body(self) -> dict[str, Any]:
        """The error with `hint`, `instance` and `log` beside its message."""
        body = super().body()
        body["error"] |= {"hint": self.hint, "instance": self.instance, "log": self.log}
        return body


def exit_code(error: ShoalError) -> int:
    """The exit code that tells a script what kind of refusal this was."""
    if error.code == "unreachable":
        return UNREACHABLE
    if error.code == "invalid_url":
        return USAGE
    if error.code == "already_running":
        return FAILED
    return {404: NOT_FOUND, 409: CONFLICT}.get(error.status, FAILED)


def report(error: ShoalError, *, as_json: bool) -> None:
    """Say on standard error what went wrong."""
    if as_json:
        print(json.dumps(error.body(), ensure_ascii=False), file=sys.stderr)
        return
    from rich.text import Text

    from shoal.cli.output import plain, stderr

    out = stderr()
    out.print(Text.assemble(("error: ", "bold red"), plain(error.message)))
    if isinstance(error, DetailedError):
        if error.hint:
            out.print(Text.assemble(("what to do: ", "bold"), plain(error.hint)))
        if error.log:
            out.print(Text("the end of its log:", style="bold"))
            for line in error.log:
                out.print(Text("  " + plain(line), style="dim"), soft_wrap=True)
        if error.instance:
            out.print(Text.assemble(("the whole log: ", "bold"), f"shoal logs {error.instance} --tail 10000"))


class Lazy(TyperCommand):
    """A command that is imported when it runs, so that `shoal --help` need not wait for it."""

    def __init__(self, name: str, target: str, summary: str, panel: str) -> None:
        super().__init__(name, help=summary, rich_help_panel=panel)
        self._target = target

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which then runs in place of this one."""
        module, _, attribute = self._target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
            app.command(self.name)(found)
            found = app
        return typer.main.get_command(found).make_context(info_name, args, parent=parent, **extra)


class Root(TyperGroup):
    """The top command: turns refusals into messages and exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note whether JSON is wanted, so that even a wrong option is reported as JSON."""
        ctx.meta[_JSON] = "--json" in (args[: args.index("--")] if "--" in args else args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        as_json: bool = ctx.meta[_JSON]
        try:
            return super().invoke(ctx)
        except ShoalError as error:
            report(error, as_json=as_json)
            raise typer.Exit(exit_code(error)) from None
        except _UsageError as error:
            if not as_json:
                raise
            body = error_body(error.format_message(), status=400, code="usage")
            print(json.dumps(body, ensure_ascii=False), file=sys.stderr)
            raise typer.Exit(USAGE) from None


@contextmanager
def connect(url: str | None, *, timeout: float = 30.0) -> Iterator[Client]:
    """A client of the Shoal at `url`; what it warned of is shown at the end."""
    from shoal.client import Client

    with Client(url, timeout=timeout) as client:
        try:
            yield client
        finally:
            for warning in dict.fromkeys(client.warnings):
                print(f"warning: {warning}", file=sys.stderr)


def model_names(incomplete: str) -> list[str]:
    """Names for shell completion. Never waits longer than half a second, and never fails."""
    from threading import Thread

    from shoal.client import Client

    names: list[str] = []

    def ask() -> None:
        try:
            with Client(timeout=0.5) as client:
                names.extend(str(model["name"]) for model in client.models())
        except ShoalError:
            return

    asking = Thread(target=ask, daemon=True)  # a time limit on each read would not bound the whole
    asking.start()
    asking.join(0.5)
    return [name for name in names if name.startswith(incomplete)]


ModelName = Annotated[
    str, typer.Argument(metavar="NAME", help="The model's name.", autocompletion=model_names, show_default=False)
]
