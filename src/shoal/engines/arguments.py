"""What the arguments of an engine say, read without building its parser. Pure.

An option counts as written last, as argparse has it, and with underscores for dashes, as vLLM takes it. What cannot be
read is left to the engine, which refuses it at its start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence


def values_of(args: Sequence[str], option: str) -> list[str]:
    """The values of an option that takes several, written ``--option a b`` or ``--option=a``; [] if it is not there."""
    found: list[str] = []
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name.replace("_", "-") != option:
            continue
        if equals:
            found = [value]
            continue
        found = []
        for later in args[index + 1 :]:
            if later.startswith("-"):
                break
            found.append(later)
    return found


def read_count(args: Sequence[str], option: str, default: int) -> int | None:
    """The whole number from 1 that `option` gives, `default` if it is not there, None if it is something else."""
    values = values_of(args, option)
    if not values:
        given = any(arg.partition("=")[0].replace("_", "-") == option for arg in args)
        return None if given else default
    try:
        count = int(values[0])
    except ValueError:
        return None
    return count if count >= 1 else None


def read_lora_names(args: Sequence[str]) -> tuple[str, ...]:
    """The names in `--lora-modules`: items ``name=path``, or JSON objects with a `name`."""
    names: dict[str, None] = {}
    for item in values_of(args, "--lora-modules"):
        name = item.partition("=")[0] if "=" in item and "," not in item else _name_in(item)
        if name:
            names[name] = None
    return tuple(names)


def _name_in(text: str) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = found.get("name") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None
