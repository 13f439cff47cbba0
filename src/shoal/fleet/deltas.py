"""Changes that are told together, a few times a second: of what changed twice meanwhile, only the last. Pure.

What is told is what was published, in its order, less the changes that a later one makes void. Between those two no
event of another kind lies: no message comes before the change that it followed, nor after the one that it announced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from shoal.fleet.snapshot import ModelView

SPACING = 0.25
"""Seconds between two times that changes are told."""


def supersedes(event: str, data: object) -> bool:
    """Whether an event says how something is now, so that it makes an older one of the same thing void."""
    return isinstance(data, ModelView) if event == "model" else event in ("memory", "devices")


class Deltas:
    """What was published and not told yet. The clock is passed in: seconds, monotonic."""

    def __init__(self, spacing: float = SPACING) -> None:
        self._spacing = spacing
        self._told_at = float("-inf")
        self._closed: list[tuple[str, object]] = []
        self._models: dict[str, ModelView] = {}
        self._memory: dict[str, object] = {}
        self._devices: object = None

    def add(self, event: str, data: object) -> None:
        """Take one in. `memory` has views of the `instances` that changed and all `devices`, `devices` the latter."""
        if event == "model" and isinstance(data, ModelView):
            self._models[data.name] = data
            for instance in data.instances:  # it has their memory as it is now
                self._memory.pop(instance.id, None)
        elif event in ("memory", "devices"):
            brought = cast("Mapping[str, object]", data)
            self._memory.update(cast("Mapping[str, object]", brought.get("instances", {})))
            self._devices = brought["devices"]
        else:
            self._close()
            self._closed.append((event, data))

    def due(self, now: float) -> float | None:
        """Seconds until what is here is to be told, 0 after a quiet time; None: there is nothing."""
        if not (self._closed or self._models or self._memory or self._devices is not None):
            return None
        return max(0.0, self._told_at + self._spacing - now)

    def take(self, now: float) -> list[tuple[str, object]]:
        """All that is to be told, in order; it is told now."""
        self._close()
        told, self._closed = self._closed, []
        self._told_at = now
        return told

    def _close(self) -> None:
        """What is here is not to be made void any more. Memory that is here is newer than that in the models' views."""
        self._closed += [("model", view) for view in self._models.values()]
        if self._memory:
            self._closed.append(("memory", {"instances": self._memory, "devices": self._devices}))
        elif self._devices is not None:
            self._closed.append(("devices", {"devices": self._devices}))
        self._models, self._memory, self._devices = {}, {}, None
