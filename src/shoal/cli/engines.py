"""`shoal engines`: make, show, check and remove engine environments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from shoal.config import load_settings
from shoal.engines.base import Environment
from shoal.engines.environments import Environments, Finding
from shoal.engines.pip_progress import InstallProgress
from shoal.engines.recipes import RECIPES
from shoal.errors import ShoalError
from shoal.units import format_bytes

app = typer.Typer(
    name="engines",
    help="Engine environments: Python interpreters that have vLLM, apart from Shoal's own.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command("install")
def install(
    name: Annotated[str, typer.Argument(help=" or ".join(f"{r.name} ({r.about})" for r in RECIPES.values()) + ".")],
    force: Annotated[bool, typer.Option("--force", help="Make it anew although it is there.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make an engine environment with pip. Takes a minute or two, and gigabytes of disk."""
    with _errors(as_json):
        environments = _environments()
        if name in RECIPES and not (quiet or as_json):
            size = format_bytes(RECIPES[name].size)
            Console(stderr=True).print(f"{name} goes to {environments.directory / name} (about {size}).")
        with _progress(name, show=not (quiet or as_json)) as report:
            environment = environments.install(name, progress=report, force=force)
        _show(
            environment, as_json, f"{environment.name} is ready: vLLM {environment.version} for {environment.variant}."
        )


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List the engine environments, and what can be installed."""
    with _errors(as_json):
        environments = _environments()
        present = environments.ls()
        unfinished = environments.unfinished()
        if as_json:
            rows = [{**_as_dict(environment), "state": "ready"} for environment in present]
            rows += [{"name": name, "state": "unfinished"} for name in unfinished]
            typer.echo(json.dumps(rows, indent=2))
            return
        table = Table("NAME", "ENGINE", "DEVICE", "VERSION", "INTERPRETER", box=None)
        for environment in present:
            table.add_row(
                environment.name, environment.kind, environment.variant, environment.version, str(environment.python)
            )
        for name in unfinished:
            table.add_row(name, "", "", "unfinished", f"run: shoal engines install {name}")
        for missing in [r for r in RECIPES.values() if r.name not in {e.name for e in present} | set(unfinished)]:
            table.add_row(
                missing.name, missing.kind, missing.variant, "-", f"run: shoal engines install {missing.name}"
            )
        _wide_console().print(table)


@app.command("check")
def check(
    name: Annotated[str | None, typer.Argument(help="An environment or an interpreter. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Try the engine environments: import vLLM in each. Exits 1 if one cannot be used."""
    with _errors(as_json):
        environments = _environments()
        chosen = [environments.get(name)] if name is not None else environments.ls()
        if not chosen:
            raise ShoalError(
                f"no engine environment is installed in {environments.directory}. Run: shoal engines install "
                f"{' or '.join(RECIPES)}",
                code="engine_not_installed",
            )
        results = [(environment, environments.check(environment)) for environment in chosen]
        if as_json:
            typer.echo(json.dumps([_checked(environment, findings) for environment, findings in results], indent=2))
        else:
            for environment, findings in results:
                _print_findings(environment, findings)
    if not all(finding.ok for _, findings in results for finding in findings):
        raise typer.Exit(1)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    python: Annotated[Path, typer.Argument(help="The interpreter, such as ~/venvs/vllm/bin/python.")],
    as_json: AsJson = False,
) -> None:
    """Use an interpreter of yours that has vLLM. Nothing in it is changed."""
    with _errors(as_json):
        environment = _environments().add(name, python)
        _show(
            environment,
            as_json,
            f"{name}: vLLM {environment.version} for {environment.variant} at {environment.python}.",
        )


@app.command("rm")
def remove(
    name: Annotated[str, typer.Argument(help="The environment.")],
    as_json: AsJson = False,
) -> None:
    """Delete an environment that Shoal made, or forget an interpreter of yours. Stop what runs in it first."""
    with _errors(as_json):
        _environments().remove(name)
        typer.echo(json.dumps({"name": name, "removed": True}) if as_json else f"{name} is gone.")


def _environments() -> Environments:
    return Environments(load_settings().engines_dir)


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    try:
        yield
    except ShoalError as error:
        if as_json:
            typer.echo(json.dumps(error.body()))
        else:
            typer.echo(f"shoal: {error.message}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _progress(name: str, *, show: bool) -> Iterator[Callable[[InstallProgress], None]]:
    if not show:
        yield lambda _: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _phases(console)
        return
    columns = (
        SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task(name, total=100, detail="")

        def report(at: InstallProgress) -> None:
            detail = at.detail if len(at.detail) <= 40 else at.detail[:39] + "…"
            bar.update(task, completed=at.percent, description=f"{name}: {at.phase}", detail=detail)

        yield report


def _phases(console: Console) -> Callable[[InstallProgress], None]:
    """Where there is no terminal to draw on: one line a phase."""
    last = ""

    def report(at: InstallProgress) -> None:
        nonlocal last
        if at.phase != last:
            last = at.phase
            console.print(f"{at.percent:>3} %  {at.phase} {at.detail}".rstrip(), highlight=False)

    return report


def _wide_console() -> Console:
    """Paths that are cut short cannot be copied: lines are as long as they are unless a terminal wraps them."""
    console = Console()
    return console if console.is_terminal else Console(width=400)


def _as_dict(environment: Environment) -> dict[str, Any]:
    return {**dataclasses.asdict(environment), "python": str(environment.python)}


def _checked(environment: Environment, findings: list[Finding]) -> dict[str, Any]:
    ok = all(finding.ok for finding in findings)
    return {**_as_dict(environment), "ok": ok, "findings": [dataclasses.asdict(finding) for finding in findings]}


def _show(environment: Environment, as_json: bool, sentence: str) -> None:
    typer.echo(json.dumps(_as_dict(environment), indent=2) if as_json else sentence)


def _print_findings(environment: Environment, findings: list[Finding]) -> None:
    typer.echo(f"{environment.name}:")
    for finding in findings:
        typer.echo(f"  {'ok ' if finding.ok else 'BAD'} {finding.message}")
        if finding.hint:
            typer.echo(f"      {finding.hint}")
