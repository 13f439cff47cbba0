"""Relays come, go and carry requests in any order, and controllers too; no drain ends what they carry."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.fleet import facts
from shoal.fleet.hearing import SILENCE
from shoal.fleet.state import InstanceState as S
from shoal.messages import RelayReport, RoutingTable
from tests.fleet.fakes import World
from tests.fleet.hearing import limits, restart


@dataclass
class Relay:
    """One that goes by the table it has, whoever is there to tell it of a newer one."""

    name: str
    connection: int | None = None
    table: RoutingTable | None = None
    running: dict[str, int] = field(default_factory=dict)
    away: float = 0.0

    def targets(self) -> list[str]:
        return [target.instance for route in (self.table.routes if self.table else ()) for target in route.targets]


class Wired:
    """A fleet and its relays, which try to connect for as long as they live."""

    def __init__(self) -> None:
        self.world = World(limits=limits(relays=2, drain=10_000))
        self.id = self.world.ready()
        self.numbers = 0
        self.relays = [self.born(), self.born()]
        for relay in self.relays:
            self.take(relay)

    def born(self) -> Relay:
        self.numbers += 1
        return Relay(f"relay {self.numbers}", away=self.world.effects.clock)

    def say(self, relay: Relay) -> None:
        if relay.connection is not None and relay.table is not None:
            said = RelayReport(relay.name, relay.table.epoch, relay.table.version, dict(relay.running))
            self.world.tell(facts.RelayReported(relay.connection, said))

    def take(self, relay: Relay) -> None:
        """It connects, if it has to, and takes the newest table."""
        if relay.connection is None:
            self.numbers += 1
            relay.connection = self.numbers
            if relay.table is not None:
                self.say(relay)  # it may have something to say before a table comes
        relay.table = self.world.effects.tables[-1]
        self.say(relay)

    def lose(self, relay: Relay) -> None:
        if relay.connection is not None:
            connection, relay.connection, relay.away = relay.connection, None, self.world.effects.clock
            self.world.tell(facts.RelayGone(connection))

    def happen(self, what: str, n: int) -> None:
        relay, world = self.relays[n], self.world
        match what:
            case "cut":
                self.lose(relay)
            case "dies":
                relay.running.clear()
                self.lose(relay)
                self.relays[n] = self.born()
            case "take":
                self.take(relay)
            case "begins":
                for target in relay.targets():
                    relay.running[target] = relay.running.get(target, 0) + 1
                self.say(relay)
            case "ends":
                relay.running.clear()
                self.say(relay)
            case "unload":
                world.unload()
            case "sleep":
                if world.get(self.id).state is S.READY:
                    world.sleep()
            case "restart":
                for one in self.relays:
                    one.connection, one.away = None, world.effects.clock
                restart(world)
            case _:
                for one in self.relays:
                    if one.connection is None and world.effects.clock + 1 >= one.away + SILENCE:
                        self.take(one)
                world.after(1)


HAPPENS = st.tuples(
    st.sampled_from(["cut", "dies", "take", "begins", "ends", "unload", "sleep", "restart", "tick"]), st.integers(0, 1)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(HAPPENS, max_size=40))
def test_no_request_is_ended_by_a_drain_as_long_as_relays_that_live_come_back_in_time(
    happens: list[tuple[str, int]],
) -> None:
    wired = Wired()
    for what, n in happens:
        wired.happen(what, n)
        ended = wired.world.get(wired.id).state not in (S.READY, S.DRAINING) or wired.world.effects.weighed
        if ended:
            assert not any(relay.running for relay in wired.relays)
            return
    wired.world.unload()
    for n in (0, 1):
        wired.happen("ends", n)
        wired.happen("take", n)
    assert wired.world.get(wired.id).state is S.STOPPING, "all are there: it is known at once"
