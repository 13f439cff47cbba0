"""Presets: what runs, saved under a name, read and written as YAML. Pure; `preset_plan.py` says how one is had again.

A preset holds whole settings, not references: a model that was changed or removed since comes back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shoal.config import ConfigError, explain, parse_yaml
from shoal.errors import ConflictError, NotFoundError
from shoal.fleet.schedules import Planned, Schedule
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import LIVE, ModelSpec, check_name
from shoal.fleet.state import Instance
from shoal.fleet.state import InstanceState as S

FORMAT: Literal[1] = 1
MOST_MODELS = 1000
MOST_DESCRIPTION = 2000
MOST_SCHEDULES = 50
MOST_BYTES = 4 * 2**20
"""Of a preset as YAML: a thousand models with long settings have less."""
RunState = Literal["running", "done", "failed", "cancelled", "interrupted"]

Placement = Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]


class PresetEntry(BaseModel):
    """A model in a preset. `devices` are those that its instances were on, one tuple for each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: ModelSpec
    awake: int = Field(1, ge=0, le=64, description="Instances that serve.")
    asleep: int = Field(0, ge=0, le=64, description="Instances that sleep.")
    sleep_level: Literal[1, 2] = 1
    devices: tuple[Placement, ...] = ()

    @property
    def total(self) -> int:
        """Its instances, awake and asleep."""
        return self.awake + self.asleep

    @model_validator(mode="after")
    def _together(self) -> PresetEntry:
        if not 1 <= self.total <= 64:
            raise ValueError(f"awake and asleep together have to be from 1 to 64, not {self.total}")
        if self.spec.port is not None and self.total > 1:
            raise ValueError(f"the fixed port {self.spec.port} serves one instance only")
        if self.devices and len(self.devices) != self.total:
            raise ValueError(
                f"devices are for {len(self.devices)} instances and there are {self.total}; give one list for each, "
                "or leave devices out"
            )
        return self


class Preset(BaseModel):
    """What is to run. Models that it does not name are not to run, unless it is applied so that others are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shoal_preset: Literal[1] = Field(FORMAT, description="The version of this format.")
    name: str
    description: str = Field("", max_length=MOST_DESCRIPTION)
    models: Annotated[tuple[PresetEntry, ...], Field(max_length=MOST_MODELS)] = ()
    schedules: Annotated[tuple[Schedule, ...], Field(max_length=MOST_SCHEDULES)] = ()

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        name = check_name(name)
        if "/" in name:
            raise ValueError("a preset's name has no slash")
        return name

    @model_validator(mode="after")
    def _together(self) -> Preset:
        names = [entry.spec.name for entry in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{min(twice)} stands twice; give each model once")
        times = [(one.cron, one.zone) for one in self.schedules]
        if again := {one for one in times if times.count(one) > 1}:
            raise ValueError(f"the schedule {' in '.join(min(again))} stands twice; give each once")
        return self


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last time that a preset was applied. Times in Unix seconds; `message` says how it ended."""

    state: RunState
    started_at: float
    ended_at: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class PresetRecord:
    """A preset that is kept. What its schedules had due up to `scheduled_at` (Unix seconds) is done with."""

    preset: Preset
    created_at: float
    changed_at: float
    last_run: LastRun | None = None
    scheduled_at: float | None = None

    @property
    def planned(self) -> Planned:
        """When it is to be applied."""
        done = self.changed_at if self.scheduled_at is None else self.scheduled_at
        return Planned(self.preset.name, self.preset.schedules, done)


def capture(fleet: Fleet, name: str, description: str = "", *, fix_devices: bool = False) -> Preset:
    """What runs and sleeps now, or is on its way there. `fix_devices` writes the devices that a model is on into its
    settings, where these leave the choice open.

    Raises ConfigError for a name that cannot be, ConflictError if nothing runs or if the devices of several instances
    cannot be fixed.
    """
    entries = [_entry(fleet, model, fix_devices) for model in sorted(fleet.models)]
    found = [entry for entry in entries if entry is not None]
    if not found:
        raise ConflictError("nothing runs or sleeps; load models, then save them as a preset", code="nothing_runs")
    return make_preset({"name": name, "description": description, "models": found})


def live(fleet: Fleet, model: str) -> list[Instance]:
    """The model's instances that run or sleep, or are on their way there; those on their way out are not among them."""
    there = (S.QUEUED, S.STARTING, S.READY, S.WAKING)
    found = [i for i in fleet.of_model(model) if i.state in there or i.sleeps or fleet.comes_back(i)]
    return fleet.without_doubles(found)


def asleep(fleet: Fleet, instance: Instance) -> bool:
    """Whether an instance sleeps or is to, and nobody wants it awake."""
    return instance.sleeps and instance.id not in fleet.rouse


def running_spec(instance: Instance, model: ModelSpec) -> ModelSpec:
    """The settings that an instance really runs with: those of its start, but for what follows the model's at once."""
    if instance.spec is None:
        return model
    return instance.spec.model_copy(update={name: getattr(model, name) for name in LIVE})


def _entry(fleet: Fleet, name: str, fix_devices: bool) -> PresetEntry | None:
    instances = live(fleet, name)
    if not instances:
        return None
    sleepers = [i for i in instances if asleep(fleet, i)]
    model = fleet.models[name].spec
    spec = running_spec(instances[-1], model)
    if model.devices == "auto":  # where it is now, a move may have put it
        spec = spec.model_copy(update={"devices": "auto"})
    placed = tuple(i.devices for i in instances)
    if fix_devices and spec.devices == "auto":
        if not all(placed) or len(set(placed)) > 1:
            raise ConflictError(
                f"the instances of {name} are on different devices, or have none yet, and its settings can name one "
                "choice only; save it without fixing the devices",
                code="devices_differ",
            )
        spec = ModelSpec.model_validate({**spec.model_dump(), "devices": placed[0]})
    return PresetEntry(
        spec=spec,
        awake=len(instances) - len(sleepers),
        asleep=len(sleepers),
        sleep_level=2 if sleepers and all(i.rest.level == 2 for i in sleepers) else 1,
        devices=placed if all(placed) else (),
    )


def make_preset(data: Any) -> Preset:
    """A preset from untrusted data. Raises ConfigError that names each fault and its place."""
    if isinstance(data, dict) and (version := data.get("shoal_preset", FORMAT)) != FORMAT:
        raise ConfigError(
            f"shoal_preset: this is format {version!r} and this Shoal reads {FORMAT}; export it again with this version"
        )
    try:
        return Preset.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, Preset)) from None


def to_yaml(preset: Preset) -> str:
    """A preset as YAML, with every setting."""
    data = preset.model_dump(mode="json", exclude=None if preset.schedules else {"schedules"})
    text = str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))
    # Some characters break lines in YAML and would be read as blanks; then everything beyond ASCII is escaped.
    odd = any(c in text for c in "\x85\u2028\u2029\ufeff")
    return str(yaml.safe_dump(data, sort_keys=False, width=120)) if odd else text


def from_yaml(text: str, *, name: str | None = None) -> Preset:
    """The preset that `to_yaml` wrote, or that somebody wrote by hand; under another `name`, if one is given.

    Raises ConfigError that names each fault and its place.
    """
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        raise ConfigError(f"a preset has {MOST_BYTES} bytes at most")
    data = parse_yaml(text)
    if not isinstance(data, dict):
        raise ConfigError("a preset is a mapping with `name` and `models`; `shoal presets export` writes one")
    if "shoal_preset" not in data:
        raise ConfigError(f"shoal_preset: is missing; a preset says its format: `shoal_preset: {FORMAT}`")
    return make_preset(data if name is None else {**data, "name": name})


class PresetBook:
    """Every preset, by name. Commands raise ShoalError without changing a thing."""

    def __init__(self, records: Iterable[PresetRecord] = ()) -> None:
        self.records: dict[str, PresetRecord] = {record.preset.name: record for record in records}

    def find(self, name: str) -> PresetRecord:
        """The preset of this name."""
        if (found := self.records.get(name)) is None:
            raise NotFoundError(
                f"there is no preset {name}; `shoal presets ls` lists them", code="preset_not_found", param="preset"
            )
        return found

    def put(self, preset: Preset, now: float, *, replace: bool) -> tuple[PresetRecord, bool]:
        """Keep a preset; whether it is new. Another one of its name is refused unless it is to be replaced."""
        known = self.records.get(preset.name)
        if known is not None and known.preset == preset:
            return known, False
        if known is not None and not replace:
            raise ConflictError(
                f"there is a preset {preset.name}; replace it, or take another name", code="preset_exists", param="name"
            )
        created, last = (now, None) if known is None else (known.created_at, known.last_run)
        # Schedules count from when they were made: their times before that are no missed ones.
        same = known is not None and known.preset.schedules == preset.schedules
        record = PresetRecord(preset, created, now, last, known.scheduled_at if known is not None and same else now)
        self.records[preset.name] = record
        return record, known is None

    def remove(self, name: str) -> None:
        """Forget a preset."""
        self.find(name)
        del self.records[name]
