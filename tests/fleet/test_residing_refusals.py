"""Models that can never be where they are asked to: what is said, and when they may be asked for again."""

from __future__ import annotations

import pytest

from shoal.errors import ShoalError
from shoal.fleet import facts
from shoal.fleet.manager import Manager
from shoal.fleet.state import Exit
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import GIB
from tests.fleet.residing import Fleet, limits


def test_what_is_too_large_for_any_device_is_refused_at_once_with_the_numbers() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(500)
    world.add("b")
    world.wanted("b")
    world.files(90)
    failure = world.only("b").failure
    assert failure is not None
    assert failure.message == "b needs 90.0 GiB on cuda:0; cuda:0 has 80.0 GiB; give it less memory or more devices"
    assert not world.route("b").comes
    assert world.get(a).state is S.READY, "nobody gives way for nothing"


def test_one_that_sleeps_beside_a_pin_says_so_and_wakes_once_the_pin_is_gone() -> None:
    world = Fleet()
    a = world.come("a")
    world.after(100)
    world.sleep("a", force=True)
    world.falls_asleep(a)
    world.come("b", pin=True)
    world.wanted("a")
    assert "cannot wake: a needs 60.0 GiB on cuda:0; cuda:0 has 80.0 GiB, of which 60.0 GiB are pinned" in (
        world.route("a").detail
    )
    assert not world.route("a").comes
    with pytest.raises(ShoalError, match="unpin a model"):
        world.manager.wake("a")
    world.change("b", pin=False)
    assert world.route("a").comes
    world.after(100)
    world.wanted("a")
    assert world.only("b").retires


def test_one_that_was_refused_beside_a_pin_may_be_asked_for_again_once_the_pin_is_gone() -> None:
    world = Fleet()
    a = world.come("a", pin=True)
    world.add("b")
    world.wanted("b")
    world.files()
    assert world.state("b") == "failed"
    world.after(100)
    assert not world.route("b").comes
    world.change("a", pin=False)
    assert (world.state("b"), world.route("b").comes) == ("unloaded", True)
    world.wanted("b")
    world.files()
    assert world.get(a).retires


def test_one_that_was_refused_may_be_asked_for_again_also_by_the_next_controller() -> None:
    world = Fleet()
    a = world.come("a", pin=True)
    world.add("b")
    world.wanted("b")
    world.files()
    world.after(6)
    assert world.only("b").state is S.FAILED
    effects = world.effects
    world.manager = manager = Manager(effects, limits())
    world.tell(facts.DevicesRead(world._devices({"cuda:0": 60 * GIB}), {}))
    manager.handle(lambda: manager.recover(list(effects.models.values()), list(effects.instances.values()), {a}, []))
    world.files()
    world.read()
    assert world.only("b").state is S.FAILED, "a is pinned still"
    assert not world.route("b").comes
    world.change("a", pin=False)
    assert world.route("b").comes
    world.after(100)
    world.wanted("b")
    world.files()
    world.report({})
    assert world.get(a).retires


def test_a_sleeping_model_is_loaded_elsewhere_where_it_can_never_wake() -> None:
    world = Fleet(80, 80)
    a = world.come("a")
    world.after(100)
    world.sleep("a", force=True)
    world.falls_asleep(a)
    world.come("b", pin=True, devices=("cuda:0",) if world.get(a).devices == ("cuda:0",) else ("cuda:1",))
    world.wanted("a")
    assert world.get(a).state is S.STOPPING
    assert world.said("a: is unloaded and loads elsewhere")
    world.exit(a, Exit(signal=15))
    world.read()
    again = world.start("a")
    assert again != a
    assert world.get(again).devices != world.only("b").devices
