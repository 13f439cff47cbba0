"""What a store finds that is opened anew, on both databases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text, update

from shoal.fleet.moves import Leg, Move
from shoal.fleet.presets import LastRun, Preset, PresetEntry, PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.state import InstanceState
from shoal.store import StoreError, queries
from shoal.store.connect import connect, find_target
from shoal.store.queries import LOADS_PER_MODEL
from shoal.store.tables import instances, models, moves, presets, profiles

from . import records
from .conftest import MakeStore


async def test_a_preset_is_found_again_and_one_of_another_version_is_named(
    make_store: MakeStore, url: str | None
) -> None:
    kept = PresetRecord(Preset(name="day", models=(PresetEntry(spec=records.model().spec),)), 1.0, 2.0)
    odd = PresetRecord(Preset(name="odd"), 1.0, 2.0, LastRun("running", 3.0))
    store = make_store(url)
    await store.open()
    store.save_preset(kept)
    store.save_preset(odd)
    store.save_preset(PresetRecord(Preset(name="gone"), 1.0, 1.0))
    store.delete_preset("gone")
    await store.close()
    again = make_store(url)
    await again.open()
    assert (await again.load()).presets == [kept, odd]
    await again.close()
    engine = connect(find_target(url, Path(store._path))).execution_options(shoal_write=True)
    with engine.begin() as connection:
        changed = update(presets).where(presets.c.name == "odd").values(preset='{"name": "odd", "colour": "blue"}')
        connection.execute(changed)
    engine.dispose()
    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert saved.presets == [kept]
    assert "preset odd was left out: colour" in saved.problems[0]
    assert saved.complete, "no engine hangs on it"
    await again.close()


async def test_a_move_that_cannot_be_read_is_named_and_holds_nothing_up(make_store: MakeStore, url: str | None) -> None:
    move = Move("move-1", "m", 1.0, (Leg("m-1", ("host",), ("cuda:0",)),), {"dtype": "float16"})
    store = make_store(url)
    await store.open()
    store.save_move(move)
    store.save_move(replace(move, id="move-2"))
    store.save_move(replace(move, id="move-3"))
    store.delete_move("move-3")
    await store.close()
    engine = connect(find_target(url, Path(store._path))).execution_options(shoal_write=True)
    with engine.begin() as connection:
        odd = '{"legs": [{"source": "m-1", "was_on": [], "devices": [], "step": "flying"}]}'
        connection.execute(update(moves).where(moves.c.id == "move-2").values(record=odd))
    engine.dispose()
    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert saved.moves == [move]
    assert "the move move-2 of m was left out" in saved.problems[0]
    assert saved.complete
    await again.close()


def _profile(model: str = "m", loads: int = 1, at: float = 1.0) -> Profile:
    return Profile(model, "0123456789abcdef", "NVIDIA H200", 2**34, at, loads, (2**31,), 131072.0, 20.0, {"x": 1.5})


async def test_a_restart_finds_what_was_saved(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    store.save_model(records.model("a", desired=2))
    store.save_model(records.model("gone"))
    store.save_instance(records.instance("i1"))
    store.save_instance(records.instance("i2", InstanceState.FAILED))
    store.add_event(records.event("first", model="a"))
    store.add_event(records.event("second", model="b"))
    store.add_load(records.load("a"))
    store.save_profile(_profile())
    store.save_profile(_profile(loads=2))
    store.delete_model("gone")
    assert store.unsaved == 8
    await store.close()
    assert store.unsaved == 0
    assert store.problem is None

    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert saved.models == [records.model("a", desired=2)]
    assert saved.instances == [records.instance("i1"), records.instance("i2", InstanceState.FAILED)]
    assert saved.profiles == [_profile(loads=2)]
    assert saved.problems == []
    assert [event.message for event in await again.events()] == ["first", "second"]
    assert [event.message for event in await again.events(model="a")] == ["first"]
    assert await again.loads("a") == [records.load("a")]
    assert await again.loads("b") == []
    await again.close()


async def test_events_by_kind_and_time(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    for n in range(6):
        store.add_event(records.event(str(n), at=float(n), kind="ab"[n % 2], model="m", seconds=n / 2 if n else None))
    for saved in (False, True):
        if saved:
            assert await store.flush(30)
        assert [e.message for e in await store.events(kinds=["b"])] == ["1", "3", "5"]
        assert [e.message for e in await store.events(kinds=["a", "b"], since=3.0)] == ["3", "4", "5"]
        assert [e.message for e in await store.events(1, kinds=["a"], since=1.0, model="m")] == ["4"]
        assert await store.events(kinds=["c"]) == []
        assert [e.seconds for e in await store.events(2)] == [2.0, 2.5]
    await store.close()


async def test_events_page_backwards(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    for n in range(10):
        store.add_event(records.event(str(n)))
    assert [event.message for event in await store.events(3)] == ["7", "8", "9"]  # saved or not
    assert await store.flush(30)
    page = await store.events(3)
    assert [event.message for event in page] == ["7", "8", "9"]
    assert page[0].id is not None
    assert [event.message for event in await store.events(100, before=page[0].id)] == [str(n) for n in range(7)]
    await store.close()


async def test_profiles_are_bounded_and_those_of_another_version_left_out(
    make_store: MakeStore, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "PROFILES_KEPT", 3)
    store = make_store(url)
    await store.open()
    for n in range(5):
        store.save_profile(_profile(str(n), at=float(n)))
    assert await store.flush(30)
    assert [profile.model for profile in (await store.load()).profiles] == ["2", "3", "4"]
    await store.close()
    engine = connect(find_target(url, Path(store._path))).execution_options(shoal_write=True)
    with engine.begin() as connection:
        connection.execute(update(profiles).where(profiles.c.model == "3").values(record='{"other": 1}'))
        connection.execute(update(profiles).where(profiles.c.model == "4").values(record="{"))
    engine.dispose()
    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert [profile.model for profile in saved.profiles] == ["2"]
    assert saved.problems == [], "the next load measures anew"
    assert saved.complete
    await again.close()


async def test_history_is_bounded(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url, history=3, events_kept=100)
    await store.open()
    for n in range(10):
        ended = InstanceState.STOPPED if n % 2 else InstanceState.FAILED
        store.save_instance(records.instance(f"old{n}", ended, changed_at=float(n)))
    store.save_instance(records.instance("alive", changed_at=0.5))
    for _ in range(2):
        for n in range(150):
            store.add_event(records.event(str(n)))
        assert await store.flush(60)
    for n in range(LOADS_PER_MODEL + 5):
        store.add_load(records.load(seconds=float(n)))
    store.add_load(records.load("other"))
    assert await store.flush(60)
    saved = await store.load()
    assert {instance.id for instance in saved.instances} == {"old7", "old8", "old9", "alive"}
    assert len(await store.events(1000)) == 100
    loads = await store.loads("m", 1000)
    assert [load.seconds for load in loads] == [float(n) for n in range(5, LOADS_PER_MODEL + 5)]
    assert len(await store.loads(None, 1000)) == LOADS_PER_MODEL + 1
    await store.close()


async def test_text_that_no_database_takes_is_kept_in_substance(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    store.add_event(records.event("a\0b \udcff c"))
    assert await store.flush(30)
    (event,) = await store.events()
    assert event.message == "a\N{REPLACEMENT CHARACTER}b ? c"
    await store.close()


async def test_a_record_that_cannot_be_stored_does_not_keep_back_the_others(
    make_store: MakeStore, url: str | None
) -> None:
    store = make_store(url)
    await store.open()
    store.save_instance(records.instance("bad", created_at=None))
    store.save_instance(records.instance("good"))
    store.add_event(records.event())
    assert not await store.flush(30)
    assert store.unsaved == 0
    assert store.dropped == 1
    assert "instance bad" in (store.problem or "")
    assert [instance.id for instance in (await store.load()).instances] == ["good"]
    assert len(await store.events()) == 1
    store.add_event(records.event())
    assert await store.flush(30)
    assert store.problem is None
    await store.close()


async def test_settings_of_another_version_are_left_out_but_kept(make_store: MakeStore, url: str | None) -> None:
    store = make_store(url)
    await store.open()
    store.save_model(records.model("fine"))
    store.save_model(records.model("odd"))
    store.save_model(records.model("broken"))
    spec = records.model().spec
    store.save_instance(replace(records.instance("runs"), spec=spec))
    store.save_instance(records.instance("strange"))
    await store.close()

    engine = connect(find_target(url, Path(store._path)))
    with engine.execution_options(shoal_write=True).begin() as connection:
        odd = {**spec.model_dump(mode="json"), "name": "odd", "sleep_level": 2}
        change = models.update().values(spec=json.dumps(odd)).where(models.c.name == "odd")
        connection.execute(change)
        connection.execute(models.update().values(spec="{").where(models.c.name == "broken"))
        record = {"devices": ["host"], "spec": odd, "reason": "old", "colour": "blue", "progress": {"phase": "x"}}
        runs = instances.update().values(record=json.dumps(record)).where(instances.c.id == "runs")
        connection.execute(runs)
        connection.execute(instances.update().values(state="levitating").where(instances.c.id == "strange"))
    engine.dispose()

    again = make_store(url)
    await again.open()
    saved = await again.load()
    assert [model.spec.name for model in saved.models] == ["fine"]
    assert saved.instances == [records.instance("runs", reason="old")]
    problems = "\n".join(saved.problems)
    assert len(saved.problems) == 4
    assert not saved.complete
    assert "odd was left out: sleep_level: there is no such setting" in problems
    assert "broken was left out" in problems
    assert "settings of instance runs were left out" in problems
    assert "instance strange was left out" in problems
    await again.close()
    engine = connect(find_target(url, Path(store._path)))
    with engine.begin() as connection:
        assert connection.scalars(select(models.c.name).order_by(models.c.name)).all() == ["broken", "fine", "odd"]
    engine.dispose()


async def test_a_shared_postgresql_database_with_a_foreign_table_is_refused(
    make_store: MakeStore, postgres: str
) -> None:
    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE models (id integer)"))
        connection.execute(text("INSERT INTO models VALUES (1)"))
    engine.dispose()
    store = make_store(postgres)
    with pytest.raises(StoreError, match="that Shoal did not make"):
        await store.open()
