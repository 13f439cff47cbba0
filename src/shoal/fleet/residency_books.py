"""Who takes what of the devices and of the host while a plan is made. What moves counts where it still is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heapreplace

from shoal.fleet.residency import ARRIVING, HOST, Kind, Motion, Residency, Resident, Snapshot

_GPU, _HOST, _DISK, _SLEEPING = Residency.GPU, Residency.HOST, Residency.DISK, Motion.SLEEPING


class Books:
    """Free bytes by account, less what was promised, and bytes that come when motions end, in the order planned.

    Free bytes may be negative: then more was promised than is free, on what comes. They and what comes are never
    negative together, unless the snapshot itself has more on a device than its budget.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.free = {device.id: device.budget for device in snapshot.devices}
        self.free[HOST] = snapshot.host_budget
        self.coming: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self.resting: list[Resident] = []
        """Those that are on devices, awake or asleep, neither on their way nor pinned."""
        self.pinned: list[Resident] = []
        """Those that are pinned, on devices or on their way."""
        free, host, resting, moving = self.free, 0, self.resting, []
        for one in snapshot.residents:  # `taken` and `host_taken` in one pass: every decision asks them of everybody
            on = one.on
            if not on:
                continue
            place, motion = one.place, one.motion
            asleep = place is _HOST
            if motion is not None:
                moving.append(one)
            if one.pinned:
                self.pinned.append(one)
            elif motion is None and place is not _DISK:
                resting.append(one)
            if place is _GPU or (motion is not None and motion in ARRIVING):
                size = one.awake
            else:
                size = one.asleep if asleep else 0
            for device in on:
                if device in free:
                    free[device] -= size
            if asleep or one.copied or motion is _SLEEPING:
                host += one.host
        free[HOST] -= host
        self.rooms = dict(free)
        """Bytes by account that are free once all that is under way or planned has ended."""
        for one in moving:
            if one.motion is _SLEEPING:
                self.leaves(one, Kind.SLEEP)
            elif one.motion is Motion.UNLOADING:
                self.leaves(one, Kind.UNLOAD)

    def after(self, need: int, accounts: Iterable[str]) -> tuple[str, ...] | None:
        """Whose motions have to end before each of `accounts` has `need` bytes more. None: that is not enough."""
        names: dict[str, None] = {}
        for account in accounts:
            have = self.free[account]
            if have >= need:
                continue
            for name, size in self.coming.get(account, ()):
                have += size
                names[name] = None
                if have >= need:
                    break
            else:
                return None
        return tuple(names)

    def take(self, need: int, accounts: Iterable[str]) -> None:
        """Promise `need` bytes of each."""
        for account in accounts:
            self.free[account] -= need
            self.rooms[account] -= need

    def leaves(self, resident: Resident, kind: Kind) -> None:
        """Enter what comes back when `resident` has gone to sleep or is unloaded."""
        size = frees(resident, kind)
        for device in resident.on:
            self._comes(device, resident.name, size)
        if kind is Kind.UNLOAD and (size := resident.host_taken):
            self._comes(HOST, resident.name, size)

    def forgets(self, resident: Resident) -> None:
        """Enter what comes back when the host copy of `resident` is dropped, which takes a moment."""
        self._comes(HOST, resident.name, resident.host_taken)

    def comes_at_once(self, size: int, accounts: Iterable[str]) -> None:
        """Enter bytes that need no motion to come back."""
        for account in accounts:
            if account in self.free:
                self.free[account] += size
                self.rooms[account] += size

    def _comes(self, account: str, name: str, size: int) -> None:
        if account in self.free:
            self.coming[account].append((name, size))
            self.rooms[account] += size


def frees(resident: Resident, kind: Kind) -> int:
    """Bytes that come back on each of its devices when that is done with it."""
    if kind is Kind.SLEEP:
        return max(0, resident.awake - resident.asleep)
    if kind is Kind.FLOOR:
        return max(0, resident.floor - (resident.floor if resident.floor_least is None else resident.floor_least))
    return resident.taken


def most_room(rooms: Mapping[str, int], devices: Sequence[str], need: int, width: int) -> tuple[str, ...]:
    """The `width` of `devices` with the most of `rooms`, then by name; none if one of them has less than `need`."""
    found = sorted([(-room, device) for device in devices if (room := rooms[device]) >= need])
    return tuple(sorted([device for _, device in found[:width]])) if len(found) >= width else ()


class MostRoom:
    """The same for one device, of many that hundreds ask for, as long as `rooms` become less and never more.

    Each device is in a heap by the room that it had when it was last looked at, which is as much as it has now or more.
    """

    def __init__(self, rooms: Mapping[str, int], devices: Iterable[str]) -> None:
        self._rooms = rooms
        self._heap = [(-rooms[device], device) for device in devices]
        heapify(self._heap)

    def find(self, need: int) -> tuple[str, ...]:
        """The device with the most room, then by name; none if it has less than `need`."""
        heap, rooms = self._heap, self._rooms
        while heap and -heap[0][0] >= need:
            then, device = heap[0]
            now = -rooms[device]
            if now == then:
                return (device,)
            heapreplace(heap, (now, device))
        return ()
