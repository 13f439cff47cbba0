"""What is made of relays that are away: they may carry requests that nobody tells of."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.fleet import facts
from shoal.fleet.hearing import SILENCE, Hearing
from shoal.fleet.manager import Manager
from shoal.fleet.relays import Relays
from shoal.fleet.state import InstanceState as S
from shoal.gateway.link import LONGEST_WAIT, Link
from shoal.gateway.routes import Routes
from shoal.messages import RelayReport, RoutingTable
from tests.fleet.fakes import HOST, FakeEffects, World, void
from tests.fleet.hearing import limits, restart

WAIT = 20.0


def cut(world: World, connection: int = 1) -> None:
    world.tell(facts.RelayGone(connection))


def idle(world: World, connection: int, relay: str) -> None:
    """A relay says that it has the newest table, and carries nothing."""
    table = world.effects.tables[-1]
    world.tell(facts.RelayReported(connection, RelayReport(relay, table.epoch, table.version, {})))


def alarm(world: World) -> None:
    """Nothing happens until the time at which the manager wants to be woken."""
    world.after(world.effects.alarms[-1] - world.effects.clock)


def test_after_a_restart_nothing_has_drained_before_the_relay_is_back() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    restart(world)
    world.unload()
    assert world.get(id).state is S.DRAINING, "its request runs in a relay that has not connected again"
    world.tell(facts.RelayReported(2, RelayReport("relay", "of the former controller", 3, {id: 1})))
    assert world.get(id).state is S.DRAINING
    world.report({id: 1}, connection=2)
    world.after(SILENCE)
    assert world.get(id).state is S.DRAINING
    world.report({}, connection=2)
    assert world.get(id).state is S.STOPPING
    assert "no request runs any more" in world.get(id).reason


def test_what_drained_when_the_controller_was_killed_waits_for_the_relay_too() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.unload()
    restart(world)
    assert world.get(id).state is S.DRAINING
    world.report({}, connection=2)
    assert world.get(id).state is S.STOPPING, "once it is heard, no time has to pass"


def test_a_relay_whose_connection_was_cut_may_carry_requests() -> None:
    world = World()
    id = world.ready()
    world.report({id: 2})
    world.unload()
    world.report({id: 2})
    cut(world)
    assert world.get(id).state is S.DRAINING
    world.after(SILENCE - 1)
    world.report({id: 1}, connection=2)
    assert world.get(id).state is S.DRAINING
    world.after(2)
    assert world.get(id).state is S.DRAINING
    world.report({}, connection=2)
    assert world.get(id).state is S.STOPPING


def test_one_that_is_to_sleep_waits_for_a_relay_that_was_cut() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    cut(world)
    world.sleep()
    assert not world.effects.weighed
    world.report({}, connection=2)
    assert world.effects.weighed == [id]


@pytest.mark.parametrize("cause", [restart, cut])
def test_a_relay_that_never_comes_back_is_not_waited_for_for_long(cause: Callable[[World], None]) -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    cause(world)
    world.unload()
    assert world.get(id).state is S.DRAINING
    alarm(world)
    assert world.effects.clock == 1000 + SILENCE
    assert world.get(id).state is S.STOPPING


def test_a_relay_that_dies_while_an_instance_drains_ends_the_drain_without_anything_else() -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.unload()
    world.report({id: 1})
    cut(world)
    alarm(world)
    assert world.effects.clock == 1000 + SILENCE
    assert world.get(id).state is S.STOPPING


def test_a_drain_s_own_limit_holds_whoever_is_away() -> None:
    world = World(limits=limits(drain=2))
    id = world.ready()
    world.report({id: 1})
    restart(world)
    world.unload()
    alarm(world)
    assert world.effects.clock == 1002 < 1000 + SILENCE
    assert world.get(id).state is S.STOPPING


def test_an_end_that_is_forced_waits_for_no_relay() -> None:
    world = World()
    id = world.ready()
    restart(world)
    world.unload(force=True)
    assert world.get(id).state is S.STOPPING


def test_all_relays_are_waited_for_and_none_is_counted_twice() -> None:
    world = World(limits=limits(relays=2))
    id = world.ready()
    restart(world)
    world.unload()
    idle(world, 1, "a")
    assert world.get(id).state is S.DRAINING
    idle(world, 2, "a")  # its former connection has not been seen to end
    assert world.get(id).state is S.DRAINING
    cut(world, 1)
    idle(world, 3, "b")
    assert world.get(id).state is S.STOPPING


def test_whoever_goes_without_having_said_anything_was_no_relay_that_is_missed() -> None:
    world = World()
    id = world.ready()
    cut(world, 7)
    world.unload()
    assert world.get(id).state is S.STOPPING


def test_with_relays_that_are_all_there_a_drain_waits_for_nothing_else() -> None:
    world = World(limits=limits(relays=2))
    id = world.ready()
    idle(world, 1, "a")
    idle(world, 2, "b")
    world.unload()
    idle(world, 1, "a")
    assert world.get(id).state is S.DRAINING
    idle(world, 2, "b")
    assert world.get(id).state is S.STOPPING


def test_when_shoal_stops_its_relays_have_ended_before_and_are_not_waited_for() -> None:
    world = World()
    id = world.ready()
    world.report({})
    cut(world)
    world.manager.handle(lambda: void(world.manager.stop_all()))
    assert world.get(id).state is S.STOPPING


@pytest.mark.parametrize("cause", [restart, cut])
def test_a_model_is_not_idle_because_nobody_tells_of_its_requests(cause: Callable[[World], None]) -> None:
    world = World()
    id = world.ready()
    world.report({id: 1})
    world.manager.handle(
        lambda: void(world.manager.change_model("m", lambda old: old.model_copy(update={"sleep_after": 0.0})))
    )
    world.after(100)
    assert world.get(id).state is S.READY
    cause(world)
    world.prepare()
    world.after(1)
    assert world.get(id).state is S.READY
    world.report({id: 1}, connection=2)
    world.after(SILENCE)
    assert world.get(id).state is S.READY, "in use all the while"
    world.report({}, connection=2)
    alarm(world)
    assert world.get(id).retires


@pytest.mark.parametrize("cause", [restart, cut])
def test_a_model_that_nobody_uses_sleeps_although_no_relay_comes_back(cause: Callable[[World], None]) -> None:
    world = World()
    world.add(sleep_after=1.0)
    world.load()
    world.prepare()
    id = world.only().id
    world.spawned(id)
    world.healthy(id)
    world.report({id: 1})
    world.after(100)
    cause(world)
    world.prepare()
    for _ in range(10):
        if world.get(id).retires:
            break
        alarm(world)
    assert world.get(id).retires
    assert 1100 + SILENCE <= world.effects.clock <= 1102 + SILENCE


def test_a_relay_that_lives_has_many_tries_before_it_is_given_up() -> None:
    assert SILENCE >= 10 * LONGEST_WAIT
    hearing = Hearing()
    assert hearing.complete({}, 0.0), "where none was missed, none is waited for"


# -- with a relay's real link -----------------------------------------------------------------------------------------


class Telling(FakeEffects):
    """Effects that tell real relays of the routing table."""

    relays: Relays | None = None

    def route(self, table: RoutingTable) -> None:
        super().route(table)
        if self.relays is not None:
            self.relays.route(table)


async def test_a_relay_that_is_back_tells_of_the_request_that_it_carried_all_the_while() -> None:
    world = World()
    world.effects = effects = Telling()
    world.manager = Manager(effects, limits())
    world.tell(facts.DevicesRead((HOST,), {}))
    id = world.ready()
    heard = asyncio.Event()

    def tell(fact: facts.Fact) -> None:
        world.tell(fact)
        heard.set()

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                heard.clear()
                await heard.wait()

    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:  # short enough for a Unix socket
        path = Path(folder) / "r.sock"
        routes = Routes(changed=lambda: link.changed())
        link = Link(routes, path, Path(folder) / "table.json")
        task = asyncio.create_task(link.run())
        try:
            effects.relays = first = Relays(path, tell)
            first.route(effects.tables[-1])
            await first.start()
            await until(lambda: bool(world.manager.fleet.relays))
            with routes.carrying(id):
                await until(lambda: world.manager.fleet.outstanding(id) == 1)
                effects.relays = None
                await first.stop()  # what it tells of that, it tells the former controller
                await until(lambda: not world.manager.fleet.relays)
                restart(world)
                world.unload()
                assert world.get(id).state is S.DRAINING
                effects.relays = second = Relays(path, tell)
                second.route(effects.tables[-1])
                await second.start()
                await until(lambda: world.manager.fleet.outstanding(id) == 1)
                assert world.get(id).state is S.DRAINING
            await until(lambda: world.get(id).state is S.STOPPING)
            assert effects.clock == 1000, "it is known, not waited for"
            await second.stop()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
