"""`shoal memory`: run the memory broker, and see and steer what engines lease from it."""

from __future__ import annotations

import typer

from shoal.cli.memory_broker import broker

app = typer.Typer(
    name="memory",
    help="Elastic memory: run the broker, see what engines hold, and steer it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command()(broker)


@app.callback()
def _memory() -> None:
    """Elastic memory: run the broker, see what engines hold, and steer it."""
