"""What the commands of the benchmarks with real engines have in common: some options, and the way they run and end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from .clock import say
from .processes import end_in_order
from .results import Check, merge, show
from .rig import Rig, find

Rows = list[dict[str, Any]]
Judge = Callable[[Rows], list[Check]]


class Run(Protocol):
    """One run of a benchmark: the rows so far, and where the engines' logs are."""

    rows: Rows
    logs: Path

    def run(self) -> None:
        """Measure."""
        ...

    def save(self) -> Path:
        """Write the rows so far, and say where."""
        ...


def add_label(parser: argparse.ArgumentParser, *, merges: bool = True) -> None:
    """`--label` and `--merge`."""
    parser.add_argument("--label", default="", help="part of the result's name, for runs of one day")
    if merges:
        parser.add_argument("--merge", nargs="+", type=Path, metavar="RESULT", help="run nothing: merge results")


def split_systems(parser: argparse.ArgumentParser, found: argparse.Namespace, known: Collection[str]) -> None:
    """`--systems` as a list. Ends the process if one of them is not `known`."""
    found.systems = found.systems.split(",")
    if not set(found.systems) <= set(known):
        parser.error(f"--systems: known are {', '.join(known)}")


def gpu_unless_quick(found: argparse.Namespace) -> Rig | None:
    """The GPU that a benchmark of sleep takes, None for a rehearsal. Ends the process if there is none."""
    if found.quick:  # vLLM on the CPU cannot sleep, so a rehearsal has no engine of its own
        return None
    rig = find(found)
    if rig.variant != "cuda":
        sys.exit("vLLM on the CPU frees nothing when it sleeps: this takes a GPU; --quick rehearses without")
    return rig


def merged(found: argparse.Namespace, judge: Judge) -> bool:
    """Merge results if that was asked for, and say whether it was."""
    if found.merge:
        merge(found.merge, found.out, judge, label=found.label)
    return bool(found.merge)


def carry_out(bench: Run, judge: Judge, rig: Rig | None, *, early: tuple[type[Exception], ...] = ()) -> int:
    """Run it, keep its rows however it ends, and print what holds; the exit status. `rig`: what it runs on.

    An error of `early` is said in a line; another one ends the process, after the rows are kept.
    """
    end_in_order()
    say("rehearsal" if rig is None else rig.describe(), "logs in", bench.logs)
    try:
        bench.run()
    except early as error:
        say("ended early:", error)
        return 1
    finally:
        if bench.rows:
            say(bench.save())
    show(judge(bench.rows))
    return 0
