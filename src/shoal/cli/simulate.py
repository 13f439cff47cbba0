"""`shoal simulate`: what a fleet would do with some traffic, in accelerated time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli.shell import AsJson


def simulate(
    models: Annotated[
        Path, typer.Option("--models", "-m", metavar="FILE", help="YAML file of models and what they cost.")
    ],
    devices: Annotated[
        str, typer.Option("--devices", "-d", metavar="DEVICES", help="8x80GiB, or cuda:0=80GiB,cuda:1=40GiB.")
    ],
    trace: Annotated[
        Path | None, typer.Option("--trace", "-t", metavar="FILE", help="JSON lines, one request each.")
    ] = None,
    generate: Annotated[
        int | None, typer.Option("--generate", metavar="N", min=1, help="Make up N requests instead.")
    ] = None,
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="Over so long: 1h, 7d.")] = "1d",
    zipf: Annotated[
        float, typer.Option(min=0, max=10, help="The k-th model of the file is asked for k^-ZIPF as often.")
    ] = 1.0,
    burst: Annotated[float, typer.Option(min=1, help="Requests in a burst, on average.")] = 5.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same traffic.")] = 0,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Write the traffic that is made up as a trace.")
    ] = None,
    host_memory: Annotated[
        str, typer.Option("--host-memory", metavar="SIZE", help="Of the host, for the weights of models that sleep.")
    ] = "256GiB",
    as_json: AsJson = False,
) -> None:
    """Run the residency policy against a trace, in accelerated time: waits, wakes, loads, utilisation."""
    from dataclasses import asdict

    from shoal.cli.output import print_json
    from shoal.fleet.simulation import simulate as run
    from shoal.fleet.simulation_models import parse_devices, read_setup
    from shoal.units import parse_bytes

    if (trace is None) == (generate is None):
        raise typer.BadParameter("give either --trace FILE or --generate N", param_hint="--trace")
    if save is not None and generate is None:
        raise typer.BadParameter("what is read from --trace is saved already", param_hint="--save")
    try:
        host = parse_bytes(host_memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--host-memory") from None
    setup = read_setup(models)
    requests = _requests(trace, list(setup.models), generate or 0, lasting, zipf, burst, seed, save)
    report = run(setup, parse_devices(devices), requests, host_budget=host)
    if as_json:
        print_json({**asdict(report), "served": report.served, "refused": report.refused})
    else:
        _show(report)


def _requests(
    trace: Path | None, models: list[str], count: int, lasting: str, zipf: float, burst: float, seed: int,
    save: Path | None,
) -> Iterable[Any]:  # fmt: skip
    from shoal.fleet import simulation_trace as traffic
    from shoal.units import parse_seconds

    if trace is not None:
        return traffic.read(trace)
    try:
        duration = parse_seconds(lasting)
        if duration <= 0:
            raise ValueError("it has to be more than nothing")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    made: Iterator[Any] = traffic.generate(models, count, duration, zipf=zipf, burst=burst, seed=seed)
    return made if save is None else traffic.write(save, made)


def _show(report: Any) -> None:
    from shoal.cli.output import plain, stdout, table
    from shoal.units import format_seconds

    def wait(value: float | None) -> str:
        return "" if value is None else format_seconds(value)

    rows = [
        [m.name, str(m.served), str(m.refused), wait(m.wait_p50), wait(m.wait_p99), str(m.wakes), str(m.loads),
         str(m.sleeps), str(m.unloads), str(m.gave_way)]
        for m in report.models
        if m.served or m.refused or m.loads
    ]  # fmt: skip
    out = stdout()
    columns = ["MODEL", "SERVED", "REFUSED", "P50", "P99", "WAKES", "LOADS", "SLEEPS", "UNLOADS", "GAVE WAY"]
    out.print(table(columns, rows))
    out.print()
    out.print(
        table(
            ["DEVICE", "MEMORY TAKEN", "BUSY"],
            [[d.name, f"{100 * d.memory:.0f} %", f"{100 * d.busy:.0f} %"] for d in report.devices],
        )
    )
    out.print()
    for model in report.models:
        if model.refusal:
            out.print(plain(f"{model.name} was refused: {model.refusal}"))
    out.print(
        f"{report.requests} requests in {format_seconds(report.seconds)}: {report.served} served, "
        f"{report.refused} refused. P50 and P99 are waits before a request begins to run."
    )
