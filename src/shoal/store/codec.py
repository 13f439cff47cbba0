"""Records as rows and back. Pure; rows are plain dictionaries of column values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shoal.config import explain
from shoal.errors import ShoalError
from shoal.fleet.keys import Former, KeyRecord, KeySettings
from shoal.fleet.moves import Leg, Move, Step
from shoal.fleet.presets import LastRun, Preset, PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.sessions import Session
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Failure, Instance, InstanceState, Model, Progress, Rest
from shoal.fleet.users import Cost, PasswordHash, User, check_role
from shoal.fleet.virtual import Virtual, VirtualSpec
from shoal.messages import Usage

Row = Mapping[str, Any]
S = TypeVar("S", bound=BaseModel)

_COLUMNS = ("id", "model", "engine", "state", "created_at", "changed_at")


class UnreadableError(ValueError):
    """A stored record that this version cannot read, and why."""


def model_row(model: Model) -> dict[str, Any]:
    """The row of a model."""
    return {
        "name": model.spec.name,
        "spec": json.dumps(model.spec.model_dump(mode="json")),
        "origin": model.origin,
        "created_at": model.created_at,
        "desired": model.desired,
    }


def read_model(row: Row) -> Model:
    """The model of a row. Raises UnreadableError."""
    spec = _checked(ModelSpec, _json(row["spec"]))
    return Model(spec=spec, origin=row["origin"], created_at=row["created_at"], desired=row["desired"])


def instance_row(instance: Instance) -> dict[str, Any]:
    """The row of an instance: what is searched for in columns, the rest in `record`."""
    record = {item.name: getattr(instance, item.name) for item in fields(Instance) if item.name not in _COLUMNS}
    record["spec"] = None if instance.spec is None else instance.spec.model_dump(mode="json")
    for name in ("progress", "failure", "rest"):
        if record[name] is not None:
            record[name] = {item.name: getattr(record[name], item.name) for item in fields(record[name])}
    columns: dict[str, Any] = {name: getattr(instance, name) for name in _COLUMNS}
    return {**columns, "state": instance.state.value, "record": json.dumps(record)}


def read_instance(row: Row) -> tuple[Instance, str | None]:
    """The instance of a row, and what of it could not be read.

    An instance whose spec this version refuses comes without it: its process may still run. Raises UnreadableError.
    """
    record = _json(row["record"])
    problem = None
    try:
        spec = None if record.get("spec") is None else _checked(ModelSpec, record["spec"])
    except UnreadableError as error:
        spec, problem = None, str(error)
    try:
        known = _known(Instance, record) | {
            "id": row["id"],
            "model": row["model"],
            "engine": row["engine"],
            "state": InstanceState(row["state"]),
            "created_at": row["created_at"],
            "changed_at": row["changed_at"],
            "devices": tuple(record["devices"]),
            "spec": spec,
            "progress": _part(Progress, record.get("progress")),
            "failure": _part(Failure, record.get("failure")),
            "rest": _part(Rest, record.get("rest")) or Rest(),
        }
        return Instance(**known), problem
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableError(_reason(error)) from None


def key_row(key: KeyRecord) -> dict[str, Any]:
    """The row of an API key."""
    former = None if key.former is None else {"digest": key.former.digest, "until": key.former.until}
    settings = key.settings.model_dump(mode="json")
    return {
        "id": key.id,
        "name": key.settings.name,
        "digest": key.digest,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
        "record": json.dumps({"settings": settings, "rotated_at": key.rotated_at, "former": former}),
    }


def read_key(row: Row) -> KeyRecord:
    """The API key of a row. Raises UnreadableError."""
    record = _json(row["record"])
    return KeyRecord(
        id=row["id"],
        settings=_checked(KeySettings, record.get("settings")),
        digest=row["digest"],
        created_at=row["created_at"],
        rotated_at=record.get("rotated_at"),
        revoked_at=row["revoked_at"],
        former=_part(Former, record.get("former")),
    )


def virtual_row(virtual: Virtual) -> dict[str, Any]:
    """The row of a virtual model."""
    return {
        "name": virtual.spec.name,
        "spec": json.dumps(virtual.spec.model_dump(mode="json")),
        "origin": virtual.origin,
        "created_at": virtual.created_at,
    }


def read_virtual(row: Row) -> Virtual:
    """The virtual model of a row. Raises UnreadableError."""
    spec = _checked(VirtualSpec, _json(row["spec"]))
    return Virtual(spec=spec, origin=row["origin"], created_at=row["created_at"])


def profile_row(profile: Profile) -> dict[str, Any]:
    """The row of a profile."""
    columns = {"model": text(profile.model), "settings": profile.settings, "device": text(profile.device)}
    record = {
        item.name: getattr(profile, item.name)
        for item in fields(Profile)
        if item.name not in columns and item.name != "measured_at"
    }
    record["phases"] = dict(profile.phases)
    return {"id": profile.id, **columns, "measured_at": profile.measured_at, "record": json.dumps(record)}


def read_profile(row: Row) -> Profile:
    """The profile of a row. Raises UnreadableError."""
    record = _known(Profile, _json(row["record"]))
    columns = {name: row[name] for name in ("model", "settings", "device", "measured_at")}
    try:
        return Profile(**record | columns | {"overheads": tuple(record.get("overheads", ()))})
    except TypeError as error:
        raise UnreadableError(_reason(error)) from None


def preset_row(record: PresetRecord) -> dict[str, Any]:
    """The row of a preset."""
    last = record.last_run
    return {
        "name": record.preset.name,
        "preset": json.dumps(record.preset.model_dump(mode="json")),
        "created_at": record.created_at,
        "changed_at": record.changed_at,
        "last_run": None
        if last is None
        else json.dumps({item.name: getattr(last, item.name) for item in fields(last)}),
        "scheduled_at": record.scheduled_at,
    }


def read_preset(row: Row) -> PresetRecord:
    """The preset of a row. Raises UnreadableError."""
    preset = _checked(Preset, _json(row["preset"]))
    last = None if row["last_run"] is None else _part(LastRun, _json(row["last_run"]))
    return PresetRecord(preset, row["created_at"], row["changed_at"], last, row["scheduled_at"])


def move_row(move: Move) -> dict[str, Any]:
    """The row of a move."""
    legs = [{item.name: getattr(leg, item.name) for item in fields(Leg)} for leg in move.legs]
    rest = ("changes", "stop_first", "drain", "cancelling", "ended_at", "message")
    record = {"legs": legs, **{name: getattr(move, name) for name in rest}}
    return {
        "id": move.id,
        "model": move.model,
        "state": move.state,
        "created_at": move.created_at,
        "record": json.dumps(record),
    }


def read_move(row: Row) -> Move:
    """The move of a row. Raises UnreadableError."""
    record = _json(row["record"])
    columns = {name: row[name] for name in ("id", "model", "state", "created_at")}
    try:
        legs = tuple(_leg(leg) for leg in record.pop("legs"))
        return Move(**_known(Move, record) | columns | {"legs": legs})
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableError(_reason(error)) from None


def _leg(data: dict[str, Any]) -> Leg:
    known = _known(Leg, data)
    places = {name: tuple(known[name]) for name in ("was_on", "devices")}
    return Leg(**known | places | {"step": Step(known["step"])})


def user_row(user: User) -> dict[str, Any]:
    """The row of a user."""
    kept = user.password
    cost = {item.name: getattr(kept.cost, item.name) for item in fields(Cost)}
    return {
        "name": text(user.name),
        "role": user.role,
        "created_at": user.created_at,
        "changed_at": user.changed_at,
        "password": json.dumps({"scheme": "scrypt", "salt": kept.salt, "digest": kept.digest, **cost}),
    }


def read_user(row: Row) -> User:
    """The user of a row. Raises UnreadableError, which names no hash."""
    record = _json(row["password"])
    if record.get("scheme") != "scrypt":
        raise UnreadableError("its password is kept in a way that this version does not know")
    try:
        salt, digest = bytes.fromhex(record["salt"]), bytes.fromhex(record["digest"])
        kept = PasswordHash(salt.hex(), digest.hex(), Cost(record["n"], record["r"], record["p"]))
        return User(row["name"], check_role(row["role"]), kept, row["created_at"], row["changed_at"])
    except ShoalError as error:
        raise UnreadableError(error.message) from None
    except (KeyError, TypeError, ValueError):
        raise UnreadableError("what is kept of its password is broken") from None


def session_row(session: Session) -> dict[str, Any]:
    """The row of a session."""
    return {item.name: getattr(session, item.name) for item in fields(Session)}


def read_session(row: Row) -> Session:
    """The session of a row."""
    return Session(**_known(Session, row))


def usage_row(item: Usage) -> dict[str, Any]:
    """The row of what was used."""
    return {
        "day": text(item.day)[:10],
        "key": text(item.key),
        "model": text(item.model),
        "requests": _count(item.requests),
        "prompt_tokens": _count(item.prompt_tokens),
        "completion_tokens": _count(item.completion_tokens),
        "last_used": item.last_used,
    }


def load_row(load: LoadRecord) -> dict[str, Any]:
    """The row of a load."""
    return {
        "model": text(load.model),
        "instance": text(load.instance),
        "engine": text(load.engine),
        "environment": text(load.environment),
        "version": text(load.version),
        "devices": json.dumps(load.devices),
        "started_at": load.started_at,
        "seconds": load.seconds,
        "outcome": text(load.outcome),
        "phases": json.dumps(dict(load.phases)),
        "memory": json.dumps(dict(load.memory)),
    }


def read_load(row: Row) -> LoadRecord:
    """The load of a row. Raises UnreadableError."""
    parsed = {
        "devices": tuple(_json(row["devices"], list)),
        "phases": _json(row["phases"]),
        "memory": _json(row["memory"]),
    }
    return LoadRecord(**(_known(LoadRecord, row) | parsed))


def event_row(event: Event) -> dict[str, Any]:
    """The row of an event; the database gives it its id."""
    return {
        "at": event.at,
        "level": text(event.level),
        "kind": text(event.kind),
        "model": None if event.model is None else text(event.model),
        "instance": None if event.instance is None else text(event.instance),
        "message": text(event.message),
        "seconds": event.seconds,
    }


def read_event(row: Row) -> Event:
    """The event of a row."""
    return Event(**_known(Event, row))


def _checked(kind: type[S], data: Any) -> S:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UnreadableError(explain(error, kind)) from None


def _json(text: str, kind: type = dict) -> Any:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UnreadableError(f"its JSON is broken: {error}") from None
    if not isinstance(data, kind):
        raise UnreadableError("its JSON has the wrong shape")
    return data


def _known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `kind`'s fields; others are another version's and left out."""
    return {item.name: data[item.name] for item in fields(kind) if item.name in data}


def _part(kind: type[Any], data: Any) -> Any:
    """A nested record; None if it lacks a field that this version needs: it only informs."""
    if not isinstance(data, dict):
        return None
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    return kind(**_known(kind, data)) if required <= set(data) else None


def _count(value: int) -> int:
    """A number that every database takes and can add up: a report that is refused would come again for ever."""
    return min(max(0, value), 2**40)


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def text(value: str) -> str:
    """Text that every database takes: an engine's output may hold NUL, and surrogates of bytes that are not UTF-8."""
    return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
