"""Whether others on an instance's devices may have taken memory or given it back between two looks. Pure.

Where only a device as a whole can be read, this says when a difference of two readings is not one instance's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S

_NOTHING, _ASLEEP, _AWAKE, _PEAK = range(4)
"""What an instance holds beside leased KV cache, in rising order: a start takes more for a moment than it keeps."""
_HOLDS = {
    S.QUEUED: (_NOTHING, _NOTHING),
    S.STARTING: (_NOTHING, _PEAK),
    S.READY: (_AWAKE, _AWAKE),
    S.DRAINING: (_AWAKE, _AWAKE),
    S.SLEEPING: (_ASLEEP, _ASLEEP),
    S.WAKING: (_ASLEEP, _AWAKE),
    S.STOPPING: (_NOTHING, _AWAKE),
    S.STOPPED: (_NOTHING, _NOTHING),
    S.FAILED: (_NOTHING, _NOTHING),
}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One that shares a device: the least and the most that it holds, and what it is doing since when."""

    least: int
    most: int
    state: S
    since: float


_RISE = {S.STARTING, S.WAKING}
_FALL = {S.STARTING, S.STOPPING, S.DRAINING}
"""What memory does while one is in such a state; a start lets go of a part before it is over."""
_GONE = Neighbour(_NOTHING, _NOTHING, S.STOPPED, 0.0)
Neighbours = Mapping[str, Neighbour]


def look(instance: Instance, others: Iterable[Instance], falling: Collection[str]) -> Neighbours:
    """Who shares the devices of `instance`. `falling`: whose engines were told to sleep."""
    found = {}
    for one in others:
        if one.id == instance.id or not set(one.devices).intersection(instance.devices):
            continue
        least, most = _HOLDS[one.state]
        if one.state is S.DRAINING and one.id in falling:
            least = _ASLEEP
        found[one.id] = Neighbour(least, most, one.state, one.changed_at)
    return found


def took(before: Neighbours, now: Neighbours) -> list[str]:
    """Who may hold more than before."""
    return [id for id, was, is_ in _both(before, now) if is_.most > was.least and (was != is_ or is_.state in _RISE)]


def gave(before: Neighbours, now: Neighbours) -> list[str]:
    """Who may hold less than before."""
    return [id for id, was, is_ in _both(before, now) if is_.least < was.most and (was != is_ or is_.state in _FALL)]


def _both(before: Neighbours, now: Neighbours) -> Iterator[tuple[str, Neighbour, Neighbour]]:
    for id in sorted({*before, *now}):
        yield id, before.get(id, _GONE), now.get(id, _GONE)
