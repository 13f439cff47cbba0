"""A plan while it is made: what is decided so far, and what that leaves to decide from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from shoal.fleet.residency import Action, Kind, Plan, Refusal, Resident, Rules, Snapshot
from shoal.fleet.residency_books import Books
from shoal.fleet.residency_pace import at_once, pace
from shoal.fleet.residency_sites import Sites
from shoal.units import format_bytes, format_seconds


class _Sizes(dict[int, str]):
    """Bytes in words. The same few are said of hundreds."""

    def __missing__(self, size: int) -> str:
        words = self[size] = format_bytes(size)
        return words


class Draft:
    """One decision while it is made. `changes` and `freed` count what was decided, for those who keep answers: every
    change, and those after which there may be more to be had than before."""

    def __init__(self, snapshot: Snapshot, rules: Rules) -> None:
        self.now, self.rules, self.snapshot = snapshot.now, rules, snapshot
        self.books = Books(snapshot)
        self.actions: list[Action] = []
        self.refusals: list[Refusal] = []
        self.waits: list[Refusal] = []
        self.next_look = inf
        self.changes = self.freed = 0
        self._switches: Counter[str] = Counter()
        self.sizes = _Sizes()
        self.limited = self._limited()
        self.sites = Sites(snapshot, rules, self.books, self.limited)

    def _limited(self) -> dict[str, float]:
        """Devices on which so many gave way lately that nobody else may, and until when."""
        limited = {}
        for device in self.snapshot.devices:
            if device.gave_way:
                self._switches[device.id], until = pace(device.gave_way, self.rules, self.now)
                if until > self.now:
                    limited[device.id] = until
        return limited

    def plan(self) -> Plan:
        """What was decided."""
        look = None if self.next_look == inf else self.next_look
        return Plan(tuple(self.actions), tuple(self.refusals), tuple(self.waits), look)

    def look(self, at: float) -> None:
        """Look again then, if that is to come."""
        if self.now < at < self.next_look:
            self.next_look = at

    def leaves(
        self, one: Resident, kind: Kind, reason: str, after: tuple[str, ...] = (), *, to: str = "", cause: str = "idle"
    ) -> None:
        """It goes to sleep or is unloaded; `to`: for that model to come."""
        self.sites.goes(one)
        if to:
            self._switches.update(one.on)
            full = [device for device in one.on if self._switches[device] >= at_once(self.rules)]
            self.sites.limit(full)
        self.books.leaves(one, kind)
        self.changed(one.on)
        self.actions.append(Action(kind, one.name, one.on, reason, after, to, cause="gave_way" if to else cause))

    def at_once(self, one: Resident, action: Action) -> None:
        """Note an action without a motion. Nothing else is done with its model before it is looked at anew."""
        self.actions.append(action)
        self.sites.goes(one)
        self.changed(action.devices)
        self.next_look = self.now

    def changed(self, devices: Sequence[str], *, less: bool = False) -> None:
        """Something comes to `devices` or leaves them. `less`: free memory was taken and no more, so that what was
        sought in vain is not to be had now either; asking again for each that waits would cost the most of all."""
        self.sites.changed(devices)
        self.changes += 1
        if not less:
            self.freed += 1


def ago(seconds: float) -> str:
    """A time past, in words; not one that is to come, whatever the clocks say."""
    return format_seconds(max(0.0, seconds))
