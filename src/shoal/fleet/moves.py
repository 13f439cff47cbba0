"""Moves: another instance takes one's place, elsewhere or with other settings. What follows what; pure.

The old one says what it answers to the canary, the new one loads and is asked the same; then, in one routing table, the
new one comes in and the old one goes out, drains and ends. Until that table, whatever goes wrong is undone by ending
the new one; after it there is nothing left to undo. With `stop_first` the new one is queued at once, so that requests
are held for it, and starts when the old one has ended; what goes wrong is undone by loading the old one again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from shoal.errors import ConflictError

MoveState = Literal["waiting", "running", "done", "failed", "cancelled"]


class Step(StrEnum):
    """Where one instance's replacement is."""

    WAITING = "waiting"  # its turn has not come
    ASKING = "asking"  # the old one is asked the canary
    LOADING = "loading"  # the new one loads; with `stop_first` it is queued until the old one has ended
    CHECKING = "checking"  # the new one is asked the canary; no request goes to it yet
    DRAINING = "draining"  # the new one serves; the old one lets its requests end, and ends
    UNDOING = "undoing"  # the new one ends; the old one serves
    RESTORING = "restoring"  # the old one had ended: one with its settings loads
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self in (Step.DONE, Step.FAILED, Step.CANCELLED)


_APART = (Step.LOADING, Step.CHECKING, Step.UNDOING)
"""Steps in which the new one exists and no request may go to it."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One instance's replacement. Ids of instances and of devices; times in Unix seconds.

    `devices` empty: wherever it fits. `compare`: whether both have to answer the canary alike. `answer` is what the old
    one answered: empty, if it completes no text; None before it was asked. `former` is the one that was loaded to undo
    it.
    """

    source: str
    was_on: tuple[str, ...]
    devices: tuple[str, ...]
    compare: bool = True
    step: Step = Step.WAITING
    target: str | None = None
    former: str | None = None
    answer: str | None = None
    cause: str = ""
    note: str = ""
    began_at: float | None = None
    switched_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A model's instances replaced, one after the other. `changes` are settings that the new ones have otherwise,
    `drain` the seconds that requests of the old ones may take to end; None: what is usual."""

    id: str
    model: str
    created_at: float
    legs: tuple[Leg, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    stop_first: bool = False
    drain: float | None = None
    state: MoveState = "waiting"
    cancelling: bool = False
    ended_at: float | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.state not in ("waiting", "running")

    @property
    def at(self) -> int:
        """Which leg is under way, or comes next."""
        return next((n for n, leg in enumerate(self.legs) if not leg.step.ended), len(self.legs) - 1)

    @property
    def leg(self) -> Leg:
        """The leg that is under way, or comes next."""
        return self.legs[self.at]

    @property
    def touches(self) -> frozenset[str] | None:
        """The devices that it takes or frees memory on; None: it may be any."""
        if any(not leg.devices for leg in self.legs):
            return None
        return frozenset(device for leg in self.legs for device in (*leg.devices, *leg.was_on))


# -- what happens -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Its turn has come."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody does not want it any more."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What an instance answered to the canary; None: it did not."""

    instance: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Created:
    """What `load` or `restore` made."""

    instance: str


@dataclass(frozen=True, slots=True)
class Refused:
    """What `load` or `restore` cannot make, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Sight:
    """How an instance is. `comes`: it is on its way to serving; `failed`: it will not serve by itself; `left`: somebody
    ended it or put it to sleep. `runs`: it holds memory, or will. `why`: in words, of what failed or left."""

    state: Literal["serves", "comes", "failed", "left"]
    why: str = ""
    runs: bool = True


@dataclass(frozen=True, slots=True)
class See:
    """How the instances of the leg under way are now; None: there is none yet."""

    source: Sight
    target: Sight | None = None
    former: Sight | None = None


Event = Begin | Cancel | Answered | Created | Refused | See


@dataclass(frozen=True, slots=True)
class Do:
    """What is to be done, in order, in the same breath as the record is kept.

    `load`: make the new instance; it takes no requests, and with `stop_first` starts only once the old one has ended.
    `switch`: requests go to the new one and no longer to `instance`, which is unloaded. `drop`: unload `instance`.
    `restore`: make one with the settings of the old one. `keep`: the model's settings are those of the new ones now.
    """

    action: Literal["load", "switch", "drop", "restore", "keep"]
    instance: str = ""


Result = tuple[Move, tuple[Do, ...]]


# -- what follows -----------------------------------------------------------------------------------------------------


def step(move: Move, event: Event, now: float) -> Result:
    """The move after an event, and what is to be done. What does not concern it any more changes nothing.

    Raises ConflictError if it is too late to cancel.
    """
    if move.ended:
        if isinstance(event, Cancel):
            raise ConflictError(f"the move {move.id} has ended: {move.message or move.state}", code="move_ended")
        return move, ()
    match event:
        case Begin() if move.state == "waiting":
            return _with(dataclasses.replace(move, state="running", message=""), step=Step.ASKING, began_at=now), ()
        case Cancel():
            return _cancel(move, now)
        case Answered():
            return _answered(move, event, now)
        case Created() if move.leg.step is Step.RESTORING:
            return _with(move, former=event.instance), ()
        case Created():
            return _with(move, target=event.instance), ()
        case Refused() if move.leg.step is Step.RESTORING:
            return _restored(move, Sight("failed", event.why), now)
        case Refused():
            return _end(move, Step.FAILED, now, event.why)
        case See():
            return _see(move, event, now)
    return move, ()


def asks(move: Move) -> str | None:
    """The instance whose answer to the canary is waited for."""
    if move.ended:
        return None
    return {Step.ASKING: move.leg.source, Step.CHECKING: move.leg.target}.get(move.leg.step)


def apart(moves: Iterable[Move]) -> dict[str, str]:
    """The instances that no request may go to yet, each with the one whose place it is to take."""
    legs = (move.leg for move in moves if not move.ended)
    return {leg.target: leg.source for leg in legs if leg.target is not None and leg.step in _APART}


def touching(moves: Iterable[Move]) -> frozenset[str]:
    """The instances that moves under way work with, or will."""
    legs = [leg for move in moves if not move.ended for leg in move.legs]
    return frozenset(id for leg in legs for id in (leg.source, leg.target, leg.former) if id is not None)


def turns(moves: Iterable[Move]) -> tuple[list[str], dict[str, str]]:
    """Which moves may begin, and of those that wait why. In the order in which they were asked for: one begins when
    none before it touches one of its devices."""
    begin: list[str] = []
    waits: dict[str, str] = {}
    before: list[Move] = []
    for move in sorted((m for m in moves if not m.ended), key=lambda m: (m.created_at, m.id)):
        if move.state == "waiting":
            blocking = next((other for other in before if _meet(move.touches, other.touches)), None)
            if blocking is None:
                begin.append(move.id)
            else:
                waits[move.id] = f"waits for the move {blocking.id} of {blocking.model}, which touches a device of it"
        before.append(move)
    return begin, waits


def _meet(one: frozenset[str] | None, other: frozenset[str] | None) -> bool:
    return one is None or other is None or bool(one & other)


def _answered(move: Move, event: Answered, now: float) -> Result:
    leg = move.leg
    if event.instance != asks(move):
        return move, ()
    if leg.step is Step.ASKING:
        if event.answer is None:
            return _end(move, Step.FAILED, now, f"{leg.source}, which is to be replaced, did not answer the canary")
        note = "" if event.answer else "it completes no text, so answers are not compared"
        drop = (Do("drop", leg.source),) if move.stop_first else ()
        return _with(move, step=Step.LOADING, answer=event.answer, note=note), (Do("load"), *drop)
    if event.answer is None:
        return _undo(move, now, "the new one did not answer the canary")
    if leg.compare and event.answer != leg.answer:
        text = f"the new one answers the canary with {event.answer!r}, not with {leg.answer!r} as the old one"
        return _undo(move, now, text)
    if not leg.compare and leg.answer:
        move = _with(move, note="the settings may change answers: only that the new one answers was checked")
    moved = _with(move, step=Step.DRAINING, switched_at=now)
    keep = (Do("keep"),) if move.changes and move.at == len(move.legs) - 1 else ()
    return moved, (*keep, Do("switch", leg.source))


def _see(move: Move, seen: See, now: float) -> Result:
    leg, source, target = move.leg, seen.source, seen.target
    match leg.step:
        case Step.ASKING if source.state != "serves":
            return _end(move, Step.FAILED, now, f"{leg.source}, which is to be replaced, does not serve ({source.why})")
        case Step.LOADING | Step.CHECKING if source.state == "left" and not move.stop_first:
            return _undo(move, now, f"{leg.source}, which is to be replaced, {source.why} meanwhile")
        case Step.LOADING | Step.CHECKING if target is not None and target.state == "left":
            text = f"the new one {target.why} meanwhile"
            # Whoever ended it wants no copy at all: none is loaded again.
            return _end(move, Step.FAILED, now, text) if move.stop_first else _undo(move, now, text)
        case Step.LOADING | Step.CHECKING if target is not None and target.state == "failed":
            return _undo(move, now, f"the new one failed: {target.why}")
        case Step.LOADING if target is not None and target.state == "serves":
            return _with(move, step=Step.CHECKING), ()
        case Step.CHECKING if target is not None and target.state == "comes":
            return _undo(move, now, "the new one broke before it was checked")
        case Step.DRAINING if not source.runs:
            return _next(move, now)
        case Step.UNDOING if target is None or not target.runs:
            return _end(move, Step.CANCELLED if move.cancelling else Step.FAILED, now, leg.cause)
        case Step.RESTORING if seen.former is not None and seen.former.state != "comes":
            return _restored(move, seen.former, now)
    return move, ()


def _restored(move: Move, former: Sight, now: float) -> Result:
    if former.state == "serves":
        return _end(move, Step.CANCELLED if move.cancelling else Step.FAILED, now, move.leg.cause)
    text = f"{move.leg.cause}; and the old one could not be loaded again: {former.why}"
    return _end(move, Step.FAILED, now, text)


def _cancel(move: Move, now: float) -> Result:
    leg = move.leg
    last = move.at == len(move.legs) - 1
    match leg.step:
        case Step.DRAINING if last:
            raise ConflictError(
                f"{move.model} serves from its new place already; to go back, move it back", code="move_switched"
            )
        case Step.DRAINING:
            return dataclasses.replace(move, cancelling=True), ()
        case Step.UNDOING | Step.RESTORING:
            return move, ()  # it comes to the same
        case Step.WAITING | Step.ASKING:
            return _end(dataclasses.replace(move, cancelling=True), Step.CANCELLED, now, "cancelled")
    return _undo(dataclasses.replace(move, cancelling=True), now, "cancelled")


def _undo(move: Move, now: float, cause: str) -> Result:
    leg = move.leg
    drop = (Do("drop", leg.target),) if leg.target is not None else ()
    if move.stop_first:
        return _with(move, step=Step.RESTORING, cause=cause), (*drop, Do("restore"))
    if leg.target is None:
        return _end(move, Step.CANCELLED if move.cancelling else Step.FAILED, now, cause)
    return _with(move, step=Step.UNDOING, cause=cause), drop


def _next(move: Move, now: float) -> Result:
    last = move.at == len(move.legs) - 1
    moved = _with(move, step=Step.DONE, ended_at=now)
    if last:
        return dataclasses.replace(moved, state="done", ended_at=now, message=_words(moved)), ()
    if move.cancelling:
        return _end(moved, Step.CANCELLED, now, "cancelled")
    return _with(moved, step=Step.ASKING, began_at=now), ()


def _end(move: Move, step: Literal[Step.FAILED, Step.CANCELLED], now: float, cause: str) -> Result:
    move = _with(move, step=step, cause=cause, ended_at=now)
    state: MoveState = "cancelled" if step is Step.CANCELLED else "failed"
    legs = tuple(leg if leg.step.ended else dataclasses.replace(leg, step=Step.CANCELLED) for leg in move.legs)
    move = dataclasses.replace(move, legs=legs)
    return dataclasses.replace(move, state=state, ended_at=now, message=_words(move)), ()


def _with(move: Move, **changes: Any) -> Move:
    """The move with its present leg changed."""
    at = move.at
    leg = dataclasses.replace(move.legs[at], **changes)
    return dataclasses.replace(move, legs=(*move.legs[:at], leg, *move.legs[at + 1 :]))


def _words(move: Move) -> str:
    """How it ended, in a sentence."""
    done = [leg for leg in move.legs if leg.step is Step.DONE]
    moved = set(move.changes) <= {"devices"} and any(leg.devices != leg.was_on for leg in move.legs)
    what = "moved" if moved else "replaced"
    where = "; ".join(dict.fromkeys(", ".join(leg.devices) for leg in done if leg.devices))
    if len(done) == len(move.legs):
        return (
            f"{move.model} was {what}"
            + (f" on {where}" if what == "replaced" and where else "")
            + (f" to {where}" if what == "moved" else "")
        )
    cause = next(leg.cause for leg in move.legs if leg.cause)
    some = f"; {len(done)} of {len(move.legs)} instances were {what}" if done else ""
    return f"{move.model} was not {what}: {cause}{some}"
