"""Who takes what of the devices and of the host while a plan is made. What moves counts where it still is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.fleet.residency import HOST, Kind, Motion, Resident, Snapshot


class Books:
    """Free bytes by account, less what was promised, and bytes that come when motions end, in the order planned.

    Free bytes may be negative: then more was promised than is free, on what comes. They and what comes are never
    negative together, unless the snapshot itself has more on a device than its budget.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.free = {device.id: device.budget for device in snapshot.devices}
        self.free[HOST] = snapshot.host_budget
        self.coming: dict[str, list[tuple[str, int]]] = {}
        self._sums = dict.fromkeys(self.free, 0)
        free, host = self.free, 0
        for resident in snapshot.residents:
            if not resident.on:
                continue
            if (taken := resident.taken) > 0:
                for device in resident.on:
                    if device in free:
                        free[device] -= taken
            host += resident.host_taken
            if resident.motion is not None:
                self._moves(resident)
        free[HOST] -= host

    def _moves(self, resident: Resident) -> None:
        if resident.motion is Motion.SLEEPING:
            self.leaves(resident, Kind.SLEEP)
        elif resident.motion is Motion.UNLOADING:
            self.leaves(resident, Kind.UNLOAD)

    def room(self, account: str) -> int:
        """Bytes that are free once all that is under way or planned has ended."""
        return self.free[account] + self._sums[account]

    def after(self, need: int, accounts: Iterable[str]) -> tuple[str, ...] | None:
        """Whose motions have to end before each of `accounts` has `need` bytes more. None: that is not enough."""
        names: dict[str, None] = {}
        for account in accounts:
            have = self.free[account]
            for name, size in self.coming.get(account, ()):
                if have >= need:
                    break
                have += size
                names[name] = None
            if have < need:
                return None
        return tuple(names)

    def take(self, need: int, accounts: Iterable[str]) -> None:
        """Promise `need` bytes of each."""
        for account in accounts:
            self.free[account] -= need

    def leaves(self, resident: Resident, kind: Kind) -> None:
        """Enter what comes back when `resident` has gone to sleep or is unloaded."""
        for device in resident.on:
            self._comes(device, resident.name, frees(resident, kind))
        if kind is Kind.UNLOAD and resident.host_taken:
            self._comes(HOST, resident.name, resident.host_taken)

    def forgets(self, resident: Resident) -> None:
        """Enter what comes back when the host copy of `resident` is dropped, which takes a moment."""
        self._comes(HOST, resident.name, resident.host_taken)

    def comes_at_once(self, size: int, accounts: Iterable[str]) -> None:
        """Enter bytes that need no motion to come back."""
        for account in accounts:
            self.free[account] += size

    def _comes(self, account: str, name: str, size: int) -> None:
        if account in self.free:
            self.coming.setdefault(account, []).append((name, size))
            self._sums[account] += size


def frees(resident: Resident, kind: Kind) -> int:
    """Bytes that come back on each of its devices when that is done with it."""
    if kind is Kind.SLEEP:
        return max(0, resident.awake - resident.asleep)
    if kind is Kind.FLOOR:
        return max(0, resident.floor - (resident.floor if resident.floor_least is None else resident.floor_least))
    return resident.taken


def most(rooms: Sequence[tuple[int, str]], width: int) -> list[str]:
    """The `width` devices of `rooms` with the most room, then by name."""
    if width == 1:
        best = max(room for room, _ in rooms)
        return [min(device for room, device in rooms if room == best)]
    return sorted(device for _, device in sorted(rooms, key=lambda one: (-one[0], one[1]))[:width])
