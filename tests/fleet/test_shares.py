"""What the manager makes of the broker's books: shares that people see, change, and that placement counts on."""

from __future__ import annotations

import pytest

from shoal.errors import ConflictError, ShoalError
from shoal.fleet import facts
from shoal.fleet.memory import LEASE_PATIENCE, Terms
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Device
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, books, gpu, void


def elastic(world: World, name: str = "m", needs: int = GIB, **settings: object) -> str:
    """An instance that was started elastic and serves."""
    world.add(name, **settings)
    world.load(name)
    world.prepare(needs)
    id = world.only(name).id
    world.tell(facts.Spawned(id, f"unix:/run/{id}.sock", "simulated", "1", elastic=True))
    world.healthy(id)
    return id


def change(world: World, name: str = "m", **changes: object) -> None:
    world.manager.handle(
        lambda: void(world.manager.change_model(name, lambda old: ModelSpec(**{**old.model_dump(), **changes})))
    )


def test_room_is_held_back_from_the_start_until_it_serves() -> None:
    world = World(gpu(0))
    world.add()
    world.load()
    world.prepare(7 * GIB)
    id = world.only().id
    assert world.effects.held == {id: 7 * GIB}
    world.spawned(id)
    assert id in world.effects.held
    world.healthy(id)
    assert not world.effects.held


def test_leases_are_seen_by_instance_and_by_device() -> None:
    world = World(gpu(0), gpu(1))
    id = elastic(world, tensor_parallel=2, floor=GIB)
    world.effects.published.clear()
    world.tell(facts.BooksRead(books(world, {id: Terms(GIB)}, lease=5, backed=4, used=1, cached=2, need=7, waiting=3)))
    (told,) = [data for event, data in world.effects.published if event == "memory"]
    assert isinstance(told, dict)
    view = told["instances"][id]
    assert (view.mode, view.lease, view.backed, view.used, view.cached) == ("elastic", 10, 8, 2, 4)
    assert (view.missing, view.waiting, view.floor, view.priority) == (4, 3, GIB, 100)
    assert [(lease.device, lease.rank) for lease in view.leases] == [("cuda:0", 0), ("cuda:1", 1)]
    pools = [device.pool for device in world.manager.fleet.device_views()]
    assert [pool.cached for pool in pools if pool is not None] == [2, 2]
    world.effects.published.clear()
    world.tell(facts.BooksRead(None))
    assert world.manager.fleet.memory_view(world.get(id)).lease is None
    assert world.manager.fleet.device_views()[0].pool is None


def test_terms_reach_running_instances_and_what_they_start_with_next() -> None:
    world = World(gpu(0))
    id = elastic(world)
    world.tell(facts.BooksRead(books(world, {id: Terms()})))
    change(world, floor=GIB, ceiling=2 * GIB, priority=5)
    wanted = Terms(GIB, 2 * GIB, 5)
    assert world.effects.terms == [(id, wanted)]
    spec = world.get(id).spec
    assert spec is not None
    assert Terms.of(spec) == wanted
    assert not world.manager.fleet.instance_view(world.get(id)).outdated
    change(world, elastic="off", floor=0, ceiling=None)
    assert world.manager.fleet.instance_view(world.get(id)).outdated


def test_an_engine_that_comes_with_old_terms_is_told_the_new_ones_once() -> None:
    world = World(gpu(0))
    id = elastic(world)
    change(world, priority=5)
    assert world.effects.terms == [], "nobody leases anything yet"
    for _ in range(2):
        world.tell(facts.BooksRead(books(world, {id: Terms()})))
    assert world.effects.terms == [(id, Terms(priority=5))]
    world.tell(facts.TermsRefused(id, "the floors come to more than the budget"))
    assert "the floors come to more" in world.effects.events[-1].message


def test_what_a_change_of_terms_would_touch_is_known_before_it() -> None:
    world = World(gpu(0))
    id = elastic(world, priority=7)

    def make(old: ModelSpec) -> ModelSpec:
        return old.model_copy(update={"priority": 9})

    assert world.manager.terms_to_change("m", make) == {}, "no lease, nothing to ask the broker"
    world.tell(facts.BooksRead(books(world, {id: Terms(priority=7)})))
    assert world.manager.terms_to_change("m", make) == {id: (Terms(priority=7), Terms(priority=9))}
    with pytest.raises(ShoalError):
        world.manager.terms_to_change("other", make)
    world.manager.handle(lambda: void(world.manager.declare({"m": world.manager.fleet.models["m"].spec}, "file")))
    with pytest.raises(ConflictError, match="configuration file"):
        world.manager.terms_to_change("m", make)


def test_an_engine_that_never_leases_counts_as_fixed() -> None:
    world = World(gpu(0))
    id = elastic(world)
    world.tell(facts.BooksRead({}))
    world.tell(facts.DevicesRead((gpu(0),), {}))
    assert world.manager.fleet.memory_view(world.get(id)).mode == "elastic", "it may still be on its way"
    world.after(LEASE_PATIENCE + 1)
    for _ in range(2):
        world.tell(facts.DevicesRead((gpu(0),), {}))
    view = world.manager.fleet.memory_view(world.get(id))
    assert view.mode == "fixed"
    assert "log" in view.reason
    assert [event.kind for event in world.effects.events].count("fixed_memory") == 1
    world.exit(id)
    assert id not in world.manager.fleet.leaseless


def test_an_engine_whose_broker_is_away_for_a_moment_stays_elastic() -> None:
    world = World(gpu(0))
    id = elastic(world)
    world.tell(facts.BooksRead(books(world, {id: Terms()})))
    world.tell(facts.BooksRead(None))
    world.tell(facts.BooksRead({}))
    world.after(100)
    world.tell(facts.DevicesRead((gpu(0),), {}))
    assert world.manager.fleet.memory_view(world.get(id)).mode == "elastic"


def test_a_start_with_a_fixed_size_says_why() -> None:
    world = World(gpu(0))
    world.add()
    world.load()
    world.prepare()
    id = world.only().id
    world.tell(facts.Spawned(id, "unix:/x", "old", "0.23", fixed_because="this vLLM is too old"))
    view = world.manager.fleet.memory_view(world.get(id))
    assert (view.mode, view.reason) == ("fixed", "this vLLM is too old")
    assert "too old" in world.effects.events[-1].message


def test_what_is_only_cached_counts_as_room_and_floors_do_not() -> None:
    full = gpu(0, free=10 * GIB)
    world = World(gpu(0))
    id = elastic(world, "a")
    world.tell(facts.DevicesRead((full,), {}))
    world.tell(facts.BooksRead(books(world, {id: Terms()}, backed=60 * GIB, used=20 * GIB)))
    world.add("b")
    world.load("b")
    world.prepare(45 * GIB)
    assert world.only("b").state is S.STARTING, "40 GiB of the 60 come back when they are needed"
    world.unload("b", force=True)
    world.exit(world.manager.fleet.of_model("b")[0].id)
    for _ in range(3):
        world.after(1)
        world.tell(facts.DevicesRead((full,), {}))
    world.tell(facts.BooksRead(books(world, {id: Terms(floor=50 * GIB)}, backed=40 * GIB, used=20 * GIB)))
    world.load("b")
    world.prepare(GIB)
    assert world.only("b").state is S.QUEUED
    assert world.only("b").reason.startswith("waits for 1.0 GiB on cuda:0")


def test_a_pretended_device_holds_what_is_leased_on_it() -> None:
    device = Device("simulated:0", "simulated", "x", 10 * GIB, 0)
    world = World(device)
    world.add("a")
    world.load("a")
    world.prepare(GIB, ("simulated",))
    id = world.only("a").id
    world.tell(facts.BooksRead(books(world, {id: Terms()}, backed=3 * GIB)))
    world.tell(facts.DevicesRead((device,), {}))
    assert world.manager.fleet.devices[0].memory_used == 4 * GIB
