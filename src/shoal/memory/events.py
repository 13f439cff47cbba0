"""What happens to a broker, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import messages as m
from .connection import Connection
from .ledger import Device
from .measuring import Reading


@dataclass(frozen=True, slots=True)
class Heard:
    """A message for the task that owns the books, or the end of a connection (None)."""

    connection: Connection
    message: m.ToBroker | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement said."""

    readings: Mapping[str, Reading]


@dataclass(frozen=True, slots=True)
class Due:
    """The time has come to decide on a device again."""

    device: Device
