"""Models that leave a device or the host's memory: who is idle for too long, and who has to for others to sleep. Pure.

Host memory is never overdrawn: for a model to go to sleep, copies that others can do without are forgotten, then the
least recently used sleeping model is unloaded; if that is the model itself, or nothing helps, it is unloaded instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import accumulate
from math import inf

from shoal.fleet.residency import HOST, Action, Kind, Residency, Resident
from shoal.fleet.residency_draft import Draft, ago

_GPU, _HOST = Residency.GPU, Residency.HOST


def leaves_at(one: Resident) -> float:
    """When a model without requests has been idle too long for where it is; infinite if it never is."""
    keep, limit = one.keep_alive, one.unload_after
    if keep is not None and keep < 0:
        return inf
    if one.place is _GPU:
        leave = one.sleep_after if keep is None else keep
        if limit is None or (leave is not None and leave < limit):
            limit = leave
    if limit is None:
        return inf
    return limit + max(one.last_use, one.awake_since)


class Leaving:
    """Has models leave in a draft."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._lines: tuple[_Line, _Line] | None = None
        self.spared: Collection[str] = ()
        """Those that are about to leave anyway, so that nothing else is to be done with them."""

    def idle(self, one: Resident) -> None:
        """One that has been idle for too long goes to sleep, or is unloaded."""
        draft = self._draft
        if one.name in draft.sites.gone:
            return
        since = max(one.last_use, one.awake_since)
        idle = f"idle {ago(draft.now - since)}"
        unload = inf if one.unload_after is None else since + one.unload_after
        if unload <= draft.now:
            draft.leaves(one, Kind.UNLOAD, f"{one.name} is unloaded: {idle}")
            return
        draft.look(unload)
        if one.can_sleep:
            self.sleep(one, f"{one.name} sleeps: {idle}", f"{one.name} is unloaded: {idle}")
        else:
            draft.leaves(one, Kind.UNLOAD, f"{one.name} is unloaded: {idle}, and its engine cannot sleep")

    def sleep(self, one: Resident, reason: str, instead: str, to: str = "") -> None:
        """Have it sleep, or where the host has no room for it, be unloaded with the reason `instead`."""
        draft, books = self._draft, self._draft.books
        need = 0 if one.copied else one.host
        if need > books.free[HOST] and not draft.snapshot.host_settled:
            books.take(need, (HOST,))
            draft.leaves(one, Kind.SLEEP, reason, (HOST,), to=to)
            return
        if need > 0 and not self._make_host_room(one, need):
            budget = draft.sizes[draft.snapshot.host_budget]
            why = f"{instead}; the host's {budget} for sleeping models have no room for its {draft.sizes[need]}"
            draft.leaves(one, Kind.UNLOAD, why, to=to)
            return
        after = books.after(need, (HOST,)) if need else ()
        assert after is not None
        books.take(need, (HOST,))
        draft.leaves(one, Kind.SLEEP, reason, after, to=to)

    def _make_host_room(self, one: Resident, need: int) -> bool:
        """Have others leave the host's memory so that `need` bytes come free; False, and nothing done, if none may."""
        draft = self._draft
        chosen = self._leave_for(one, need - draft.books.rooms[HOST])
        if chosen is None:
            return False
        for other in chosen:
            lately = f"was last used {ago(draft.now - other.last_use)} ago"
            why = f"the host's memory is full, {one.name} goes to sleep, and {other.name} {lately}"
            if not other.copied:
                draft.leaves(other, Kind.UNLOAD, f"{other.name} is unloaded: {why}", cause="host_memory")
            else:
                draft.books.forgets(other)
                reason = f"the host copy of {other.name} is dropped: {why}"
                draft.at_once(other, Action(Kind.FORGET, other.name, other.on, reason))
        return True

    def _leave_for(self, one: Resident, short: int) -> list[Resident] | None:
        """Who leaves the host so that it has `short` bytes more for `one`. None: that cannot be had."""
        if short <= 0:
            return []
        if self._lines is None:
            held = [r for r in self._draft.books.resting if r.host and (r.copied or r.place is _HOST)]
            asleep = (r for r in held if not r.copied and not r.waiting)
            self._lines = _Line(r for r in held if r.copied), _Line(asleep)
        copies, asleep_line = self._lines
        gone, last = self._draft.sites.gone, asleep_line.until(one.last_use)
        if copies.most(len(copies.models), gone) + asleep_line.most(last, gone) < short:
            return None
        chosen = []
        for line, end in ((copies, len(copies.models)), (asleep_line, last)):
            for at in range(line.first, end):
                other = line.models[at]
                if other.name in gone or other.name in self.spared or other.name == one.name:
                    continue
                chosen.append(other)
                short -= other.host
                if short <= 0:
                    return chosen
        return None


class _Line:
    """Models in the order in which they leave the host's memory, the least recently used first."""

    def __init__(self, models: Iterable[Resident]) -> None:
        self.models = sorted(models, key=lambda one: (one.last_use, one.name))
        self.first = 0
        """Where those begin that are not gone."""
        self._used = [one.last_use for one in self.models]
        self._sums = [0, *accumulate(one.host for one in self.models)]

    def until(self, last_use: float) -> int:
        """How many were not used later than that."""
        return bisect_right(self._used, last_use)

    def most(self, end: int, gone: Collection[str]) -> int:
        """No more bytes than this come back of those before `end`: a bound that spares looking at each in vain."""
        while self.first < len(self.models) and self.models[self.first].name in gone:
            self.first += 1
        return max(0, self._sums[end] - self._sums[self.first])
