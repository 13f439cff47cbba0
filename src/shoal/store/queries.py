"""Every statement that the store runs, over an open transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Table, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from shoal.fleet.keys import KeyRecord
from shoal.fleet.moves import Move
from shoal.fleet.presets import PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.sessions import Session
from shoal.fleet.state import Instance, InstanceState, Model
from shoal.fleet.users import User
from shoal.fleet.virtual import Virtual
from shoal.store import codec
from shoal.store.pending import Batch
from shoal.store.tables import (
    admin_sessions,
    admin_users,
    api_keys,
    events,
    instances,
    loads,
    models,
    moves,
    presets,
    profiles,
    virtual_models,
)

R = TypeVar("R")

LOADS_PER_MODEL = 50
LOADS_KEPT = 5_000
PROFILES_KEPT = 5_000

_TABLES = {
    "model": models,
    "instance": instances,
    "key": api_keys,
    "virtual": virtual_models,
    "profile": profiles,
    "preset": presets,
    "move": moves,
    "user": admin_users,
    "session": admin_sessions,
}
_ENDED = [state.value for state in InstanceState if state.ended]


def write(connection: Connection, batch: Batch) -> None:
    """Write everything of a batch. Raises ValueError, TypeError or a database error; nothing is half done then,
    if the transaction or savepoint around it is rolled back."""
    changes = batch.records.items()
    _upsert(connection, models, [codec.model_row(c) for _, c in changes if isinstance(c, Model)])
    _upsert(connection, instances, [codec.instance_row(c) for _, c in changes if isinstance(c, Instance)])
    _upsert(connection, api_keys, [codec.key_row(c) for _, c in changes if isinstance(c, KeyRecord)])
    _upsert(connection, virtual_models, [codec.virtual_row(c) for _, c in changes if isinstance(c, Virtual)])
    _upsert(connection, profiles, [codec.profile_row(c) for _, c in changes if isinstance(c, Profile)])
    _upsert(connection, presets, [codec.preset_row(c) for _, c in changes if isinstance(c, PresetRecord)])
    _upsert(connection, moves, [codec.move_row(c) for _, c in changes if isinstance(c, Move)])
    _upsert(connection, admin_users, [codec.user_row(c) for _, c in changes if isinstance(c, User)])
    _upsert(connection, admin_sessions, [codec.session_row(c) for _, c in changes if isinstance(c, Session)])
    for kind, table in _TABLES.items():
        gone = [name for (what, name), change in changes if what == kind and change is None]
        if gone:
            connection.execute(delete(table).where(_key(table).in_(gone)))
    if batch.loads:
        connection.execute(insert(loads), [codec.load_row(load) for load in batch.loads])
    if batch.events:
        connection.execute(insert(events), [codec.event_row(event) for event in batch.events])


def read_models(connection: Connection) -> tuple[list[Model], list[str]]:
    """Models by name, and a sentence for each that could not be read; those stay stored."""
    stays = "It stays in the database; add it again with settings of this version."
    query = select(models).order_by(models.c.name)
    return _each(connection, query, codec.read_model, "The stored model {name} was left out: {error}. " + stays)


def read_instances(connection: Connection) -> tuple[list[Instance], list[str]]:
    """Instances by age, and a sentence for each that could not be read in full; those stay stored."""
    found, problems = [], []
    for row in _rows(connection, select(instances).order_by(instances.c.created_at, instances.c.id)):
        try:
            instance, problem = codec.read_instance(row)
        except codec.UnreadableError as error:
            problems.append(f"The stored instance {row['id']} was left out: {error}.")
            continue
        found.append(instance)
        if problem is not None:
            problems.append(f"The stored settings of instance {row['id']} were left out: {problem}.")
    return found, problems


def read_keys(connection: Connection) -> tuple[list[KeyRecord], list[str]]:
    """API keys by age, and a sentence for each that could not be read; those stay stored, and open nothing."""
    query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
    return _each(connection, query, codec.read_key, "The stored API key {name} ({id}) was left out: {error}.")


def read_virtual(connection: Connection) -> tuple[list[Virtual], list[str]]:
    """Virtual models by name, and a sentence for each that could not be read; those stay stored."""
    query = select(virtual_models).order_by(virtual_models.c.name)
    return _each(connection, query, codec.read_virtual, "The stored virtual model {name} was left out: {error}.")


def read_users(connection: Connection) -> tuple[list[User], list[str]]:
    """Users by name, and a sentence for each that could not be read; those stay stored, and cannot sign in."""
    query = select(admin_users).order_by(admin_users.c.name)
    return _each(connection, query, codec.read_user, "The stored user {name} was left out: {error}.")


def read_sessions(connection: Connection) -> list[Session]:
    """Sessions, the oldest first."""
    query = select(admin_sessions).order_by(admin_sessions.c.created_at, admin_sessions.c.id)
    return [codec.read_session(row) for row in _rows(connection, query)]


def read_profiles(connection: Connection) -> list[Profile]:
    """Profiles, the oldest first. Those that this version cannot read are skipped: the next load measures anew."""
    query = select(profiles).order_by(profiles.c.measured_at, profiles.c.id)
    return _each(connection, query, codec.read_profile, "")[0]


def read_presets(connection: Connection) -> tuple[list[PresetRecord], list[str]]:
    """Presets, and a clause for each that cannot be read."""
    query = select(presets).order_by(presets.c.name)
    return _each(connection, query, codec.read_preset, "the saved preset {name} was left out: {error}")


def read_moves(connection: Connection) -> tuple[list[Move], list[str]]:
    """Moves by age, and a clause for each that cannot be read."""
    query = select(moves).order_by(moves.c.created_at, moves.c.id)
    return _each(connection, query, codec.read_move, "the move {id} of {model} was left out: {error}")


def read_events(
    connection: Connection,
    limit: int,
    before: int | None,
    model: str | None,
    kinds: Collection[str] = (),
    since: float | None = None,
) -> list[Event]:
    """The newest `limit` events with an id below `before`, of one of `kinds` and from `since` on, as far as these are
    given; oldest of them first."""
    query = _newest(events, limit, model)
    if before is not None:
        query = query.where(events.c.id < before)
    if kinds:
        query = query.where(events.c.kind.in_(kinds))
    if since is not None:
        query = query.where(events.c.at >= since)
    return [codec.read_event(row) for row in _rows(connection, query)][::-1]


def read_loads(connection: Connection, limit: int, model: str | None) -> list[LoadRecord]:
    """The newest `limit` loads, oldest of them first. Those that this version cannot read are skipped."""
    found = []
    for row in _rows(connection, _newest(loads, limit, model)):
        try:
            found.append(codec.read_load(row))
        except codec.UnreadableError:
            continue  # history only teaches estimates; there will be more
    return found[::-1]


def prune_instances(connection: Connection, kept: int) -> None:
    """Delete ended instances but the `kept` that ended last."""
    ended = instances.c.state.in_(_ENDED)
    newest = select(instances.c.id).where(ended).order_by(instances.c.changed_at.desc(), instances.c.id.desc())
    connection.execute(delete(instances).where(ended, instances.c.id.not_in(newest.limit(kept))))


def prune_profiles(connection: Connection) -> None:
    """Delete profiles but the newest: settings that are changed leave theirs behind."""
    newest = select(profiles.c.id).order_by(profiles.c.measured_at.desc(), profiles.c.id.desc()).limit(PROFILES_KEPT)
    connection.execute(delete(profiles).where(profiles.c.id.not_in(newest)))


def prune_loads(connection: Connection, names: Iterable[str]) -> None:
    """Delete the oldest loads: of each model in `names`, and of all models together."""
    for name in names:
        _prune_by_id(connection, loads, LOADS_PER_MODEL, name)
    _prune_by_id(connection, loads, LOADS_KEPT)


def prune_events(connection: Connection, kept: int) -> None:
    """Delete events but the newest `kept`."""
    _prune_by_id(connection, events, kept)


def _prune_by_id(connection: Connection, table: Table, kept: int, model: str | None = None) -> None:
    beyond = select(table.c.id).order_by(table.c.id.desc()).offset(kept).limit(1)
    doomed = delete(table)
    if model is not None:
        beyond = beyond.where(table.c.model == model)
        doomed = doomed.where(table.c.model == model)
    connection.execute(doomed.where(table.c.id <= beyond.scalar_subquery()))


def _newest(table: Table, limit: int, model: str | None) -> Select[Any]:
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    return query if model is None else query.where(table.c.model == model)


def _each(
    connection: Connection, query: Select[Any], read: Callable[[dict[str, Any]], R], left_out: str
) -> tuple[list[R], list[str]]:
    """What was read of each row, and for each that could not be what `left_out` says, with its columns and `error`."""
    found: list[R] = []
    problems: list[str] = []
    for row in _rows(connection, query):
        try:
            found.append(read(row))
        except codec.UnreadableError as error:
            problems.append(left_out.format(**(row | {"error": error})))
    return found, problems


def _rows(connection: Connection, query: Select[Any]) -> Iterator[dict[str, Any]]:
    for row in connection.execute(query).mappings():
        yield {str(name): value for name, value in row.items()}


def _upsert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    key = _key(table)
    changed = {column.name: column for column in statement.excluded if column.name != key.name}
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_=changed), rows)


def _key(table: Table) -> Any:
    (key,) = table.primary_key.columns
    return key
