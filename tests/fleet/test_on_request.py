"""Models that are loaded because a request asked for them, and what the relays are told of that."""

from __future__ import annotations

import pytest

from shoal.fleet import facts
from shoal.fleet.state import Device, Exit, Failure
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB, World, gpu, void


def loads_on_request(world: World) -> int:
    return sum(event.kind == "load_on_request" for event in world.effects.events)


def test_a_model_that_is_not_loaded_is_loaded_once_however_often_it_is_asked_for() -> None:
    world = World()
    world.add(instances=2)
    assert world.route().comes
    for _ in range(3):
        world.wanted()
    assert [i.state for i in world.manager.fleet.of_model("m")] == [S.QUEUED] * 2, "as many as `load` starts"
    assert world.manager.fleet.models["m"].desired == 2
    assert world.route().comes
    (event,) = [event for event in world.effects.events if event.kind == "load_on_request"]
    assert event.message == "m is loaded because a request asked for it"
    assert event.model == "m"
    world.prepare()
    world.wanted()
    assert len(world.manager.fleet.of_model("m")) == 2


def test_what_serves_is_left_alone_and_what_is_not_known_too() -> None:
    world = World()
    id = world.ready()
    world.wanted()
    world.wanted("unknown")
    assert [i.id for i in world.manager.fleet.instances.values()] == [id]
    assert world.route().comes
    assert not loads_on_request(world)


def test_a_model_may_refuse_to_be_loaded_by_requests() -> None:
    world = World()
    world.add(on_request=False)
    assert not world.route().comes
    world.wanted()
    assert not world.manager.fleet.instances
    world.load()
    assert world.route().comes, "it is on its way, whoever asked"
    world.unload()
    assert not world.route().comes
    world.manager.handle(
        lambda: void(world.manager.change_model("m", lambda old: old.model_copy(update={"on_request": True})))
    )
    assert world.route().comes


def test_one_that_was_unloaded_by_hand_comes_back_with_the_next_request_even_while_it_drains() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.unload()
    assert world.get(id).state is S.DRAINING
    assert world.route().comes
    world.wanted()
    assert [i.state for i in world.manager.fleet.of_model("m")] == [S.DRAINING, S.QUEUED]
    world.wanted()
    assert len(world.manager.fleet.of_model("m")) == 2
    world.report({})
    world.exit(id, Exit(signal=15))
    world.prepare()
    assert world.only().state is S.STARTING


def test_a_failed_one_waits_for_somebody_to_load_it() -> None:
    world = World()
    world.add()
    world.wanted()
    id = world.only().id
    world.tell(facts.Prepared(id, failure=Failure("source_not_found", "there is no folder /x")))
    route = world.route()
    assert not route.comes
    assert "there is no folder /x" in route.detail
    assert route.retry_after is None
    world.wanted()
    assert world.only().state is S.FAILED
    world.load()
    assert world.route().comes
    assert loads_on_request(world) == 1


def test_one_that_does_not_fit_fails_with_the_numbers() -> None:
    world = World(Device("host", "host", "memory", 10 * GIB, 8 * GIB))
    world.add()
    world.wanted()
    world.prepare(6 * GIB)
    assert world.route().comes, "readings may be of a moment"
    world.after(5)
    route = world.route()
    assert (route.state, route.comes) == ("failed", False)
    assert "needs 6.0 GiB" in route.detail


def test_what_is_to_be_restarted_comes_by_itself() -> None:
    world = World()
    id = world.ready()
    world.manager.handle(
        lambda: void(world.manager.change_model("m", lambda old: old.model_copy(update={"on_request": False})))
    )
    world.tell(facts.Hung(id, "no answer"))
    assert world.get(id).state is S.STOPPING
    assert world.route().comes, "it is ended only to be started again"
    world.wanted()
    world.exit(id, Exit(signal=9))
    assert world.only().restart_at is not None
    assert world.route().comes
    world.after(1)
    assert world.only().state is S.STARTING


def test_a_hung_one_that_is_unloaded_meanwhile_does_not() -> None:
    world = World()
    world.add(on_request=False)
    world.load()
    world.prepare()
    id = world.only().id
    world.spawned(id)
    world.healthy(id)
    world.tell(facts.Hung(id, "no answer"))
    world.unload()
    assert not world.route().comes


def test_a_start_that_took_too_long_is_not_tried_again_while_it_ends() -> None:
    world = World()
    world.add()
    world.wanted()
    world.prepare()
    id = world.only().id
    world.tell(facts.Overdue(id, {}))
    assert world.get(id).state is S.STOPPING
    assert not world.route().comes
    world.wanted()
    assert [i.id for i in world.manager.fleet.of_model("m")] == [id]
    world.exit(id, Exit(signal=9))
    assert not world.route().comes


def test_a_model_that_is_being_removed_is_not_loaded_by_those_who_still_ask() -> None:
    world = World()
    id = world.ready()

    def remove() -> bool:
        removed: list[bool] = []
        world.manager.handle(lambda: removed.append(world.manager.remove_model("m", unload=True)))
        return removed[0]

    assert not remove()
    assert not world.route().comes
    world.wanted()
    assert [i.id for i in world.manager.fleet.instances.values()] == [id]
    world.load()  # somebody has changed their mind
    assert world.route().comes
    assert not remove()
    world.exit(id)
    assert remove()
    assert world.manager.fleet.leaving == set()
    world.add()
    assert world.route().comes


def test_nothing_is_loaded_while_shoal_stops() -> None:
    world = World()
    world.add()
    id = world.ready("other")
    world.manager.handle(lambda: void(world.manager.stop_all()))
    assert not world.route("other").comes
    world.wanted()
    world.wanted("other")
    assert list(world.manager.fleet.instances) == [id]


@pytest.mark.parametrize(
    ("args", "capacity"),
    [((), 256), (("--max-num-seqs", "3"), 3), (("--max-num-seqs=5",), 5), (("--max-num-seqs", "x"), 0)],
)
def test_routes_say_how_much_an_instance_runs_at_once(args: tuple[str, ...], capacity: int) -> None:
    world = World()
    world.add(args=args, max_concurrency=7)
    world.load()
    world.prepare()
    world.spawned(world.only().id)
    world.healthy(world.only().id)
    (target,) = world.targets()
    assert target.capacity == capacity
    assert world.route().limit == 7
    assert world.route().names == ()


def test_an_instance_keeps_its_own_capacity_when_the_model_has_other_settings() -> None:
    world = World(gpu(0), gpu(1))
    world.add(args=("--max-num-seqs", "3"))
    world.load()
    world.prepare()
    world.spawned(world.only().id)
    world.healthy(world.only().id)
    changes = {"args": ("--max-num-seqs", "9"), "max_concurrency": 2}
    world.manager.handle(lambda: void(world.manager.change_model("m", lambda old: old.model_copy(update=changes))))
    assert [target.capacity for target in world.targets()] == [3]
    assert world.route().limit == 2, "limits of requests need no new start"
    world.manager.handle(
        lambda: void(
            world.manager.change_model("m", lambda old: old.model_copy(update={"args": ("--max-num-seqs", "3")}))
        )
    )
    assert not world.manager.fleet.model_view("m").instances[0].outdated
