"""What is told of measurements and of the canary."""

from __future__ import annotations

from shoal.api.profiles import profiles
from shoal.fleet.canary import NONE, PROMPT
from shoal.fleet.profiles import Profile, settings_hash
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Instance, InstanceState, Model, Rest

GIB = 2**30


def instance(id_: str, state: InstanceState = InstanceState.READY, canary: str | None = None) -> Instance:
    return Instance(id_, id_[0], "simulated", state, (), 0.0, 0.0, rest=Rest(canary=canary))


def fleet(*instances: Instance, measured: tuple[Profile, ...] = ()) -> Fleet:
    made = Fleet()
    for name in ("a", "b"):
        made.models[name] = Model(ModelSpec(name=name, source="x", engine="simulated"), "api", 0.0)
    made.instances.update({one.id: one for one in instances})
    made.profiles = {one.id: one for one in measured}
    return made


def test_a_profile_of_the_present_settings_comes_before_newer_ones_of_others() -> None:
    now = settings_hash(ModelSpec(name="a", source="x", engine="simulated"))
    found = profiles(
        fleet(
            measured=(
                Profile("a", "older", "NVIDIA H200", 9 * GIB, 300.0),
                Profile("a", now, "NVIDIA H200", 8 * GIB, 100.0, overheads=(GIB, 2 * GIB, 1), phases={"load": 3.0}),
                Profile("gone", now, "NVIDIA H200", None, 200.0),
                Profile("b", now, "host", 1, 1.0),
            )
        ),
        None,
    )
    assert [(one.model, one.current) for one in found.profiles] == [
        ("a", True),
        ("a", False),
        ("b", True),
        ("gone", False),
    ]
    first = found.profiles[0]
    assert (first.weights, first.overhead, first.phases) == (8 * GIB, 2 * GIB, {"load": 3.0})
    assert (first.wake_seconds, found.profiles[1].overhead) == (None, None)


def test_what_sleeping_costs_is_told() -> None:
    measured = Profile("a", "s", "host", 1, 1.0, sleep_seconds=0.5, wake_seconds=0.25, asleep=GIB, host_copy=8 * GIB)
    (found,) = profiles(fleet(measured=(measured,)), "a").profiles
    assert (found.sleep_seconds, found.wake_seconds, found.asleep, found.host_copy) == (0.5, 0.25, GIB, 8 * GIB)
    (unseen,) = profiles(fleet(measured=(Profile("a", "s", "host", 1, 1.0),)), "a").profiles
    assert (unseen.sleep_seconds, unseen.wake_seconds, unseen.asleep, unseen.host_copy) == (None,) * 4


def test_answers_are_those_of_instances_that_run() -> None:
    running = (
        instance("a1", InstanceState.SLEEPING, "text:  Paris"),
        instance("a2"),
        instance("a3", canary=NONE),
        instance("a4", InstanceState.STOPPED, "text: x"),
        instance("a5", canary="text: "),
        instance("b1", canary="text: other"),
    )
    found = profiles(fleet(*running), "a")
    assert found.prompt == PROMPT
    told = [(one.instance, one.asked, one.completes, one.answer) for one in found.canaries]
    assert told == [
        ("a1", True, True, " Paris"),
        ("a2", False, False, None),
        ("a3", True, False, None),
        ("a5", True, True, ""),
    ]


def test_a_model_that_is_not_known_has_nothing() -> None:
    found = profiles(fleet(instance("a1")), "nobody")
    assert (found.profiles, found.canaries) == ([], [])
