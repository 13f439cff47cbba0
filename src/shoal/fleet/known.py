"""The instances that are known, by their ids and by their models."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Collection, ValuesView

from shoal.fleet.state import Instance


class Instances(UserDict[str, Instance]):
    """Instances by id. Those of one model are found without going over all: each view and route asks for them."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Instance]] = {}
        super().__init__()

    def of(self, model: str) -> Collection[Instance]:
        """Those of a model, in no particular order."""
        return self._of.get(model, {}).values()

    def values(self) -> ValuesView[Instance]:
        return self.data.values()

    def __setitem__(self, id: str, instance: Instance) -> None:
        before = self.data.get(id)
        if before is not None and before.model != instance.model:
            self._forget(before)
        self.data[id] = instance
        self._of.setdefault(instance.model, {})[id] = instance

    def __delitem__(self, id: str) -> None:
        self._forget(self.data.pop(id))

    def _forget(self, instance: Instance) -> None:
        there = self._of[instance.model]
        del there[instance.id]
        if not there:
            del self._of[instance.model]
