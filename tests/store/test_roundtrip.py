"""What is put into rows and databases comes back as it was."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.fleet.keys import KeyRecord
from shoal.fleet.moves import Move
from shoal.fleet.presets import PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.state import Instance, Model
from shoal.fleet.virtual import Virtual
from shoal.store import Saved, codec
from shoal.store.connect import find_target
from shoal.store.database import Database
from shoal.store.pending import Batch
from shoal.store.tables import api_keys, profiles

from . import records


@settings(deadline=None)
@given(records.models)
def test_a_model_survives_its_row(model: Model) -> None:
    assert codec.read_model(codec.model_row(model)) == model


@settings(deadline=None)
@given(records.instances)
def test_an_instance_survives_its_row(instance: Instance) -> None:
    assert codec.read_instance(codec.instance_row(instance)) == (instance, None)


@settings(deadline=None)
@given(records.loads)
def test_a_load_survives_its_row(load: LoadRecord) -> None:
    assert codec.read_load(codec.load_row(load)) == load


@settings(deadline=None)
@given(records.keys)
def test_a_key_survives_its_row(key: KeyRecord) -> None:
    row = codec.key_row(key)
    assert codec.read_key(row) == key
    assert set(row) == set(api_keys.c.keys())


@settings(deadline=None)
@given(records.virtuals)
def test_a_virtual_model_survives_its_row(virtual: Virtual) -> None:
    assert codec.read_virtual(codec.virtual_row(virtual)) == virtual


@settings(deadline=None)
@given(records.profiles)
def test_a_profile_survives_its_row(profile: Profile) -> None:
    row = codec.profile_row(profile)
    assert codec.read_profile(row) == profile
    assert set(row) == set(profiles.c.keys())


def _in_memory() -> Database:
    database = Database(find_target("sqlite://", Path("unused")), history=10_000, events_kept=10_000, usage_kept=400)
    assert database.open() is None
    return database


def _check_database(
    database: Database,
    models: list[Model],
    instances: list[Instance],
    keys: list[KeyRecord],
    virtuals: list[Virtual],
    events: list[Event],
    loads: list[LoadRecord],
    profiles: list[Profile],
    presets: list[PresetRecord],
    moves: list[Move],
) -> None:
    batch = Batch(events=events, loads=loads)
    batch.records.update({("profile", profile.id): profile for profile in profiles})
    batch.records.update({("preset", record.preset.name): record for record in presets})
    batch.records.update({("move", move.id): move for move in moves})
    batch.records.update({("key", key.id): key for key in keys})
    batch.records.update({("virtual", virtual.spec.name): virtual for virtual in virtuals})
    batch.records.update({("model", model.spec.name): model for model in models})
    batch.records.update({("instance", instance.id): instance for instance in instances})
    before = len(database.events(10_000, None, None))
    assert database.write(batch) == []
    saved = database.load()
    assert saved.problems == []
    assert {model.spec.name: model for model in saved.models} == {m.spec.name: m for m in models}
    assert {instance.id: instance for instance in saved.instances} == {i.id: i for i in instances}
    assert {key.id: key for key in saved.keys} == {key.id: key for key in keys}
    assert {virtual.spec.name: virtual for virtual in saved.virtual} == {v.spec.name: v for v in virtuals}
    assert {profile.id: profile for profile in saved.profiles} == {p.id: p for p in profiles}
    assert {r.preset.name: r for r in saved.presets} == {r.preset.name: r for r in presets}
    assert {move.id: move for move in saved.moves} == {move.id: move for move in moves}
    assert not saved.keys_lost
    assert database.events(10_000, None, None)[before:] == events
    assert database.loads(len(loads), None) == loads
    gone = Batch(records=dict.fromkeys(batch.records))
    assert database.write(gone) == []
    assert database.load() == Saved()


_few = settings(max_examples=40, deadline=None)
_lists = (
    st.lists(records.models, max_size=3),
    st.lists(records.instances, max_size=3),
    st.lists(records.keys, max_size=3),
    st.lists(records.virtuals, max_size=3),
    st.lists(records.events, max_size=3),
    st.lists(records.loads, max_size=3),
    st.lists(records.profiles, max_size=3),
    st.lists(records.presets, max_size=3),
    st.lists(records.moves, max_size=3),
)


def test_sqlite_gives_back_what_it_got() -> None:
    database = _in_memory()

    @_few
    @given(*_lists)
    def check(
        m: list[Model],
        i: list[Instance],
        k: list[KeyRecord],
        v: list[Virtual],
        e: list[Event],
        lo: list[LoadRecord],
        p: list[Profile],
        pr: list[PresetRecord],
        mo: list[Move],
    ) -> None:
        _check_database(database, m, i, k, v, e, lo, p, pr, mo)

    check()
    database.close()


def test_postgresql_gives_back_what_it_got(postgres: str) -> None:
    database = Database(find_target(postgres, Path("unused")), history=10_000, events_kept=10_000, usage_kept=400)
    assert database.open() is None

    @_few
    @given(*_lists)
    def check(
        m: list[Model],
        i: list[Instance],
        k: list[KeyRecord],
        v: list[Virtual],
        e: list[Event],
        lo: list[LoadRecord],
        p: list[Profile],
        pr: list[PresetRecord],
        mo: list[Move],
    ) -> None:
        _check_database(database, m, i, k, v, e, lo, p, pr, mo)

    check()
    database.close()
