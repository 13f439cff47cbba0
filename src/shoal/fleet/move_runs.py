"""Moves under way, carried out on the fleet: what is seen of it goes into the steps, what they say is done.

All of it happens inside the manager's task, and a move is kept together with the instances that it concerns: whatever
moment the controller is killed at, the next one finds both as they belong together and goes on from there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial

from shoal.errors import ConflictError, NotFoundError, ShoalError
from shoal.fleet import facts, moves
from shoal.fleet.effects import Effects
from shoal.fleet.life import Life
from shoal.fleet.lifecycle import Event as Happening
from shoal.fleet.move_fit import Asked
from shoal.fleet.move_plan import Wanted, changed, pinned, plan
from shoal.fleet.moves import Answered, Begin, Cancel, Created, Do, Move, Refused, See, Sight
from shoal.fleet.records import Event as Note
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S
from shoal.units import format_seconds

KEPT = 100
"""Moves that have ended and are remembered."""
DRAIN = 3600.0
"""Seconds that requests of the old one may take to end once the new one serves, unless it is in somebody's way."""
SOON = 1.0
"""Seconds before its time at which the start of one that waits for another's end is put off further."""
STOP_FIRST = "or say `--stop-first`: the old one ends before, and requests are held meanwhile"
_log = logging.getLogger(__name__)
_LEVELS = {"done": "info", "cancelled": "warning", "failed": "error"}


class Moves:
    """Every move. `change` gives a model other settings; raises ShoalError if they cannot be. `drain` is how many
    seconds running requests get when Shoal stops, or when another model waits for the memory that they hold."""

    def __init__(
        self,
        fleet: Fleet,
        effects: Effects,
        life: Life,
        change: Callable[[str, Callable[[ModelSpec], ModelSpec]], object],
        drain: float,
    ) -> None:
        self.records: dict[str, Move] = {}
        self._fleet = fleet
        self._effects = effects
        self._life = life
        self._change = change
        self.drain = drain
        self._hurries = False
        self._cut: set[str] = set()  # old ones whose requests have to end sooner than at first
        self._asked: set[tuple[str, str]] = set()  # move and instance
        self._stands = False
        self._held: frozenset[str] = frozenset()
        self._told: dict[str, str] = {}  # why a move waits
        self.ended: Callable[[Move], object] = lambda _: None
        """Told of each move that has ended, once."""
        life.residing.awaited = self.hurry

    def restore(self, records: Iterable[Move]) -> None:
        """At start: know again what was known, and stand still until `go_on`. Before any table is made: no request may
        go to what is not checked."""
        self._stands = True
        self.records = {move.id: move for move in records}
        self._fleet.apart = moves.apart(self.records.values())
        self._hold()

    def go_on(self) -> None:
        """The instances are known again too."""
        self._stands = False
        for move in self._draining():
            self._life.drains.put(move.leg.source, (move.leg.switched_at or 0.0) + self._patience(move))

    def touching(self) -> frozenset[str]:
        """The instances that moves work with, or will: none of them is put to sleep or ended by policy."""
        return moves.touching(self.records.values())

    def find(self, id: str) -> Move:
        """The move of this id. Raises NotFoundError."""
        if (found := self.records.get(id)) is None:
            raise NotFoundError(
                f"there is no move {id}; `shoal moves ls` lists them", code="move_not_found", param="id"
            )
        return found

    # -- commands -----------------------------------------------------------------------------------------------------

    def draft(self, wanted: Wanted) -> tuple[Move, ModelSpec]:
        """What is asked for, as it would begin now, and the settings of the new ones. Raises ShoalError."""
        move = plan(self._fleet, self.records.values(), wanted, self._new_id(), self._effects.now())
        return move, changed(self._fleet.models[move.model].spec, move.changes)

    def begin(self, wanted: Wanted, asked: Asked | None = None) -> Move:
        """Begin what is asked for, or have it wait for moves that touch its devices. Raises ShoalError: also if by what
        the new ones ask for, as far as it is given, they can never fit."""
        move, _ = self.draft(wanted)
        self._refuse_what_never_fits(move, asked or {})
        self._put(move)
        self._say(move, "move_asked", f"{move.model} is to be replaced: {_way(move)} (move {move.id})")
        return move

    def _refuse_what_never_fits(self, move: Move, asked: Asked) -> None:
        """An old one stays until the new one serves, unless it is stopped first; those after it stay at first too."""
        sources = [leg.source for leg in move.legs]
        for n, leg in enumerate(move.legs):
            if (wants := asked.get(leg.devices)) is None:
                continue
            goes = [leg.source] if move.stop_first else []
            stays = [one for one in (sources if n == 0 else [leg.source]) if one not in goes]
            why = self._life.residing.why_never(move.model, wants, stays=stays, goes=goes)
            if why is not None:
                beside = not move.stop_first and bool(set(leg.was_on) & set(wants.usable))
                hint = f"; {STOP_FIRST}" if beside else ""
                raise ConflictError(f"{why}{hint}", code="too_little_memory", param="to")

    def room(self) -> tuple[dict[str, int], bool]:
        """Bytes by device for one more instance, without anybody giving way, and whether the next readings may show
        more."""
        return self._life.residing.room()

    def cancel(self, id: str) -> Move:
        """Undo a move as far as it can be. Raises ConflictError once the new one serves, or if it has ended."""
        self._take(self.find(id), Cancel())
        return self.records[id]

    # -- what happens -------------------------------------------------------------------------------------------------

    def answered(self, fact: facts.CanaryAnswered) -> None:
        """An instance was asked the canary."""
        for move in [m for m in self.records.values() if moves.asks(m) == fact.instance]:
            self._asked.discard((move.id, fact.instance))
            self._take(move, Answered(fact.instance, fact.answer))

    def hurry(self, instances: Collection[str]) -> None:
        """Somebody waits for these instances to give their memory back: requests of those that were replaced no longer
        get more time than those of any model that gives way."""
        for move in self._draining():
            source = self._fleet.instances.get(move.leg.source)
            if source is None or source.id not in instances or source.state is not S.DRAINING:
                continue
            if self._cut_short(move):
                text = f"{move.model}: another model waits for the memory of {source.id}"
                self._say(move, "move_hurried", f"{text}; its requests have {format_seconds(self.drain)} left")

    def settle(self) -> None:
        """Go on with every move as far as the fleet lets it."""
        if self._fleet.closing and not self._hurries:
            self._hurries = True
            for move in self._draining():
                self._cut_short(move)
        if self._stands or self._fleet.closing:
            return  # what Shoal ends, or does not know yet, is nobody's failure
        begin, waits = moves.turns(self.records.values())
        for id in begin:
            self._take(self.records[id], Begin())
        for id, why in waits.items():
            if self._told.get(id) != why:
                self._told[id] = why
                self._put(dataclasses.replace(self.records[id], message=why))
        for move in [m for m in self.records.values() if m.state == "running"]:
            try:
                self._look(move.id)
            except Exception:  # a fault in one must hold up neither the others nor the fleet
                _log.exception("while going on with the move %s", move.id)

    def _look(self, id: str) -> None:
        """Show a move how its instances are, until that changes nothing more."""
        while (move := self.records[id]).state == "running":
            leg = move.leg
            if move.stop_first:
                self._hold_back(move, leg.target, leg.source)
                self._hold_back(move, leg.former, leg.source, leg.target)
            source = self._sight(leg.source) or Sight("left", "is gone", runs=False)
            target = self._sight(leg.target, leg.devices)
            if target is not None and not move.stop_first and set(leg.was_on) & set(leg.devices):
                target = self._with_a_hint(leg.target, target)
            self._take(move, See(source, target, self._sight(leg.former)))
            if self.records[id] is move:
                break
        asked = moves.asks(self.records[id])
        if asked is not None and (id, asked) not in self._asked:
            self._asked.add((id, asked))
            self._effects.ask(self._fleet.instances[asked])

    def _take(self, move: Move, event: moves.Event) -> None:
        after, todo = moves.step(move, event, self._effects.now())
        if after is move:
            return
        self._put(after)
        self._tell(move, after)
        for one in todo:
            try:
                self._carry_out(after.id, one)
            except ShoalError as error:
                self._take(self.records[after.id], Refused(error.message))
                break

    # -- what is to be done -------------------------------------------------------------------------------------------

    def _carry_out(self, id: str, do: Do) -> None:
        move = self.records[id]
        leg, model = move.leg, self._fleet.models.get(move.model)
        match do.action:
            case "load":
                if model is None:
                    raise NotFoundError(f"{move.model} was removed meanwhile")
                created = self._life.create(pinned(changed(model.spec, move.changes), leg))
                self._take(move, Created(created.id))
            case "restore":
                source = self._fleet.instances.get(leg.source)
                spec = source.spec if source is not None else None
                if model is None or spec is None:
                    raise NotFoundError(f"{move.model} was removed meanwhile")
                created = self._life.create(spec)
                self._take(move, Created(created.id))
            case "keep":
                try:
                    self._change(move.model, partial(changed, changes=move.changes))
                except ShoalError as error:  # the new one serves all the same
                    text = f"{move.model} runs with settings that could not be kept: {error.message}"
                    self._say(move, "move_not_kept", text, "error")
            case "switch":
                self._release(leg.target, model.spec if model else None)
                self._unload(do.instance, self._patience(move))
            case "drop":
                self._unload(do.instance, move.drain if do.instance == leg.source else None)

    def _release(self, id: str | None, spec: ModelSpec | None) -> None:
        """Requests may go to an instance that was apart. From now on it is as any other of its model, and its settings
        say so too: where it was to go was the move's wish."""
        instance = self._fleet.instances.get(id or "")
        if instance is None or instance.spec is None:
            return
        if spec is not None and spec.devices == "auto":
            self._life.put(dataclasses.replace(instance, spec=instance.spec.model_copy(update={"devices": "auto"})))

    def _unload(self, id: str, drain: float | None) -> None:
        """End it after its requests, which get so many seconds; None: as many as ever."""
        instance = self._fleet.instances.get(id)
        if instance is not None and self._life.unload(instance).state is S.DRAINING and drain is not None:
            self._life.drains.put(id, self._effects.now() + drain)

    def _hold_back(self, move: Move, id: str | None, *before: str | None) -> None:
        """Have a queued instance start only once those before it have ended: with a fixed port the engine that still
        answers there would vouch for it, and then be ended. It keeps its turn for the memory meanwhile."""
        instance = self._fleet.instances.get(id or "")
        if instance is None or instance.state is not S.QUEUED or instance.restarts:
            return  # one that crashed starts again when that is due
        now, at = self._effects.now(), instance.restart_at
        left = next((one for one in before if (seen := self._sight(one)) is not None and seen.runs), None)
        if left is None:
            if at is not None:
                self._life.put(dataclasses.replace(instance, restart_at=None))
        elif at is None or at <= now + SOON:
            until = now + max(2 * SOON, self.drain if move.drain is None else move.drain)
            self._life.put(dataclasses.replace(instance, restart_at=until, reason=f"waits for {left} to end"))

    def _cut_short(self, move: Move) -> bool:
        """Have what still runs on the old one end after the usual time, if it had longer; whether it had."""
        source, until = move.leg.source, self._effects.now() + self.drain
        if source in self._cut or (move.leg.switched_at or 0.0) + self._patience(move) <= until:
            return False
        self._cut.add(source)
        self._life.drains.put(source, until)
        return True

    def _draining(self) -> list[Move]:
        return [m for m in self.records.values() if not m.ended and m.leg.step is moves.Step.DRAINING]

    def _patience(self, move: Move) -> float:
        return DRAIN if move.drain is None else move.drain

    # -- what is seen -------------------------------------------------------------------------------------------------

    def _sight(self, id: str | None, devices: Iterable[str] = ()) -> Sight | None:
        if id is None:
            return None
        instance = self._fleet.instances.get(id)
        if instance is None:
            return Sight("left", "is gone", runs=False)
        known = {device.id for device in self._fleet.devices}
        gone = [name for name in devices if name not in known]
        seen = self._as_seen(instance)
        if gone and known and seen.state in ("serves", "comes"):
            return Sight("failed", f"{gone[0]} is gone")
        return seen

    def _with_a_hint(self, id: str | None, seen: Sight) -> Sight:
        """What a new one that does not fit beside the old one could do about it."""
        instance = self._fleet.instances.get(id or "")
        failure = None if instance is None else instance.failure
        if seen.state != "failed" or failure is None or failure.code != "too_little_memory":
            return seen
        return dataclasses.replace(seen, why=f"{seen.why}; {STOP_FIRST}")

    def _as_seen(self, instance: Instance) -> Sight:
        failure = instance.failure
        match instance.state:
            case S.READY:
                return Sight("serves")
            case S.FAILED:
                why = " ".join((failure.message, failure.hint)).strip() if failure else instance.reason
                return Sight("failed", why, runs=False)
            case S.STOPPED:
                return Sight("left", "was unloaded", runs=False)
            case S.STOPPING if self._fleet.after.get(instance.id, Happening.END) is Happening.END:
                return Sight("left", "was unloaded")
            case _ if instance.sleeps:
                return Sight("left", "was put to sleep")
            case S.DRAINING:
                return Sight("left", "was unloaded")
        return Sight("comes", f"it is {instance.state.value}")

    # -- what is told -------------------------------------------------------------------------------------------------

    def _put(self, move: Move) -> None:
        self.records[move.id] = move
        self._effects.save_move(move)
        self._effects.publish("move", move)
        apart = moves.apart(self.records.values())
        if apart != self._fleet.apart:
            self._fleet.apart = apart
            self._life.routes_changed = True
        self._hold()
        if move.ended:
            self.ended(move)
            self._asked = {(id, instance) for id, instance in self._asked if id != move.id}
            self._told.pop(move.id, None)
            self._cut.difference_update(leg.source for leg in move.legs)
            self._prune()

    def _hold(self) -> None:
        """Have the residency policy leave alone what moves work with."""
        touching = self.touching()
        if touching != self._held:
            self._life.residing.held.difference_update(self._held - touching)
            self._life.residing.held.update(touching)
            self._held = touching

    def _prune(self) -> None:
        ended = sorted((m for m in self.records.values() if m.ended), key=lambda m: (m.ended_at or 0.0, m.id))
        for move in ended[: max(0, len(ended) - KEPT)]:
            del self.records[move.id]
            self._effects.delete_move(move.id)

    def _tell(self, before: Move, after: Move) -> None:
        if after.ended:
            self._say(after, f"move_{after.state}", after.message, _LEVELS[after.state])
            return
        if before.at != after.at or before.leg.step is after.leg.step:
            return
        leg = after.leg
        match leg.step:
            case moves.Step.LOADING:
                self._say(after, "move_loading", f"{after.model}: another instance loads, {_to(leg.devices)}")
            case moves.Step.CHECKING:
                self._explain(leg.target, f"takes no requests yet: it is to take the place of {leg.source}")
            case moves.Step.DRAINING:
                self._explain(leg.target, f"took the place of {leg.source}")
                text = f"{after.model}: {leg.target} serves in the place of {leg.source}, which drains"
                self._say(after, "move_switched", text + (f" ({leg.note})" if leg.note else ""))
            case moves.Step.UNDOING:
                self._say(after, "move_undone", f"{after.model}: {leg.cause}; {leg.source} serves on", "warning")
            case moves.Step.RESTORING:
                self._say(after, "move_undone", f"{after.model}: {leg.cause}; the old one is loaded again", "warning")

    def _explain(self, id: str | None, reason: str) -> None:
        """Say of an instance what it does there."""
        if (instance := self._fleet.instances.get(id or "")) is not None:
            self._life.put(dataclasses.replace(instance, reason=reason))

    def _say(self, move: Move, kind: str, message: str, level: str = "info") -> None:
        leg = move.leg
        self._life.say(Note(self._effects.now(), level, kind, message, move.model, leg.target or leg.source))

    def _new_id(self) -> str:
        while (new := f"move-{self._effects.token()}") in self.records:
            pass
        return new


def _way(move: Move) -> str:
    first = "; the old one ends first" if move.stop_first else ""
    changes = f", with another {', '.join(sorted(move.changes))}" if move.changes else ""
    legs = [f"{', '.join(leg.was_on)} → {', '.join(leg.devices) or 'wherever it fits'}" for leg in move.legs]
    return "; ".join(legs) + changes + first


def _to(devices: tuple[str, ...]) -> str:
    return f"on {', '.join(devices)}" if devices else "wherever it fits"
