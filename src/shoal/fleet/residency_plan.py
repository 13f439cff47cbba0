"""Who sleeps, who wakes, who gives way: a pure function from a snapshot to a plan.

1. *Idle* models leave: for their time limits they go to sleep, or are unloaded.
2. *Claims*, which are models with requests that are not on a device, are served in order: those that have waited
   longer than `patience` first, the longest first; then by priority, then by who waits longest. Each takes free memory
   if there is enough, else memory that is about to come free, else others give way to it (`residency_ways.py`).
3. *Floors* that were lent come back where there is room.

Who gives way: never one that is pinned; nobody before it has been awake for ``max(min_awake, payback * comeback)``, so
models do not thrash; one that is in use only to a claim past its patience, and it is drained first. Such a claim that
still finds no room has devices closed to all later claims, those that can be ready first, so that small models
cannot keep a large one out. So a claim that is the first in order begins to move within patience, plus the longest such
stay on its devices, plus the drains; the n-th that competes for the same devices within n times as much. Per device
no more than `switches` models give way in `switch_window` seconds.

Host memory is never overdrawn: for a model to go to sleep, copies that others can do without are forgotten, then the
least recently used sleeping model is unloaded; if that is the model itself, or nothing helps, it is unloaded instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from shoal.fleet.residency import HOST, Action, Kind, Plan, Refusal, Residency, Resident, Rules, Snapshot
from shoal.fleet.residency_books import Books, most
from shoal.fleet.residency_fit import Capacity
from shoal.fleet.residency_ways import Option, Way, Ways
from shoal.units import format_bytes, format_seconds

CLOSINGS = 2
"""So many of the longest overdue claims have devices kept for them at once; the others come after them."""
_GPU, _HOST, _DISK = Residency.GPU, Residency.HOST, Residency.DISK


def decide(snapshot: Snapshot, rules: Rules | None = None) -> Plan:
    """What to do now. Equal snapshots and rules give equal plans."""
    return _Decision(snapshot, rules or Rules()).plan()


class _Decision:
    """One decision while it is made."""

    def __init__(self, snapshot: Snapshot, rules: Rules) -> None:
        self.now, self.rules, self.snapshot = snapshot.now, rules, snapshot
        self.books = Books(snapshot)
        self.devices = {device.id: device for device in snapshot.devices}
        self.capacity = Capacity(snapshot)
        self.everywhere = tuple(self.devices)
        self.open = self.everywhere
        self.closed: set[str] = set()
        self.actions: list[Action] = []
        self.refusals: list[Refusal] = []
        self.waits: list[Refusal] = []
        self.next_look = inf
        self.left, self.closings = rules.claims_at_once, CLOSINGS
        self.sleepers: list[Resident] | None = None
        self.spared: set[str] = set()
        self.bounds: dict[str, int] = {}
        self.tails: dict[tuple[int, str], str] = {}
        self.open_words: tuple[Sequence[str], str] | None = None
        self.stale = False
        self.hopeless: set[tuple[bool, int, int]] = set()  # looked for in vain, and nothing has changed since
        self.switches: Counter[str] = Counter()
        self.limited = self._limited()
        self.ways = Ways(self.now, rules, self.books, set(self.limited))

    def plan(self) -> Plan:
        claims: list[tuple[bool, float, int, float, str, Resident]] = []
        due, lent = [], []
        now, patience = self.now, self.rules.patience
        for one in self.snapshot.residents:
            if one.motion is not None:
                continue
            if one.waiting and one.place is not _GPU:
                since = one.waiting_since
                if since is not None and now >= since + patience:
                    claims.append((False, since, 0, since, one.name, one))
                else:
                    claims.append((True, 0.0, -one.priority, now if since is None else since, one.name, one))
            if one.place is _DISK:
                continue
            if not one.pinned:
                self.ways.add(one)
                if not one.running and not one.waiting and self._is_due(one):
                    due.append(one)
            if one.floor < one.floor_wanted and one.place is _GPU:
                lent.append(one)
        due.sort(key=lambda one: (one.last_use, one.name))
        for one in due:
            self._leave(one)
        claims.sort()  # by urgency; names differ
        for patient, _, _, _, _, one in claims:
            if self.left <= 0:
                self.next_look = self.now  # others begin to give way to some, so that the next look finds another state
                break
            if one.name not in self.ways.gone:
                self._claim(one, overdue=not patient)
        if self.waits:
            for at in (self.ways.next_change, *self.limited.values()):
                self._look(at)
        lent.sort(key=lambda one: (-one.priority, one.name))
        for one in lent:
            self._give_back_floor(one)
        look = None if self.next_look == inf else self.next_look
        return Plan(tuple(self.actions), tuple(self.refusals), tuple(self.waits), look)

    def _limited(self) -> dict[str, float]:
        """Devices on which so many gave way lately that nobody else may, and until when."""
        since, limited = self.now - self.rules.switch_window, {}
        for device in self.snapshot.devices:
            if device.gave_way:
                lately = sorted(at for at in device.gave_way if at > since)
                self.switches[device.id] = len(lately)
                if len(lately) >= self.rules.switches:
                    limited[device.id] = lately[-self.rules.switches] + self.rules.switch_window
        return limited

    def _look(self, at: float) -> None:
        if self.now < at < self.next_look:
            self.next_look = at

    # Idle models

    def _is_due(self, one: Resident) -> bool:
        """Whether it has been idle too long for where it is; if not yet, look again when it will have been."""
        keep = one.keep_alive
        if keep is not None and keep < 0:
            return False
        limit = one.unload_after
        if one.place is _GPU:
            leave = one.sleep_after if keep is None else keep
            if limit is None or (leave is not None and leave < limit):
                limit = leave
        if limit is None:
            return False
        at = limit + (max(one.awake_since, one.last_use))
        if at > self.now:
            if at < self.next_look:
                self.next_look = at
            return False
        return True

    def _leave(self, one: Resident) -> None:
        if one.name in self.ways.gone:
            return
        since = max(one.last_use, one.awake_since)
        idle = f"idle {_ago(self.now - since)}"
        unload = inf if one.unload_after is None else since + one.unload_after
        if unload <= self.now:
            self._unload(one, f"{one.name} is unloaded: {idle}")
            return
        self._look(unload)
        if one.can_sleep:
            self._sleep(one, f"{one.name} sleeps: {idle}", f"{one.name} is unloaded: {idle}")
        else:
            self._unload(one, f"{one.name} is unloaded: {idle}, and its engine cannot sleep")

    # Leaving

    def _sleep(self, one: Resident, reason: str, instead: str, to: str = "") -> None:
        """Have it sleep, or where the host has no room for it, be unloaded with the reason `instead`."""
        need = 0 if one.copied else one.host
        if need > self.books.free[HOST] and not self.snapshot.host_settled:
            self.books.take(need, (HOST,))
            self._go(one, Kind.SLEEP, reason, (HOST,), to)
            return
        if need > 0 and not self._make_host_room(one, need):
            budget = format_bytes(self.snapshot.host_budget)
            self._unload(
                one, f"{instead}; the host's {budget} for sleeping models have no room for its {format_bytes(need)}", to
            )
            return
        after = self.books.after(need, (HOST,)) if need else ()
        assert after is not None
        self.books.take(need, (HOST,))
        self._go(one, Kind.SLEEP, reason, after, to)

    def _unload(self, one: Resident, reason: str, to: str = "", cause: str = "idle") -> None:
        self._go(one, Kind.UNLOAD, reason, (), to, cause)

    def _go(self, one: Resident, kind: Kind, reason: str, after: tuple[str, ...], to: str, cause: str = "idle") -> None:
        self.ways.gone.add(one.name)
        if to:
            self.switches.update(one.on)
            self.ways.limited.update(device for device in one.on if self.switches[device] >= self.rules.switches)
        self.books.leaves(one, kind)
        self._changed(one.on)
        self.actions.append(Action(kind, one.name, one.on, reason, after, to, cause="gave_way" if to else cause))

    def _make_host_room(self, one: Resident, need: int) -> bool:
        """Have others leave the host's memory so that `need` bytes come free; False, and nothing done, if none may."""
        short = need - self.books.room(HOST)
        if short <= 0:
            return True
        if self.sleepers is None:
            held = (r for r in self.snapshot.residents if r.host_taken and r.motion is None and not r.pinned)
            self.sleepers = sorted(held, key=lambda r: (not r.copied, r.last_use, r.name))
        chosen = []
        for other in self.sleepers:
            sleeper = not other.copied  # else only its copy goes
            if other.name in self.ways.gone or other.name in self.spared or other.name == one.name:
                continue
            if sleeper and (other.waiting or other.last_use > one.last_use):
                continue
            chosen.append(other)
            short -= other.host_taken
            if short <= 0:
                break
        if short > 0:
            return False
        for other in chosen:
            lately = f"was last used {_ago(self.now - other.last_use)} ago"
            why = f"the host's memory is full, {one.name} goes to sleep, and {other.name} {lately}"
            if not other.copied:
                self._unload(other, f"{other.name} is unloaded: {why}", cause="host_memory")
            else:
                self._forget(other, f"the host copy of {other.name} is dropped: {why}")
        return True

    def _forget(self, one: Resident, reason: str) -> None:
        self.books.forgets(one)
        self._at_once(Action(Kind.FORGET, one.name, one.on, reason))

    def _at_once(self, action: Action) -> None:
        """Note an action without a motion. Nothing else is done with its model before it is looked at anew."""
        self.actions.append(action)
        self.ways.gone.add(action.name)
        self._changed(action.devices)
        self.next_look = self.now

    # Claims

    def _claim(self, one: Resident, *, overdue: bool) -> None:
        # Many may wait of which none can be served: what is asked of all of them is written for speed.
        asleep, awake, everywhere = one.place is _HOST, one.awake, self.everywhere
        need = max(0, awake - one.asleep) if asleep else awake
        devices: Sequence[str] = one.on if asleep else one.usable or everywhere
        if devices is everywhere:
            fits = one.width == 1 and awake <= self.capacity.largest
        else:
            fits = len(devices) == 1 and self.capacity.free.get(devices[0], -1) >= awake
        if not fits and (why := self.capacity.why_never(one, devices)):
            self._refuse(one, why)
            return
        if devices is everywhere:
            devices = self.open
            seek = (overdue, one.width, need) not in self.hopeless
        elif len(devices) == 1:
            seek = devices[0] not in self.closed and need <= self.ways.could_have(devices[0], busy=overdue)
            devices = devices if seek or devices[0] not in self.closed else ()
        else:
            devices, seek = [d for d in devices if d not in self.closed] if self.closed else devices, True
        if seek and (found := self._where(one, need, devices, overdue=overdue)) is not None:
            self._come(one, need, found)
            return
        if overdue:
            if self.closings > 0:
                self._close(one, need)
        else:
            until = (self.now if one.waiting_since is None else one.waiting_since) + self.rules.patience
            if self.now < until < self.next_look:
                self.next_look = until
        place = devices[0] if len(devices) == 1 else self._place(devices)
        tail = self.tails.get((need, place))
        if tail is None:
            tail = self.tails[need, place] = f" waits for {format_bytes(need)} on {place}"
        self.waits.append(Refusal(one.name, one.name + tail))

    def _refuse(self, one: Resident, why: str) -> None:
        """It can never be where it is asked to; one that sleeps may be loaded elsewhere."""
        if one.place is _HOST and self.capacity.why_never(one, one.usable or self.everywhere) is None:
            self._unload(one, f"{one.name} is unloaded and loads elsewhere: {why}", cause="elsewhere")
            self.bounds.clear()
        else:
            self.refusals.append(Refusal(one.name, why))

    def _place(self, devices: Sequence[str]) -> str:
        """The words for `devices`, which for most that wait are all that are open."""
        if devices is not self.open:
            return _words(devices)
        if self.open_words is None or self.open_words[0] is not devices:
            self.open_words = devices, _words(devices)
        return self.open_words[1]

    def _where(self, one: Resident, need: int, devices: Sequence[str], *, overdue: bool) -> Way | None:
        """Where it goes now and who gives way: free memory first, then what comes free, then others'."""
        if len(devices) < one.width or need > self._bound("overdue" if overdue else "idle"):
            self._hopeless(one, need, devices, overdue=overdue)
            return None
        if need <= self._bound("room"):
            for room in (self.books.free.__getitem__, self.books.room):
                rooms = [(size, device) for device in devices if (size := room(device)) >= need]
                if len(rooms) >= one.width:
                    return Way(tuple(most(rooms, one.width)), (), (False, 0, 0.0, 0.0, ()))
        way = self.ways.best(one, need, devices, busy=overdue)
        if way is not None:
            return way
        if self.stale:
            self.bounds.clear()
            self.stale = False
        self._hopeless(one, need, devices, overdue=overdue)
        return None

    def _hopeless(self, one: Resident, need: int, devices: Sequence[str], *, overdue: bool) -> None:
        """Remember what was sought in vain, until something changes."""
        if devices is self.open:
            self.hopeless.add((overdue, one.width, need))

    def _bound(self, what: str) -> int:
        """No device that is open has more for a claim. Spares looking at each where there is nothing to be had.

        What models could give way for is not worked out anew at each change, because that makes it no more.
        """
        if what not in self.bounds:
            if what == "room":
                self.bounds[what] = max(map(self.books.room, self.open), default=0)
            else:
                self.bounds[what] = self.ways.most(self.open, busy=what == "overdue")
        return self.bounds[what]

    def _changed(self, devices: Sequence[str], *, less: bool = False) -> None:
        """Something comes to `devices` or leaves them. `less`: free memory was taken and no more, so that what was
        sought in vain is not to be had now either; asking again for each that waits would cost the most of all."""
        self.ways.changed(devices)
        self.bounds.pop("room", None)
        if not less:
            self.hopeless.clear()
        self.stale = True

    def _come(self, one: Resident, need: int, way: Way) -> None:
        place = _words(way.devices)
        self.spared, before = {option.resident.name for option in way.options}, len(self.actions)
        for option in way.options:
            self._give_way(option, f"{one.name} needs {format_bytes(need)} on {place}", one.name)
        if any(not action.after for action in self.actions[before:]):
            self.left -= 1
        after = self.books.after(need, way.devices)
        assert after is not None
        self.books.take(need, way.devices)
        self.ways.gone.add(one.name)
        self._changed(way.devices, less=not way.options)
        kind = Kind.WAKE if one.place is Residency.HOST else Kind.LOAD
        verb = "wakes" if kind is Kind.WAKE else "loads"
        count = f"{one.waiting} request{'s' if one.waiting != 1 else ''} wait{'s' if one.waiting == 1 else ''}"
        self.actions.append(Action(kind, one.name, way.devices, f"{one.name} {verb} on {place}: {count}", after))

    def _give_way(self, option: Option, need: str, to: str) -> None:
        one = option.resident
        used = "has requests" if one.busy else f"was last used {_ago(self.now - one.last_use)} ago"
        patience = f"; {to} has waited {_ago(self.rules.patience)} or more" if option.in_use else ""
        reason = f"{one.name} gives way: {need}, {one.name} has priority {one.priority} and {used}{patience}"
        if option.kind is Kind.FLOOR:
            floor = one.floor_least or 0
            self.books.comes_at_once(one.floor - floor, one.on)
            self._at_once(
                Action(Kind.FLOOR, one.name, one.on, f"the floor of {one.name} is lent: {need}", (), to, floor)
            )
        elif option.kind is Kind.SLEEP:
            self._sleep(one, reason, reason, to)
        else:
            self._unload(one, reason, to)

    def _close(self, one: Resident, need: int) -> None:
        """Keep later claims off the devices that this one can have first."""
        self.closings -= 1
        asleep = one.place is Residency.HOST
        devices = one.on if asleep else one.usable or self.everywhere
        when = sorted(
            (self.ways.ready(device, need), device)
            for device in devices
            if device not in self.closed and self.capacity.free.get(device, -1) >= (0 if one.pinned else need)
        )
        self.closed.update(device for _, device in when[: one.width])
        self.open = tuple(device for device in self.everywhere if device not in self.closed)
        self.bounds.clear()

    # Floors

    def _give_back_floor(self, one: Resident) -> None:
        size = one.floor_wanted - one.floor
        if one.name in self.ways.gone or any(d in self.closed or self.books.free[d] < size for d in one.on):
            return
        self.books.take(size, one.on)
        reason = f"the floor of {one.name} is {format_bytes(one.floor_wanted)} again: there is room"
        self.actions.append(Action(Kind.FLOOR, one.name, one.on, reason, floor=one.floor_wanted))


def _words(devices: Sequence[str]) -> str:
    return ", ".join(devices) if len(devices) <= 4 else f"one of {len(devices)} devices"


def _ago(seconds: float) -> str:
    return format_seconds(max(0.0, seconds))
