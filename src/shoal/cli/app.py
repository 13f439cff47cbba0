"""The command tree. Only what `--help` needs is imported here; each command imports the rest when it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shoal.cli import (
    chat,
    doctor,
    fit,
    keys,
    loading,
    looking,
    models,
    moves,
    orphans,
    presets,
    requests,
    settings,
    sleeping,
    top,
    usage,
    users,
    virtual,
)
from shoal.cli.shell import EPILOG, Lazy, Root

_RUN, _LOOK, _MACHINE = "Run models", "Look", "Machine and settings"


class Shoal(Root):
    """The `shoal` command, with the commands whose modules are heavy."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        serve = Lazy("serve", "shoal.cli.serve:serve", "Run Shoal: one endpoint for every model.", _RUN)
        engines = Lazy("engines", "shoal.cli.engines:app", "Install, list and check engine environments.", _MACHINE)
        memory = Lazy("memory", "shoal.cli.memory:app", "Elastic memory: run the broker, see it and steer it.", _LOOK)
        demo = Lazy("demo", "shoal.cli.demo:demo", "Serve two real models on this machine's CPU.", _RUN)
        simulate = Lazy("simulate", "shoal.cli.simulate:simulate", "Try traffic on a fleet, without one.", _LOOK)
        self.commands = {"serve": serve, "demo": demo, **self.commands, "memory": memory, "engines": engines}
        self.commands["simulate"] = simulate


app = typer.Typer(
    cls=Shoal,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        settings.version()
        raise typer.Exit


@app.callback()
def _shoal(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Many language models on a few GPUs, behind one OpenAI-compatible endpoint."""


app.add_typer(models.app, name="models", rich_help_panel=_RUN)
app.add_typer(virtual.app, name="virtual", rich_help_panel=_RUN)
app.add_typer(presets.app, name="presets", rich_help_panel=_RUN)
app.command(rich_help_panel=_RUN)(loading.load)
app.command(rich_help_panel=_RUN)(loading.unload)
app.command(rich_help_panel=_RUN)(moves.move)
app.command(rich_help_panel=_RUN)(moves.change)
app.add_typer(moves.app, name="moves", rich_help_panel=_RUN)
app.command(rich_help_panel=_RUN)(sleeping.sleep)
app.command(rich_help_panel=_RUN)(sleeping.wake)
app.command(rich_help_panel=_RUN)(chat.chat)
app.command(rich_help_panel=_LOOK)(looking.ps)
app.command(rich_help_panel=_LOOK)(top.top)
app.command(rich_help_panel=_LOOK)(fit.fit)
app.add_typer(requests.app, name="requests", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(looking.status)
app.command(rich_help_panel=_LOOK)(looking.devices)
app.command(rich_help_panel=_LOOK)(looking.logs)
app.command(rich_help_panel=_LOOK)(looking.events)
app.command(rich_help_panel=_LOOK)(usage.usage)
app.add_typer(orphans.app, name="orphans", rich_help_panel=_MACHINE)
app.add_typer(keys.app, name="keys", rich_help_panel=_MACHINE)
app.add_typer(users.app, name="users", rich_help_panel=_MACHINE)
app.command(rich_help_panel=_MACHINE)(doctor.doctor)
app.add_typer(settings.app, name="config", rich_help_panel=_MACHINE)
app.command(rich_help_panel=_MACHINE)(settings.reload)
app.command(rich_help_panel=_MACHINE)(settings.version)
