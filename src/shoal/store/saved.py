"""What a start finds in the database."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.fleet.state import Instance, Model


@dataclass(frozen=True, slots=True)
class Saved:
    """What a database held: models, instances (ended ones too), and in a sentence each what could not be read."""

    models: list[Model] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    complete: bool = True
    """False: there may have been more. What is not in here is then no proof that nobody knows of it."""
