"""What is kept of each start for the history of loads: when it began, what ran, and what came of it.

No I/O and no clock of its own, as in `life.py`, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Mapping

from shoal.fleet.effects import Effects
from shoal.fleet.records import LoadRecord
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Instance


class Starts:
    """The last start of each instance."""

    def __init__(self, fleet: Fleet, effects: Effects) -> None:
        self._fleet = fleet
        self._effects = effects
        self._began: dict[str, float] = {}
        self._versions: dict[str, str] = {}

    def began(self, instance_id: str, at: float) -> None:
        """It was started (Unix seconds)."""
        self._began[instance_id] = at

    def runs(self, instance_id: str, version: str) -> None:
        """Its engine has this version."""
        self._versions[instance_id] = version

    def seconds(self, instance: Instance) -> float:
        """How long ago it was started."""
        return self._effects.now() - self._began.get(instance.id, instance.created_at)

    def record(self, instance: Instance, phases: Mapping[str, float], outcome: str) -> None:
        """Keep how its start ended."""
        self._effects.add_load(
            LoadRecord(
                model=instance.model,
                instance=instance.id,
                engine=instance.engine,
                environment=instance.environment,
                version=self._versions.get(instance.id, ""),
                devices=tuple(sorted({d.kind for d in self._fleet.devices if d.id in instance.devices})),
                started_at=self._began.get(instance.id, instance.created_at),
                seconds=self.seconds(instance),
                outcome=outcome,
                phases=dict(phases),
                memory=dict(instance.memory),
            )
        )

    def forget(self, instance_id: str) -> None:
        """Know nothing of an instance any more."""
        self._began.pop(instance_id, None)
        self._versions.pop(instance_id, None)
