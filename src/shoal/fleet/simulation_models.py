"""What a simulation is of: models, devices and rules, as a user writes them down."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shoal.config import read_file, suggest
from shoal.errors import ShoalError
from shoal.fleet.residency import Device, Residency, Resident, Rules
from shoal.units import ByteSize, Duration, format_bytes, parse_bytes

_RULES = Rules()
_MANY = re.compile(r"(\d{1,4})\s*[x×]\s*(.+)")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SimulatedModel(_Strict):
    """A model, by what its residency costs. Bytes are on each of its devices."""

    weights: ByteSize = Field(ge=0, description="Bytes of weights.")
    overhead: ByteSize = Field(2**30, ge=0, description="What it takes awake beside weights and KV cache.")
    floor: ByteSize = Field(2**28, ge=0, description="KV cache that it can always get back.")
    floor_least: ByteSize | None = Field(None, ge=0, description="Down to this its floor is lent while it is idle.")
    devices: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "auto", description="The devices that it may be on."
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="Over how many devices it is split.")
    sleep_level: Literal[0, 1, 2] = Field(1, description="0: cannot sleep. 1: weights to the host. 2: dropped.")
    asleep: ByteSize = Field(2**29, ge=0, description="What it takes of a device asleep.")
    host: ByteSize | None = Field(None, ge=0, description="What it takes of the host asleep. Default: all weights.")
    wake: Duration = Field(0.5, ge=0, description="Seconds to wake, to sleep, to load, to unload.")
    sleep: Duration = Field(0.2, ge=0)
    load: Duration = Field(60.0, ge=0)
    unload: Duration = Field(2.0, ge=0)
    priority: int = Field(100, ge=1, le=1000, description="Its weight; those with less give way first.")
    pinned: bool = Field(False, description="It never gives way.")
    load_on_start: bool = Field(False, description="It is awake at the start.")
    sleep_after: Duration | None = Field(None, ge=0, description="Idle seconds after which it leaves the device.")
    unload_after: Duration | None = Field(None, ge=0, description="Idle seconds after which it is unloaded.")
    max_concurrency: int = Field(64, ge=1, description="Requests that it runs at once.")
    prefill_rate: float = Field(8000, gt=0, description="Tokens a second of a prompt.")
    decode_rate: float = Field(50, gt=0, description="Tokens a second of an answer.")

    @model_validator(mode="after")
    def _together(self) -> SimulatedModel:
        if self.sleep_level and self.asleep > self.awake:
            raise ValueError(
                f"asleep it takes {format_bytes(self.asleep)}, more than the {format_bytes(self.awake)} awake"
            )
        if self.devices != "auto" and len(set(self.devices)) < self.tensor_parallel:
            raise ValueError(f"tensor_parallel is {self.tensor_parallel}, and fewer devices are named")
        if self.floor_least is not None and self.floor_least > self.floor:
            raise ValueError("floor_least is above the floor")
        return self

    @property
    def awake(self) -> int:
        """Bytes on each of its devices while it serves."""
        return self.weights + self.overhead + self.floor

    def resident(self, name: str) -> Resident:
        """The model on disk, as residency sees it."""
        host = self.weights * self.tensor_parallel if self.host is None else self.host
        return Resident(
            name=name, usable=() if self.devices == "auto" else self.devices, width=self.tensor_parallel,
            awake=self.awake, asleep=self.asleep if self.sleep_level else 0,
            host=host if self.sleep_level == 1 else 0, sleep_level=self.sleep_level, priority=self.priority,
            pinned=self.pinned, floor=self.floor, floor_wanted=self.floor, floor_least=self.floor_least,
            sleep_after=self.sleep_after, unload_after=self.unload_after, wake_cost=self.wake, sleep_cost=self.sleep,
            load_cost=self.load,
        )  # fmt: skip


class SimulatedRules(_Strict):
    """The rules of the policy; what is left out is as `shoal serve` has it."""

    patience: Duration = Field(_RULES.patience, ge=0, description="How long a request waits for models in use.")
    min_awake: Duration = Field(_RULES.min_awake, ge=0, description="How long who came stays, at least.")
    payback: float = Field(_RULES.payback, ge=0, description="And so many times what its return costs.")
    switches: int = Field(_RULES.switches, ge=1, description="How often models give way on a device in the window.")
    switch_window: Duration = Field(_RULES.switch_window, gt=0, description="Seconds of that window.")
    horizon: Duration = Field(_RULES.horizon, gt=0, description="How far ahead plans are judged.")

    def rules(self) -> Rules:
        """As the policy takes them."""
        return Rules(**self.model_dump())


class Setup(_Strict):
    """The file of a simulation: models by name, and rules."""

    models: dict[str, SimulatedModel] = Field(min_length=1)
    rules: SimulatedRules = SimulatedRules()


def read_setup(path: Path) -> Setup:
    """The models of a YAML file. Raises ShoalError that names each fault."""
    data = read_file(path)
    try:
        return Setup.model_validate(data)
    except ValidationError as error:
        raise ShoalError(f"{path}: {'; '.join(map(_fault, error.errors()))}", code="invalid_models") from None


def _fault(fault: Mapping[str, Any]) -> str:
    where, last = ".".join(map(str, fault["loc"])), str(fault["loc"][-1]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        inner: dict[int, type[BaseModel]] = {1: Setup, 2: SimulatedRules, 3: SimulatedModel}
        return f"{where}: there is no such setting{suggest(last, inner[len(fault['loc'])].model_fields)}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"


def parse_devices(text: str) -> tuple[Device, ...]:
    """``"cuda:0=80GiB,cuda:1=40GiB"``, or ``"8x80GiB"`` for `cuda:0` to `cuda:7`. Raises ShoalError."""
    found: list[Device] = []
    for part in text.split(","):
        name, equals, size = part.strip().rpartition("=")
        try:
            if equals:
                found.append(Device(name.strip(), _budget(size)))
                continue
            match = _MANY.fullmatch(part.strip())
            if match is None:
                raise ValueError("it has to be NAME=SIZE, or NxSIZE")
            first = len(found)
            found += [Device(f"cuda:{first + n}", _budget(match[2])) for n in range(int(match[1]))]
        except ValueError as error:
            raise ShoalError(f"--devices: {part.strip()!r}: {error}", code="invalid_devices") from None
    names = [device.id for device in found]
    twice = next((name for name in names if names.count(name) > 1 or not name), None)
    if twice is not None or not found:
        raise ShoalError(f"--devices: {twice or 'a device'} needs a name of its own", code="invalid_devices")
    return tuple(found)


def check(setup: Setup, devices: Sequence[Device]) -> None:
    """Refuse devices that nothing can be on, and devices that models name and that are not there."""
    known = {device.id for device in devices}
    for name, model in setup.models.items():
        missing = [] if model.devices == "auto" else [device for device in model.devices if device not in known]
        if missing:
            raise ShoalError(
                f"{name} names the device {missing[0]}, which is not among --devices: {', '.join(sorted(known))}",
                code="no_such_device",
            )
    for device in devices:
        may = [m for m in setup.models.values() if m.devices == "auto" or device.id in m.devices]
        if not any(model.awake <= device.budget for model in may):
            least = min((model.awake for model in may), default=None)
            why = "no model may be on it" if least is None else f"the smallest model takes {format_bytes(least)}"
            raise ShoalError(
                f"no model fits on {device.id}: it has {format_bytes(device.budget)}, and {why}; "
                "leave it out, or make it larger",
                code="useless_device",
            )


def start(setup: Setup, devices: Sequence[Device], now: float) -> dict[str, Resident]:
    """Every model where it is at the start: on disk, or those with `load_on_start` awake where there is most room."""
    room = {device.id: device.budget for device in devices}
    placed = {}
    for name, model in setup.models.items():
        resident = model.resident(name)
        if model.load_on_start:
            usable = [device for device in resident.usable or room if room[device] >= model.awake]
            usable.sort(key=lambda device: (-room[device], device))
            on = tuple(sorted(usable[: resident.width]))
            if len(on) < resident.width:
                raise ShoalError(
                    f"{name} is to be awake at the start and needs {format_bytes(model.awake)} on "
                    f"{resident.width} device(s); there is no such room left",
                    code="too_little_memory",
                )
            for device in on:
                room[device] -= model.awake
            resident = dataclasses.replace(resident, place=Residency.GPU, on=on, last_use=now, awake_since=now)
        placed[name] = resident
    return placed


def _budget(text: str) -> int:
    size = parse_bytes(text.strip())
    if size <= 0:
        raise ValueError("a device has more than no memory")
    return size
