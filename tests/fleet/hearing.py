"""Controllers that are killed while their engines and relays live on."""

from __future__ import annotations

from shoal.fleet import facts
from shoal.fleet.life import Limits
from shoal.fleet.lifecycle import RestartPolicy
from shoal.fleet.manager import Manager
from tests.fleet.fakes import HOST, World


def limits(relays: int = 1, drain: float = 30) -> Limits:
    """Those of most tests, with so many relays and seconds to drain."""
    return Limits(RestartPolicy(limit=3, delay=1, delay_max=10, reset=60), drain=drain, history=5, relays=relays)


def restart(world: World) -> None:
    """The controller is killed, and the next one takes back what runs. No relay is connected to it yet."""
    effects = world.effects
    world.manager = Manager(effects, world.manager._life._limits)
    world.tell(facts.DevicesRead((HOST,), {}))
    models, instances = list(effects.models.values()), list(effects.instances.values())
    world.manager.handle(lambda: world.manager.recover(models, instances, set(effects.alive), []))
