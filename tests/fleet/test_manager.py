"""The manager on fake effects: every path of an instance's life, without a process and without waiting."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import ConflictError, NotFoundError, ShoalError
from shoal.fleet import facts
from shoal.fleet.snapshot import ModelView
from shoal.fleet.state import Device, Exit, Failure
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu, spec, void


def test_a_load_goes_through_its_states_to_a_route() -> None:
    world = World()
    world.add()
    world.load()
    assert world.only().state is S.QUEUED
    world.prepare()
    instance = world.only()
    assert instance.state is S.STARTING
    assert instance.devices == ("host",)
    world.spawned(instance.id)
    assert world.targets() == []
    world.healthy(instance.id)
    assert world.only().state is S.READY
    (target,) = world.targets()
    assert target.address == f"unix:/run/{instance.id}.sock"
    assert world.effects.instances[instance.id] == world.only(), "what is known is saved"
    assert [load.outcome for load in world.effects.loads] == ["ready"]


def test_loading_twice_is_loading_once() -> None:
    world = World()
    world.add()
    assert world.manager.load("m").changed
    assert not world.manager.load("m").changed
    assert len(world.manager.fleet.instances) == 1


def test_an_unload_while_starting_leaves_nothing() -> None:
    world = World()
    world.add()
    world.load()
    world.prepare()
    id = world.only().id
    world.spawned(id)
    world.unload()
    assert world.effects.terminated == [id]
    world.healthy(id)  # too late
    assert world.get(id).state is S.STOPPING
    world.exit(id, Exit(signal=15))
    assert world.get(id).state is S.STOPPED
    assert not world.effects.alive
    assert not world.manager.unload("m").changed, "the second unload has nothing to do"


def test_an_unload_drains_first() -> None:
    world = World()
    id = world.ready()
    world.report({id: 2})
    world.unload()
    assert world.get(id).state is S.DRAINING
    assert world.targets() == []
    world.tell(facts.RelayReported(1, world.manager.fleet.relays[1]))
    assert world.get(id).state is S.DRAINING, "the relay still has the old table"
    world.report({id: 1})
    assert world.get(id).state is S.DRAINING
    world.report({})
    assert world.get(id).state is S.STOPPING
    assert world.effects.terminated == [id]


def test_draining_has_an_end() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.unload()
    world.report({id: 1})
    world.after(29)
    assert world.get(id).state is S.DRAINING
    world.after(2)
    assert world.get(id).state is S.STOPPING
    assert "1 running request(s) were ended" in world.get(id).reason


def test_a_forced_unload_does_not_wait_for_requests() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.unload(force=True)
    assert world.get(id).state is S.STOPPING


def test_a_crash_is_restarted_with_growing_delays_and_then_given_up() -> None:
    world = World()
    id = world.ready()
    for delay in (1, 2, 4):
        world.exit(id, Exit(signal=9))
        crashed = world.get(id)
        assert crashed.state is S.QUEUED
        assert crashed.restart_at == pytest.approx(world.effects.clock + delay)
        assert "killed by signal 9" in crashed.reason
        assert world.targets() == []
        world.after(delay - 0.5)
        assert world.get(id).state is S.QUEUED
        world.after(0.5)
        assert world.get(id).state is S.STARTING
        world.spawned(id)
        world.healthy(id)
    world.exit(id)
    assert world.get(id).state is S.FAILED
    failure = world.get(id).failure
    assert failure is not None
    assert failure.code == "engine_crashed"


def test_a_start_that_fails_is_not_repeated_and_can_be_retried_under_the_same_id() -> None:
    world = World()
    world.add()
    world.load()
    world.prepare()
    id = world.only().id
    world.spawned(id)
    world.exit(id)
    assert world.get(id).state is S.FAILED
    assert [load.outcome for load in world.effects.loads] == ["engine_crashed"]
    world.load()
    assert world.only().id == id
    assert world.only().state is S.QUEUED
    assert world.only().failure is None


def test_what_cannot_be_started_fails_with_its_reason() -> None:
    world = World()
    world.add()
    world.load()
    id = world.only().id
    world.tell(facts.Prepared(id, failure=Failure("source_not_found", "there is no folder /x")))
    assert world.only().state is S.FAILED
    assert world.only().reason == "there is no folder /x"
    assert "there is no folder /x" in world.effects.tables[-1].routes[0].detail


def test_too_little_memory_is_waited_for_while_another_model_may_give_way() -> None:
    small = Device("host", "host", "memory", 10 * GIB, 2 * GIB)
    world = World(small)
    id = world.ready("a", needs=6 * GIB)
    world.tell(facts.DevicesRead((Device("host", "host", "memory", 10 * GIB, 8 * GIB),), {}))
    world.add("b")
    world.load("b")
    world.prepare(6 * GIB)
    assert world.only("b").state is S.QUEUED
    assert world.only("b").reason == "waits for 6.0 GiB on host"
    world.unload("a")
    assert world.get(id).state is S.STOPPING
    assert world.only("b").reason == "waits for a to give its memory back"
    world.exit(id)
    assert world.only("b").state is S.QUEUED, "the devices were read before the memory came back"
    world.tell(facts.DevicesRead((small,), {}))
    assert world.only("b").state is S.STARTING


def test_a_hung_engine_is_killed_and_started_again() -> None:
    world = World()
    id = world.ready()
    world.tell(facts.Hung(id, "no answer for 2 min 0 s"))
    assert world.get(id).state is S.STOPPING
    assert world.effects.killed == [id]
    world.exit(id, Exit(signal=9))
    assert world.get(id).state is S.QUEUED
    assert world.get(id).restarts == 1
    world.after(1)
    assert world.get(id).state is S.STARTING


def test_a_load_while_a_hung_instance_is_being_replaced_starts_no_second_one() -> None:
    world = World()
    id = world.ready()
    world.tell(facts.Hung(id, "no answer"))
    world.load()
    assert [instance.id for instance in world.manager.fleet.of_model("m")] == [id]
    world.exit(id, Exit(signal=9))
    assert world.get(id).state is S.QUEUED


def test_a_start_that_takes_too_long_is_ended_and_failed() -> None:
    world = World()
    world.add(start_timeout=5)
    world.load()
    world.prepare()
    id = world.only().id
    world.tell(facts.Overdue(id, {}))
    assert world.effects.killed == [id]
    world.exit(id, Exit(signal=9))
    assert world.get(id).state is S.FAILED
    failure = world.get(id).failure
    assert failure is not None
    assert failure.code == "start_timeout"


def test_loads_on_one_device_follow_each_other_on_different_ones_run_side_by_side() -> None:
    world = World(gpu(0), gpu(1))
    for name, device in (("a", "cuda:0"), ("b", "cuda:0"), ("c", "cuda:1")):
        world.add(name, devices=[device])
        world.load(name)
    world.prepare()
    states = {name: world.only(name).state for name in "abc"}
    assert states == {"a": S.STARTING, "b": S.QUEUED, "c": S.STARTING}
    assert world.only("b").reason == "waits for a to start on cuda:0"
    world.spawned(world.only("a").id)
    world.healthy(world.only("a").id)
    assert world.only("b").state is S.STARTING


def test_several_instances_of_one_model_are_all_routed() -> None:
    world = World(gpu(0), gpu(1))
    world.add()
    world.load(instances=2)
    world.prepare()
    for instance in world.manager.fleet.of_model("m"):
        world.spawned(instance.id)
        world.healthy(instance.id)
    assert len(world.targets()) == 2
    first = world.manager.fleet.of_model("m")[0]
    world.manager.handle(lambda: void(world.manager.stop_instance(first.id)))
    assert len(world.targets()) == 1
    assert world.manager.fleet.models["m"].desired == 1


def test_models_are_declared_once_and_refused_under_other_settings() -> None:
    world = World()
    assert world.manager.add_model(spec()).changed
    assert not world.manager.add_model(spec()).changed
    with pytest.raises(ConflictError, match="other settings"):
        world.manager.add_model(spec(source="elsewhere"))


def test_a_running_model_is_not_removed_by_mistake() -> None:
    world = World()
    id = world.ready()
    with pytest.raises(ConflictError, match="1 running instance"):
        world.manager.remove_model("m")
    assert not world.manager.remove_model("m", unload=True)
    world.tell(facts.Tick())
    world.exit(id)
    assert world.manager.remove_model("m")
    assert not world.manager.fleet.models
    assert not world.manager.fleet.instances
    assert world.effects.discarded == [id]
    with pytest.raises(NotFoundError):
        world.manager.load("m")


def test_changed_settings_mark_running_instances_as_outdated() -> None:
    world = World()
    world.ready()
    outcome = world.manager.change_model("m", lambda old: old.model_copy(update={"context_length": 128}))
    assert outcome.model.instances[0].outdated
    assert outcome.model.spec.context_length == 128
    as_before_but_two = {"context_length": None, "instances": 2}
    outcome = world.manager.change_model("m", lambda old: old.model_copy(update=as_before_but_two))
    assert not outcome.model.instances[0].outdated, "how many there are is no setting of one"


def test_models_of_a_file_follow_the_file() -> None:
    world = World()
    world.manager.handle(lambda: void(world.manager.declare({"a": spec("a"), "b": spec("b")}, "file")))
    with pytest.raises(ConflictError, match="configuration file"):
        world.manager.remove_model("a")
    with pytest.raises(ConflictError, match="configuration file"):
        world.manager.change_model("a", lambda old: old.model_copy(update={"source": "x"}))
    result = world.manager.declare({"a": spec("a", source="new"), "c": spec("c")}, "file")
    assert result == {"added": ["c"], "changed": ["a"], "removed": ["b"], "restart_needed": []}
    assert sorted(world.manager.fleet.models) == ["a", "c"]


def test_after_a_restart_what_runs_is_taken_back_and_what_died_is_restarted() -> None:
    before = World(gpu(0), gpu(1))
    alive, dead = before.ready("alive"), before.ready("dead")
    world = World(gpu(0), gpu(1))
    died = facts.Exited(dead, Exit(signal=9), Failure("engine_crashed", "it crashed"))
    world.manager.handle(
        lambda: world.manager.recover(
            before.effects.models.values(), before.effects.instances.values(), {alive}, [died]
        )
    )
    assert world.get(alive).state is S.READY
    assert world.get(dead).state is S.QUEUED
    routes = {route.model: route for route in world.effects.tables[-1].routes}
    assert [target.instance for target in routes["alive"].targets] == [alive]
    assert routes["dead"].targets == ()
    assert world.effects.tables[-1].epoch != before.effects.tables[-1].epoch


def test_what_was_wanted_is_loaded_again_at_the_next_start() -> None:
    before = World()
    id = before.ready()
    before.manager.handle(lambda: void(before.manager.stop_all()))
    before.exit(id)
    world = World()
    world.manager.handle(
        lambda: world.manager.recover(before.effects.models.values(), before.effects.instances.values(), set(), [])
    )
    world.manager.handle(lambda: world.manager.restore(remembered=True))
    assert world.only().state is S.QUEUED
    assert world.only().id != id


def test_nothing_is_published_twice_and_routes_have_growing_versions() -> None:
    world = World()
    world.ready()
    versions = [table.version for table in world.effects.tables]
    assert versions == sorted(set(versions))
    published = [data for event, data in world.effects.published if event == "model"]
    assert all(isinstance(view, ModelView) for view in published)
    count = len(world.effects.published)
    world.tell(facts.Tick())
    assert len(world.effects.published) == count


def test_ended_instances_are_forgotten_beyond_the_history() -> None:
    world = World()
    ids = []
    world.add()
    for _ in range(8):
        world.load()
        world.prepare()
        id = world.only().id
        ids.append(id)
        world.spawned(id)
        world.healthy(id)
        world.unload()
        world.exit(id)
        world.after(1)
    assert sorted(world.manager.fleet.instances) == sorted(ids[3:])
    assert world.effects.discarded == ids[:3]


def test_facts_about_unknown_instances_are_harmless() -> None:
    world = World()
    for fact in (
        facts.Prepared("x"),
        facts.Spawned("x"),
        facts.Healthy("x", None, {}),
        facts.Overdue("x", {}),
        facts.Hung("x", "?"),
        facts.Exited("x", Exit(), Failure("a", "b")),
    ):
        world.tell(fact)
    assert not world.manager.fleet.instances


def test_a_wrong_number_of_instances_is_refused() -> None:
    world = World()
    world.add(port=9000)
    for wanted in (0, 65, 2):
        with pytest.raises(ShoalError):
            world.manager.load("m", wanted)


async def test_commands_run_inside_the_loop_and_give_their_errors_back() -> None:
    world = World()
    loop = asyncio.create_task(world.manager.run())
    outcome = await world.manager.do(lambda: world.manager.add_model(spec()))
    assert outcome.changed
    with pytest.raises(NotFoundError):
        await world.manager.do(lambda: world.manager.load("nobody"))
    assert await world.manager.do(lambda: 7) == 7
    loop.cancel()


def test_an_id_is_readable_whatever_the_model_is_called() -> None:
    world = World()
    for name in ("org/Some Model v1.2", "模型", "🐟", "a" * 200):
        world.add(name)
        world.load(name)
        id = world.only(name).id
        assert id.isascii()
        assert len(id) <= 40


def test_a_model_that_became_ready_since_the_devices_were_read_counts_as_there() -> None:
    world = World(gpu(0, 70 * GIB), gpu(1, 60 * GIB))
    world.effects.clock += 1
    world.ready("a", needs=30 * GIB)
    assert world.only("a").devices == ("cuda:0",)
    world.add("b")
    world.load("b")
    world.prepare(30 * GIB)
    assert world.only("b").devices == ("cuda:1",)
    world.effects.clock += 1
    world.tell(facts.DevicesRead((gpu(0, 65 * GIB), gpu(1, 30 * GIB)), {}))
    world.add("c")
    world.load("c")
    world.prepare(30 * GIB)
    assert world.only("c").devices == ("cuda:0",), "what the reading shows is not counted twice"


def test_a_starting_model_counts_once_on_a_simulated_device() -> None:
    device = Device("simulated:0", "simulated", "simulated device", 8 * GIB, 0)
    world = World(device)
    world.add("a")
    world.load("a")
    world.prepare(5 * GIB, kinds=("simulated",))
    assert world.only("a").state is S.STARTING
    world.effects.clock += 1
    world.tell(facts.DevicesRead((device,), {}))
    assert world.manager.fleet.devices[0].memory_used == 5 * GIB
    world.add("b")
    world.load("b")
    world.prepare(3 * GIB, kinds=("simulated",))
    assert world.only("b").state is S.QUEUED
    assert "waits for a to start" in world.only("b").reason


def test_memory_that_starting_models_will_take_is_not_given_twice() -> None:
    world = World(gpu(0, 10 * GIB), gpu(1, 9 * GIB))
    for name in ("a", "b"):
        world.add(name)
        world.load(name)
    world.prepare(8 * GIB)
    assert {world.only("a").devices, world.only("b").devices} == {("cuda:0",), ("cuda:1",)}
