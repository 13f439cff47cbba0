"""Instances that end, or go to sleep, after their running requests: until when each may take, and which are done.

No I/O and no clock of its own, as in `life.py`, of which it is a part.
"""

from __future__ import annotations

from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import InstanceState as S


class Drains:
    """The instances that drain, each with the time at which its requests are ended (Unix seconds)."""

    def __init__(self, fleet: Fleet) -> None:
        self.table_id: tuple[str, int] = ("", 0)
        """Epoch and version of the routing table that was published last."""
        self._fleet = fleet
        self._until: dict[str, float] = {}

    @property
    def limits(self) -> tuple[float, ...]:
        """When somebody's time is up, or nobody waits any longer for relays that are away."""
        return (*self._until.values(), self._fleet.hearing.until) if self._until else ()

    def put(self, instance_id: str, until: float) -> None:
        """It drains, at most until then."""
        self._until[instance_id] = until

    def ended(self, instance_id: str) -> None:
        """It drains no longer."""
        self._until.pop(instance_id, None)

    def take_done(self, now: float, *, table_is_out: bool) -> list[tuple[str, str]]:
        """Take out those that have drained: id, and why. `table_is_out`: the routes are as published last."""
        done = []
        known = table_is_out and self._relays_know() and not self._fleet.unheard(now)
        for instance_id, until in list(self._until.items()):
            instance = self._fleet.instances.get(instance_id)
            if instance is None or instance.state is not S.DRAINING:
                self._until.pop(instance_id)
                continue
            left = self._fleet.outstanding(instance_id)
            if left == 0 and known:
                done.append((instance_id, "no request runs any more"))
            elif now >= until:
                ended = (
                    f"{left} running request(s) were ended" if left else "its time was up before all relays were heard"
                )
                done.append((instance_id, ended))
        for instance_id, _ in done:
            self._until.pop(instance_id)
        return done

    def _relays_know(self) -> bool:
        """Whether every relay that is heard has the table, so that no request can still be on its way to one that it
        leaves out."""
        return all((report.epoch, report.version) == self.table_id for report in self._fleet.relays.values())
