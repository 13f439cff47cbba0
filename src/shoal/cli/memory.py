"""`shoal memory`: run the memory broker, and see and steer what engines lease from it."""

from __future__ import annotations

import typer

from shoal.cli import memory_steer
from shoal.cli.memory_broker import broker
from shoal.cli.memory_env import env

app = typer.Typer(
    name="memory",
    help="Elastic memory: run the broker, see what engines hold, and steer it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command()(broker)
app.command()(env)
app.command()(memory_steer.ls)
app.command()(memory_steer.top)
app.command()(memory_steer.watch)
app.command()(memory_steer.limit)
app.command()(memory_steer.floor)
app.command()(memory_steer.priority)
app.command()(memory_steer.trim)
app.command()(memory_steer.budget)


@app.callback()
def _memory() -> None:
    """Elastic memory: run the broker, see what engines hold, and steer it."""
