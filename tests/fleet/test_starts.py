"""Profiles out of starts: from readings of devices and the broker's books to what the next start is said to need."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from shoal.engines.base import EngineMetrics
from shoal.fleet import facts
from shoal.fleet.memory import Terms
from shoal.fleet.profiles import Profile, settings_hash
from shoal.fleet.starts import HOST_READING, PATIENCE
from shoal.fleet.state import Device
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, books, gpu

HOST = Device("host", "host", "memory", 64 * GIB, 4 * GIB)
TOKEN = EngineMetrics(kv_token_bytes=131072.0)


def begin(world: World, name: str = "m", *, leased: bool = True, **settings: object) -> str:
    """Add and load a model until its engine runs; it needs 20 GiB, of which 15 are weights and 1 is KV cache."""
    world.add(name, **settings)
    world.load(name)
    return begin_again(world, name, leased=leased)


def begin_again(world: World, name: str = "m", *, leased: bool = True) -> str:
    waiting, world.effects.prepared = world.effects.prepared, []
    for one in waiting:
        world.tell(facts.Prepared(one, 20 * GIB, ("cuda", "host"), weights=15 * GIB, kv=GIB))
    id = world.only(name).id
    world.tell(facts.Spawned(id, "unix:/x", "env", "0.32.0", elastic=leased))
    return id


def read(world: World, *used: int, memory: dict[str, int] | None = None) -> None:
    """The devices, with so many GiB of each in use."""
    devices = tuple(
        dataclasses.replace(device, memory_used=gib * GIB)
        for device, gib in zip(world.manager.fleet.devices, used, strict=True)
    )
    world.tell(facts.DevicesRead(devices, memory or {}))


def lease(world: World, id: str, backed: int = 2 * GIB) -> None:
    world.tell(facts.BooksRead(books(world, {id: Terms()}, backed=backed, used=backed)))


def only(world: World) -> Profile:
    (found,) = world.effects.profiles.values()
    assert world.manager.fleet.profiles == world.effects.profiles
    return found


def test_a_start_on_a_gpu_shows_overhead_times_and_what_a_token_takes() -> None:
    world = World(gpu(0, 70 * GIB))  # 10 GiB are somebody else's
    id = begin(world)
    world.effects.clock += 21.0
    lease(world, id)
    world.healthy(id)
    world.tell(facts.Measured(id, TOKEN))
    assert not world.effects.profiles, "the devices were not read since"
    read(world, 10 + 15 + 3 + 2)
    found = only(world)
    assert (found.model, found.device, found.version, found.loads) == ("m", "GPU", "0.32.0", 1)
    assert (found.weights, found.overhead, found.kv_token) == (15 * GIB, 3 * GIB, 131072.0)
    assert (found.load_seconds, found.phases) == (21.0, {"starting": 1.0})
    read(world, 60)
    assert only(world) == found, "one look at each start"


def test_the_next_start_needs_what_was_measured() -> None:
    world = World(gpu(0))
    id = begin(world)
    lease(world, id)
    world.healthy(id)
    world.tell(facts.Measured(id, TOKEN))
    read(world, 15 + 5 + 2)
    world.unload(force=True)
    world.exit(id)
    world.tell(facts.BooksRead({}))
    read(world, 0)
    world.load()
    again = begin_again(world)
    assert world.effects.held[again] == 21 * GIB, "15 of weights, 5 of overhead and 1 of KV cache; the estimate was 20"


def test_a_measurement_may_refuse_what_the_estimate_would_have_let_in() -> None:
    world = World(gpu(0, 20 * GIB))
    world.add()
    spec = world.manager.fleet.models["m"].spec
    known = Profile("m", settings_hash(spec), "GPU", 15 * GIB, 1.0, overheads=(5 * GIB,))
    world.manager.fleet.profiles[known.id] = known
    world.load()
    (id,) = world.effects.prepared
    world.tell(facts.Prepared(id, 20 * GIB, ("cuda",), weights=15 * GIB, kv=GIB))
    world.after(5)
    failure = world.get(id).failure
    assert failure is not None
    assert "m needs 21.0 GiB on cuda:0; cuda:0 has 80.0 GiB, of which 60.0 GiB are in other use" in failure.message


def test_an_engine_that_says_nothing_of_tokens_is_waited_for_and_then_not() -> None:
    world = World(gpu(0))
    id = begin(world)
    lease(world, id)
    world.healthy(id)
    read(world, 20)
    assert not world.effects.profiles
    world.effects.clock += PATIENCE
    read(world, 70)
    assert (only(world).overhead, only(world).kv_token) == (3 * GIB, None), "as it was read at once"


@pytest.mark.parametrize("sized", [False, True])
def test_a_cache_of_fixed_size_is_told_apart_only_where_its_size_is_given(sized: bool) -> None:
    world = World(gpu(0))
    settings: dict[str, Any] = {"kv_cache_memory": "2GiB"} if sized else {"elastic": "off"}
    id = begin(world, leased=False, **settings)
    world.healthy(id)
    world.tell(facts.Measured(id, TOKEN))
    read(world, 20)
    assert only(world).overhead == (3 * GIB if sized else None)
    assert only(world).load_seconds == 0.0, "the rest is kept all the same"


def test_what_others_did_meanwhile_is_not_taken_for_its_own() -> None:
    world = World(gpu(0))
    world.ready("old", needs=GIB)
    read(world, 4)
    world.effects.clock += 1
    id = begin(world)
    world.effects.clock += 1
    world.unload("old", force=True)
    lease(world, id)
    world.healthy(id)
    world.tell(facts.Measured(id, TOKEN))
    read(world, 20)
    assert only(world).overhead is None


def test_on_the_host_processes_are_read_after_a_while() -> None:
    world = World(HOST)
    id = begin(world)
    lease(world, id)
    world.healthy(id)
    world.tell(facts.Measured(id, TOKEN))
    read(world, 30, memory={id: 9 * GIB})
    assert not world.effects.profiles, "that may have been read during the start"
    world.effects.clock += HOST_READING
    read(world, 30, memory={id: 19 * GIB})
    assert (only(world).device, only(world).overhead) == ("host", 2 * GIB), "less 15 of weights and 2 of KV cache"


def test_two_devices_count_by_the_fuller_one() -> None:
    world = World(gpu(0), gpu(1))
    id = begin(world, tensor_parallel=2)
    lease(world, id)
    world.healthy(id)
    world.tell(facts.Measured(id, TOKEN))
    read(world, 19, 21)
    assert only(world).overhead == 4 * GIB


def test_one_that_ends_or_was_found_running_shows_nothing() -> None:
    world = World(gpu(0))
    id = begin(world)
    world.healthy(id)
    world.exit(id)
    read(world, 20)
    assert world.get(id).state is S.QUEUED, "it is started again"
    adopted = World(gpu(0))
    other = begin(adopted)
    starting = adopted.get(other)
    fresh = World(gpu(0))
    fresh.manager.handle(lambda: fresh.manager.recover([], [starting], {other}, []))
    fresh.healthy(other)
    fresh.tell(facts.Measured(other, TOKEN))
    read(fresh, 20)
    assert not world.effects.profiles
    assert not fresh.effects.profiles, "nobody saw what was there before"


def test_weights_that_the_files_did_not_tell_are_what_the_engine_said_that_it_loaded() -> None:
    world = World(gpu(0, 70 * GIB))
    world.add("m")
    world.load("m")
    world.effects.prepared.clear()
    id = world.only().id
    world.tell(facts.Prepared(id, None, ("cuda",), weights=None, kv=GIB))
    world.tell(facts.Spawned(id, "unix:/x", "env", "0.26.0", elastic=True))
    world.tell(facts.Healthy(id, 42, {"starting": 1.0}, 15 * GIB))
    lease(world, id)
    world.tell(facts.Measured(id, TOKEN))
    read(world, 29)  # 10 were there, 2 are KV cache
    profile = only(world)
    assert (profile.weights, profile.overhead) == (15 * GIB, 2 * GIB)
