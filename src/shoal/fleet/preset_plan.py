"""What has to be done so that a preset runs: the difference to what runs now, step by step, with its reasons. Pure.

Steps come in groups. Groups touch different devices and run side by side; the steps of one follow each other: first
what gives memory back, then what takes it, and of that first those that end asleep.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shoal.fleet.move_plan import Wanted
from shoal.fleet.presets import Preset, PresetEntry, asleep, live, running_spec
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import LIVE, ModelSpec
from shoal.fleet.state import Instance, Model
from shoal.fleet.state import InstanceState as S

Action = Literal["keep", "change", "move", "start", "stop", "sleep", "wake"]
FREES: tuple[Action, ...] = ("stop", "sleep")
"""Steps that give memory back, on which those wait that take it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do with a model, and why.

    `instances`: those to stop or wake; to sleep, if they are known before; with `move` and `change`, those that others
    take the place of while they serve. `count`: how many are to be awake afterwards (keep, start), or asleep (sleep).
    `settings` that a change touches; `live`: without a new start.
    """

    action: Action
    model: str
    reason: str
    instances: tuple[str, ...] = ()
    count: int = 0
    level: int | None = None
    settings: tuple[str, ...] = ()
    live: bool = True
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a model of the preset cannot be had as it is there; it is left as it is now."""

    model: str
    message: str


@dataclass(frozen=True, slots=True)
class PresetPlan:
    """The way from what runs to a preset. `left` runs beside it, because others are kept."""

    preset: str
    exclusive: bool
    groups: tuple[tuple[Step, ...], ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step, group by group."""
        return tuple(step for group in self.groups for step in group)

    @property
    def in_place(self) -> bool:
        """Whether there is nothing to do, and nothing that cannot be done."""
        return not self.problems and all(step.action == "keep" for step in self.steps)


def replaces(step: Step) -> bool:
    """Whether instances take others' places while those serve, by a move."""
    return step.action in ("move", "change") and bool(step.instances)


def compare(
    preset: Preset,
    fleet: Fleet,
    *,
    exclusive: bool = True,
    faults: Mapping[str, str] | None = None,
    beside: Collection[str] = (),
) -> PresetPlan:
    """The steps from `fleet` to `preset`. `exclusive`: what the preset does not name is stopped. `faults`: by model,
    what was found outside, such as a source that is not there; they count only for models that have to start. `beside`:
    models of which an instance as the preset has it fits beside what runs, so that it can take the place of another."""
    steps: list[Step] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for entry in preset.models:
        found = _steps(entry, fleet, entry.spec.name in beside)
        problem = _problem(entry, fleet, found, faults or {})
        if problem is not None:
            problems.append(Problem(entry.spec.name, problem))
            continue
        steps += found
        if any(step.action == "start" for step in found):
            notes += _elsewhere(entry, fleet)
    named = {entry.spec.name for entry in preset.models}
    others = [name for name in sorted(fleet.models) if name not in named and live(fleet, name)]
    if exclusive:
        steps += [_stop(name, live(fleet, name), "the preset does not name it") for name in others]
    left = () if exclusive else tuple(others)
    return PresetPlan(preset.name, exclusive, _groups(steps), tuple(problems), tuple(notes), left)


def _steps(entry: PresetEntry, fleet: Fleet, beside: bool) -> list[Step]:
    """What one model needs, in order."""
    name, model = entry.spec.name, fleet.models.get(entry.spec.name)
    there = live(fleet, name)
    if model is None:
        return _anew(entry, "it is not declared; it is added with the settings of the preset")
    settings = differing(model.spec, entry.spec)
    if what := sorted({s for one in there for s in _apart(one, entry.spec)}):
        if beside and _can_be_replaced(entry, fleet, there):
            return [_replace(entry, there, what, settings)]
        why = f"it runs with another {_words(what)}, which needs a new start"
        change = [Step("change", name, f"{_words(settings)}: as saved", settings=settings, live=False)]
        return [_stop(name, there, why), *(change if settings else ()), *_anew(entry, "with the settings saved")]
    steps = []
    if settings:
        live_only = all(s in LIVE for s in settings)
        how = "without a new start" if live_only or there else "for its start"
        text = f"{_words(settings)}: as saved, {how}"
        steps.append(Step("change", name, text, settings=settings, live=live_only or bool(there)))
    steps += _counts(entry, fleet, there)
    return steps or [_keep(entry, there)]


def _apart(one: Instance, spec: ModelSpec) -> set[str]:
    """The settings with which an instance does not run as a preset has it. What may run anywhere may stay."""
    return set(differing(running_spec(one, spec), spec)) - ({"devices"} if spec.devices == "auto" else set())


def _can_be_replaced(entry: PresetEntry, fleet: Fleet, there: Sequence[Instance]) -> bool:
    """Whether a move does what the entry asks for: as many serve as are to, and nothing else is under way with them."""
    port = entry.spec.port
    free = port is None or all(one.spec is not None and one.spec.port != port for one in there)
    serve = all(one.state is S.READY and one.id not in fleet.apart for one in there)
    return free and serve and not entry.asleep and len(there) == entry.awake


def _replace(entry: PresetEntry, there: Sequence[Instance], what: Sequence[str], settings: tuple[str, ...]) -> Step:
    """Another instance takes each one's place, elsewhere or with other settings."""
    old = [one for one in there if _apart(one, entry.spec)]
    devices = tuple(dict.fromkeys((*_on(old), *_wanted_devices(entry))))
    ids = tuple(one.id for one in old)
    if what == ["devices"]:
        why = f"from {_words(_on(old))} to {_words(entry.spec.devices)}, while it serves"
        return Step("move", entry.spec.name, why, ids, settings=settings, live=False, devices=devices)
    why = f"{_words(what)}: as saved, while it serves"
    return Step("change", entry.spec.name, why, ids, settings=settings or tuple(what), live=False, devices=devices)


def wanted_move(entry: PresetEntry, model: ModelSpec, drain: float) -> Wanted:
    """What to ask of the moves for a step that replaces instances. Requests of the old ones get `drain` seconds."""
    saved = entry.spec.model_dump(mode="json")
    return Wanted(entry.spec.name, changes={name: saved[name] for name in differing(model, entry.spec)}, drain=drain)


def _counts(entry: PresetEntry, fleet: Fleet, there: Sequence[Instance]) -> list[Step]:
    """How the right number of instances comes to serve and to sleep."""
    name = entry.spec.name
    sleepers = [i for i in there if asleep(fleet, i)]
    right = [i for i in sleepers if i.rest.level == entry.sleep_level]
    wrong = [i for i in sleepers if i.rest.level != entry.sleep_level]
    awake = [i for i in there if i not in sleepers]
    if not there:
        return _anew(entry, "it is not loaded")
    steps = []
    surplus = max(0, len(there) - entry.total)
    # Newest first; of those that serve no more than are too many, so that as few as possible change.
    spare = [*reversed(wrong), *list(reversed(awake))[: max(0, len(awake) - entry.awake)], *reversed(right)][:surplus]
    if spare:
        steps.append(_stop(name, spare, f"{len(there)} run or sleep and the preset has {entry.total}"))
    awake, right, wrong = ([i for i in kind if i not in spare] for kind in (awake, right, wrong))
    if (missing := entry.total - len(awake) - len(right) - len(wrong)) > 0:
        roused = "; those that sleep wake for it" if right or wrong else ""
        return [*steps, *_anew(entry, f"{missing} more of {entry.total}{roused}")]
    rouse = [*wrong, *right[: max(0, entry.awake - len(awake) - len(wrong))]]
    if rouse:
        why = f"{entry.awake} are to serve" if len(awake) < entry.awake else f"to sleep at level {entry.sleep_level}"
        steps.append(Step("wake", name, why, tuple(i.id for i in rouse), devices=_on(rouse)))
    if (much := len(awake) + len(rouse) - entry.awake) > 0:
        steps.append(_sleep(entry, f"{much} more asleep: the preset has {entry.asleep}", _on(awake)))
    return steps


def _anew(entry: PresetEntry, why: str) -> list[Step]:
    """Have every instance serve, then put those to sleep that are to."""
    devices = _wanted_devices(entry)
    start = Step("start", entry.spec.name, why, count=entry.total, devices=devices)
    return [start, *([_sleep(entry, "it was saved asleep", devices)] if entry.asleep else ())]


def _stop(name: str, instances: Sequence[Instance], why: str) -> Step:
    return Step("stop", name, why, tuple(i.id for i in instances), devices=_on(instances))


def _sleep(entry: PresetEntry, why: str, devices: tuple[str, ...]) -> Step:
    return Step("sleep", entry.spec.name, why, count=entry.asleep, level=entry.sleep_level, devices=devices)


def _keep(entry: PresetEntry, there: Sequence[Instance]) -> Step:
    comes = sum(i.state not in (S.READY, S.SLEEPING) for i in there)
    why = "it is as saved" if not comes else "it is on its way to being as saved"
    return Step("keep", entry.spec.name, why, tuple(i.id for i in there), count=entry.awake, devices=_on(there))


def differing(one: ModelSpec, other: ModelSpec) -> tuple[str, ...]:
    """The settings in which two differ."""
    return tuple(name for name in ModelSpec.model_fields if getattr(one, name) != getattr(other, name))


# -- what cannot be ---------------------------------------------------------------------------------------------------


def _problem(entry: PresetEntry, fleet: Fleet, steps: Iterable[Step], faults: Mapping[str, str]) -> str | None:
    spec = entry.spec
    model: Model | None = fleet.models.get(spec.name)
    if model is not None and model.origin == "file" and model.spec != spec:
        what = _words(differing(model.spec, spec))
        return f"it is declared in the configuration file with another {what}; change it there, then `shoal reload`"
    if spec.name in fleet.leaving:
        return "it is being removed; apply the preset again once it is gone"
    if not any(step.action == "start" or replaces(step) for step in steps):
        return None
    known = {device.id for device in fleet.devices}
    missing = [] if spec.devices == "auto" else [id for id in spec.devices if id not in known]
    if missing:
        return f"its settings name {_words(missing)}, and this machine has {_words(sorted(known)) or 'no device'}"
    return faults.get(spec.name)


def _elsewhere(entry: PresetEntry, fleet: Fleet) -> list[str]:
    """What to say of a model that cannot come back to where it was and may go elsewhere."""
    known = {device.id for device in fleet.devices}
    gone = sorted({id for placed in entry.devices for id in placed if id not in known})
    if entry.spec.devices != "auto" or not gone:
        return []
    return [f"{entry.spec.name} was on {_words(gone)}, which this machine does not have; it goes elsewhere"]


# -- groups -----------------------------------------------------------------------------------------------------------


def _groups(steps: Sequence[Step]) -> tuple[tuple[Step, ...], ...]:
    """Steps that touch a common device, directly or through others, are one group; a start whose devices are not known
    yet may touch any, so then all are one."""
    models = list(dict.fromkeys(step.model for step in steps))
    everywhere = any(step.action == "start" and not step.devices for step in steps)
    touched = {name: {d for step in steps if step.model == name for d in step.devices} for name in models}
    groups: list[tuple[set[str], set[str]]] = []  # models, devices
    for name in models:
        names, devices = {name}, set(touched[name])
        apart = []
        for group in groups:
            if everywhere or group[1] & devices:
                names |= group[0]
                devices |= group[1]
            else:
                apart.append(group)
        groups = [*apart, (names, devices)]
    made = [_ordered([step for step in steps if step.model in names]) for names, _ in groups]
    return tuple(sorted(made, key=lambda group: min(models.index(step.model) for step in group)))


def _ordered(steps: Sequence[Step]) -> tuple[Step, ...]:
    """What gives memory back goes first, then what takes it and gives about as much back, first where it was. A model
    that is to start and sleep does both before the next one starts."""
    takes = {step.model for step in steps if step.action in ("start", "wake")}
    rests = {step.model for step in steps if step.action == "sleep"}

    def rank(step: Step) -> int:
        if step.action == "keep":
            return 0
        if step.action == "stop" or (step.action == "sleep" and step.model not in takes):
            return 1
        if step.model not in takes:
            return 2 if not replaces(step) else 3 if step.action == "change" else 4
        return 5 if step.model in rests else 6

    order = list(dict.fromkeys(step.model for step in steps))
    late = sorted(steps, key=lambda step: (rank(step), order.index(step.model) if rank(step) >= 2 else 0))
    return tuple(late)


def _wanted_devices(entry: PresetEntry) -> tuple[str, ...]:
    """Where it starts: its settings say it, or else it was there before; empty if nothing is known."""
    if entry.spec.devices != "auto":
        return entry.spec.devices
    return tuple(dict.fromkeys(id for placed in entry.devices for id in placed))


def _on(instances: Iterable[Instance]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(id for one in instances for id in one.devices))


def _words(names: Sequence[str]) -> str:
    return ", ".join(names)
