"""Virtual models: names that stand for other models, with requests changed on the way. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from shoal.errors import ConflictError, NotFoundError
from shoal.fleet.spec import check_name
from shoal.messages import VirtualModel

MAX_FALLBACKS = 8
MAX_BYTES = 65_536
"""Bytes of one virtual model as JSON: every routing table carries it."""
MAX_DEPTH = 32
FIXED = ("model", "stream")
"""What no virtual model may change: the one is its own, the other decides in which form a client is answered."""

Name = Annotated[str, AfterValidator(check_name)]
FieldName = Annotated[str, Field(min_length=1, max_length=200)]


class VirtualSpec(BaseModel):
    """A virtual model's settings. Immutable: a change makes a new one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Name = Field(description="The name that clients send as `model`.")
    model: Name = Field(description="The model that serves its requests.")
    set: dict[FieldName, JsonValue] = Field(
        default_factory=dict, description="Fields of a request to replace or add, such as {temperature: 0}."
    )
    defaults: dict[FieldName, JsonValue] = Field(
        default_factory=dict, description="Fields to add where a request lacks them."
    )
    strip: tuple[FieldName, ...] = Field((), description="Fields to take out of a request.")
    system: str | None = Field(
        None, min_length=1, description="Put before the messages where there is no system message."
    )
    fallback: Annotated[tuple[Name, ...], Field(max_length=MAX_FALLBACKS)] = Field(
        (), description="Models that are asked, in this order, where `model` cannot serve."
    )

    @model_validator(mode="after")
    def _together(self) -> VirtualSpec:
        named = (self.model, *self.fallback)
        if self.name in named:
            raise ValueError(f"{self.name} cannot stand for itself; name another model")
        if len(set(named)) < len(named):
            raise ValueError("model and fallback name a model twice; leave out the second")
        used: dict[str, str] = {}
        for where, fields in (("set", self.set), ("defaults", self.defaults), ("strip", self.strip)):
            for field in fields:
                if field in FIXED:
                    raise ValueError(f"{where}: `{field}` cannot be changed by a virtual model; leave it out")
                if field in used:
                    raise ValueError(f"`{field}` stands in {used[field]} and in {where}; leave it in one of them")
                used[field] = where
        if any(_depth(value) > MAX_DEPTH for value in (self.set, self.defaults)):
            raise ValueError(f"set and defaults may be nested {MAX_DEPTH} deep at most")
        try:
            size = len(json.dumps(self.model_dump(), ensure_ascii=False, allow_nan=False).encode())
        except UnicodeEncodeError:
            raise ValueError("half a character (a lone surrogate) cannot be sent to an engine") from None
        except ValueError:
            raise ValueError("JSON has no infinite numbers and no NaN; give another value") from None
        if size > MAX_BYTES:
            raise ValueError(f"it may have {MAX_BYTES} bytes as JSON at most, and has {size}")
        return self


@dataclass(frozen=True, slots=True)
class Virtual:
    """A virtual model that exists, and where it comes from: the API or the configuration file."""

    spec: VirtualSpec
    origin: str
    created_at: float

    def message(self) -> VirtualModel:
        """As relays need it."""
        spec = self.spec
        return VirtualModel(
            name=spec.name,
            model=spec.model,
            set=dict(spec.set),
            defaults=dict(spec.defaults),
            strip=spec.strip,
            system=spec.system,
            fallback=spec.fallback,
            created=int(self.created_at),
        )


class VirtualBook:
    """Every virtual model, by name. Commands raise ShoalError without changing a thing."""

    def __init__(self, records: Iterable[Virtual] = ()) -> None:
        self.records: dict[str, Virtual] = {record.spec.name: record for record in records}

    def find(self, name: str) -> Virtual:
        """The virtual model of this name."""
        if (found := self.records.get(name)) is None:
            raise NotFoundError(
                f"there is no virtual model {name}; `shoal virtual ls` lists them",
                code="model_not_found",
                param="model",
            )
        return found

    def put(self, spec: VirtualSpec, models: Collection[str], now: float) -> tuple[Virtual, bool]:
        """Add or replace one. `models` are the names of the real ones. Whether it is new comes with it."""
        known = self.records.get(spec.name)
        if known is not None:
            _refuse_if_declared(known)
        if spec.name in models:
            raise ConflictError(
                f"there is a model {spec.name}; give the virtual one another name", code="model_exists", param="name"
            )
        others = [record.spec for record in self.records.values() if record.spec.name != spec.name]
        if (fault := chain(spec, others)) is not None:
            raise ConflictError(fault, code="virtual_chain", param="model")
        record = Virtual(spec, "api", now if known is None else known.created_at)
        self.records[spec.name] = record
        return record, known is None

    def remove(self, name: str) -> Virtual:
        """Forget one."""
        found = self.find(name)
        _refuse_if_declared(found)
        del self.records[name]
        return found

    def declare(self, specs: Mapping[str, VirtualSpec], now: float) -> dict[str, list[str]]:
        """Make those of the file exactly these, over others of their names: the names of those that were `added`,
        `changed` and `removed`."""
        added: list[str] = []
        changed: list[str] = []
        removed = [name for name, one in self.records.items() if one.origin == "file" and name not in specs]
        for name in removed:
            del self.records[name]
        for name, spec in specs.items():
            known = self.records.get(name)
            record = Virtual(spec, "file", now if known is None else known.created_at)
            if record != known:
                self.records[name] = record
                (added if known is None else changed).append(name)
        return {"added": added, "changed": changed, "removed": removed}

    def served(self) -> tuple[VirtualModel, ...]:
        """Those that relays are told of, by name. One that a model hides is among them: relays look for models first,
        and once that model is gone the name stands for what it did before."""
        return tuple(self.records[name].message() for name in sorted(self.records) if not self._leads_on(name))

    def faults(self, models: Collection[str]) -> list[str]:
        """Why some cannot be used as they were declared, in a sentence each: the file may since have taken a name that
        the API had given. `models` are the names of the real ones."""
        found = []
        for name in sorted(self.records):
            if name in models:
                found.append(f"the virtual model {name} is hidden by the model of that name; rename one of them")
            elif self._leads_on(name):
                others = [record.spec for record in self.records.values() if record.spec.name != name]
                found.append(f"the virtual model {name} is left out: {chain(self.records[name].spec, others)}")
        return found

    def _leads_on(self, name: str) -> bool:
        """Whether what a virtual model stands for is virtual too."""
        spec = self.records[name].spec
        return any(target in self.records for target in (spec.model, *spec.fallback))


def chain(spec: VirtualSpec, others: Iterable[VirtualSpec]) -> str | None:
    """Why a virtual model would lead over another one, or another over it; None if all lead to real ones at once."""
    for other in others:
        if other.name in (spec.model, *spec.fallback):
            return f"{spec.name} names {other.name}, which is virtual too; name the model that this one stands for"
        if spec.name in (other.model, *other.fallback):
            return (
                f"the virtual model {other.name} names {spec.name}, so it cannot be virtual too; change that one first"
            )
    return None


def _refuse_if_declared(record: Virtual) -> None:
    if record.origin == "file":
        raise ConflictError(
            f"{record.spec.name} is declared in the configuration file; change it there, then `shoal reload`",
            code="declared_in_file",
        )


def _depth(value: JsonValue) -> int:
    """How deep JSON is nested: 0 for a number."""
    depth, level = 0, [value]
    while True:
        inner: list[JsonValue] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return depth
        depth, level = depth + 1, inner
