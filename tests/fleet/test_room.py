"""What one more instance could have of a device, with readings that are late and processes that hold host memory."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.fleet import facts
from shoal.fleet.memory import Terms
from shoal.fleet.room import Wants
from shoal.fleet.state import Device
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, books, gpu
from tests.fleet.residing import Fleet

HOST = Device("host", "host", "memory", 64 * GIB, 4 * GIB)


def room(world: World, device: str) -> float:
    """GiB that one more instance could have."""
    return world.manager._life._room.now()[device] / GIB


def begun(world: World, kinds: tuple[str, ...]) -> str:
    """A model of 20 GiB whose engine starts."""
    world.add()
    world.load()
    world.prepare(20 * GIB, kinds)
    world.spawned(world.only().id)
    return world.only().id


def test_what_an_engine_on_a_gpu_holds_of_the_host_is_not_of_its_gpu() -> None:
    world = World(gpu(0), HOST)
    id = begun(world, ("cuda",))
    world.effects.clock += 1
    world.tell(facts.DevicesRead((gpu(0), HOST), {id: 18 * GIB}))  # with a copy of its weights, say
    assert room(world, "cuda:0") == 60
    world.healthy(id)
    assert room(world, "cuda:0") == 60, "no reading shows yet what it took"


def test_what_an_engine_on_the_host_has_taken_is_in_the_reading() -> None:
    world = World(HOST)
    id = begun(world, ("host",))
    world.effects.clock += 1
    world.tell(facts.DevicesRead((Device("host", "host", "memory", 64 * GIB, 12 * GIB),), {id: 8 * GIB}))
    assert room(world, "host") == 64 - 12 - 12


@pytest.mark.parametrize("late", [True, False])
def test_a_reading_that_began_before_somebody_came_does_not_show_it(late: bool) -> None:
    world = World(gpu(0))
    id = begun(world, ("cuda",))
    world.effects.clock += 5
    world.healthy(id)
    assert world.get(id).state is S.READY
    world.effects.clock += 1
    free = 80 if late else 60
    world.tell(facts.DevicesRead((gpu(0, free * GIB),), {}, world.effects.clock - (2 if late else 0.5)))
    assert room(world, "cuda:0") == 60


def test_what_one_keeps_that_fell_asleep_before_a_reading_showed_it_counts() -> None:
    world = World(gpu(0))
    id = begun(world, ("cuda",))
    world.healthy(id)
    world.sleep(force=True)
    world.tell(facts.Weighed(id, 20 * GIB, 0, "text: x"))
    world.tell(facts.Asleep(id, 18 * GIB, 0))
    assert world.get(id).state is S.SLEEPING
    assert room(world, "cuda:0") == 78
    world.effects.clock += 1
    world.tell(facts.DevicesRead((gpu(0, 78 * GIB),), {}))
    assert room(world, "cuda:0") == 78


def test_weights_do_not_come_into_what_no_kv_cache_may_lease() -> None:
    world = Fleet(80)
    world.elastic = True
    a = world.come("a", 40)
    world.tell(facts.BooksRead(books(world, {a: Terms()}, headroom=4 * GIB)))
    assert room(world, "cuda:0") == 36
    world.add("b")
    world.wanted("b")
    world.after(100)
    world.files(38)
    assert world.get(a).retires, "beside b it would have no KV cache, nor would b"
    world.falls_asleep(a, 40)
    b = world.start("b", 38)
    assert world.manager._life._room.short_of(world.get(a)) == "it needs 40.0 GiB on cuda:0, which has 38.0 GiB free"
    world.wanted("a")
    world.after(100)
    assert world.get(b).retires


def test_who_fits_only_alone_comes_once_the_others_have_left_and_goes_for_them_again() -> None:
    world = Fleet(80)
    world.elastic = True
    a = world.come("a", 40)
    world.tell(facts.BooksRead(books(world, {a: Terms()}, headroom=4 * GIB)))
    world.after(100)
    world.add("b")
    world.wanted("b")
    world.files(78)
    assert world.get(a).retires
    world.falls_asleep(a, 40)
    b = world.start("b", 78)
    world.after(100)
    assert (world.get(b).state, world.get(a).state) == (S.READY, S.SLEEPING), "nobody has to go for what stays free"
    world.wanted("a")
    world.after(100)
    assert world.get(b).retires
    world.falls_asleep(b, 78)
    assert world.get(a).state is S.WAKING
    world.wakes(a)
    world.wanted("b")
    world.after(100)
    assert world.get(a).retires
    world.falls_asleep(a, 40)
    assert world.get(b).state is S.WAKING


def test_a_large_model_that_sleeps_lets_nobody_come_into_what_stays_free() -> None:
    world = Fleet(80)
    world.elastic = True
    big = world.come("big", 79)
    world.tell(facts.BooksRead(books(world, {big: Terms()}, headroom=4 * GIB)))
    world.after(100)
    world.add("a")
    world.wanted("a")
    world.files(40)
    world.falls_asleep(big, 79)
    a = world.start("a", 40)
    world.after(100)
    world.add("c")
    world.wanted("c")
    world.files(39)
    assert world.get(a).retires


def test_who_does_not_fit_beside_a_pinned_model_is_refused_once() -> None:
    world = Fleet(80)
    world.elastic = True
    p = world.come("p", 40, pin=True)
    world.tell(facts.BooksRead(books(world, {p: Terms()}, headroom=4 * GIB)))
    world.after(100)
    world.add("b")
    world.wanted("b")
    world.files(38)
    for _ in range(5):
        world.read()
        world.after(100)
    assert world.state("b") == "failed"
    assert "b needs 38.0 GiB on cuda:0; cuda:0 has 80.0 GiB, of which 40.0 GiB are pinned and 4.0 GiB stay free" in (
        world.only("b").reason
    )
    assert not world.said("could fit now")


def test_who_fits_alone_can_be_moved_there() -> None:
    world = Fleet(80)
    world.elastic = True
    a, c = world.come("a", 40), world.come("c", 20)
    world.tell(facts.BooksRead(books(world, {a: Terms(), c: Terms()}, headroom=4 * GIB)))
    residing = world.manager._life.residing
    assert residing.why_never("big", Wants(("cuda:0",), 1, 78 * GIB), stays=(), goes=()) is None
    assert residing.why_never("big", Wants(("cuda:0",), 1, 81 * GIB), stays=(), goes=()) is not None
    assert residing.why_never("big", Wants(("cuda:0",), 1, 37 * GIB), stays=(a,), goes=()) is not None


@pytest.mark.parametrize("settings", [{"elastic": "off"}, {"kv_cache_memory": GIB}])
def test_where_no_kv_cache_grows_nothing_is_kept(settings: dict[str, Any]) -> None:
    world = Fleet(80)
    a = world.come("a", 40, **settings)
    world.tell(facts.BooksRead(books(world, {a: Terms()}, headroom=4 * GIB)))
    world.add("b", **settings)
    world.wanted("b")
    assert room(world, "cuda:0") == 40
