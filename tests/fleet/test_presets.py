"""Presets without a fleet that runs: what is captured, what differs, in which order, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.config import ConfigError
from shoal.errors import ConflictError
from shoal.fleet.preset_plan import PresetPlan, Step, compare, replaces, wanted_move
from shoal.fleet.presets import Preset, PresetBook, PresetEntry, capture, from_yaml, make_preset, to_yaml
from shoal.fleet.snapshot import Fleet
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import Instance, InstanceState, Model, Rest
from tests.fleet.fakes import HOST, gpu, spec
from tests.store import records

S = InstanceState
DEVICES = (gpu(0), gpu(1), gpu(2))
_ids = itertools.count()


def instance(
    model: ModelSpec, state: InstanceState = S.READY, devices: tuple[str, ...] = ("cuda:0",), level: int | None = None
) -> Instance:
    number = next(_ids)
    return Instance(
        f"{model.name}-{number}", model.name, model.engine, state, devices, number, number, spec=model, rest=Rest(level)
    )


def fleet(*models: ModelSpec, instances: Iterable[Instance] = (), origin: str = "api") -> Fleet:
    made = Fleet(devices=DEVICES)
    made.models = {one.name: Model(one, origin, 0.0) for one in models}
    made.instances.update({one.id: one for one in instances})
    return made


def preset(*entries: PresetEntry) -> Preset:
    return Preset(name="p", models=entries)


def words(plan: PresetPlan) -> list[list[str]]:
    return [[f"{step.action} {step.model}" for step in group] for group in plan.groups]


def carry_out(plan: PresetPlan, wanted: Preset, there: Fleet) -> None:
    """Do to a fleet's records what a run has the real one do."""
    entries = {entry.spec.name: entry for entry in wanted.models}
    for step in plan.steps:
        _carry_out(step, entries.get(step.model), there)


def _carry_out(step: Step, entry: PresetEntry | None, there: Fleet) -> None:
    def put(one: Instance, state: InstanceState, level: int | None = None) -> None:
        there.instances[one.id] = dataclasses.replace(one, state=state, rest=Rest(level))

    running = [i for i in there.of_model(step.model) if not i.state.ended]
    match step.action:
        case "stop":
            for id in step.instances:
                put(there.instances[id], S.STOPPED)
        case "move" | "change" if replaces(step):
            assert entry is not None
            there.models[step.model] = dataclasses.replace(there.models[step.model], spec=entry.spec)
            for id in step.instances:
                old = there.instances[id]
                assert old.state is S.READY, "only what serves is replaced while it does"
                put(old, S.STOPPED)
                made = instance(entry.spec, devices=old.devices)
                there.instances[made.id] = made
        case "change":
            assert entry is not None
            there.models[step.model] = dataclasses.replace(there.models[step.model], spec=entry.spec)
        case "wake":
            for id in step.instances:
                assert there.instances[id].state is S.SLEEPING
                put(there.instances[id], S.READY)
        case "start":
            assert entry is not None
            there.models.setdefault(step.model, Model(entry.spec, "api", 0.0))
            for one in running:
                put(one, S.READY)  # a load wakes what sleeps first
            for _ in range(step.count - len(running)):
                made = instance(there.models[step.model].spec)
                there.instances[made.id] = made
        case "sleep":
            asleep = sum(i.state is S.SLEEPING and i.rest.level == step.level for i in running)
            ready = [i for i in running if i.state is S.READY]
            assert len(ready) >= step.count - asleep
            for one in ready[: step.count - asleep]:
                put(one, S.SLEEPING, step.level)


# -- what differs -----------------------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Fleet, Preset]:
    """A fleet of a few models in any state, and a preset of some of these models, maybe otherwise, and of others."""
    instances, models, entries = [], [], []
    for name in draw(st.lists(st.sampled_from("abcde"), unique=True)):
        before = draw(_specs(name))
        models.append(before)
        for _ in range(draw(st.integers(0, 4))):
            state = draw(st.sampled_from([S.READY, S.SLEEPING, S.STOPPED]))
            level = draw(st.sampled_from([1, 2])) if state is S.SLEEPING else None
            device = draw(st.sampled_from(["cuda:0", "cuda:1", "cuda:2"]))
            ran = draw(st.just(before) | _specs(name))
            instances.append(instance(ran, state, (device,), level))
    for name in draw(st.lists(st.sampled_from("abcdef"), unique=True)):
        awake = draw(st.integers(0, 3))
        asleep = draw(st.integers(0 if awake else 1, 3))
        known = [one for one in models if one.name == name]
        wanted = draw(st.sampled_from(known) | _specs(name)) if known else draw(_specs(name))
        where = draw(st.none() | st.sampled_from(["cuda:0", "cuda:1"]))
        devices = ((where,),) * (awake + asleep) if where else ()
        level = draw(st.sampled_from([1, 2]))
        entries.append(PresetEntry(spec=wanted, awake=awake, asleep=asleep, sleep_level=level, devices=devices))
    return fleet(*models, instances=instances), preset(*entries)


def _specs(name: str) -> st.SearchStrategy[ModelSpec]:
    return st.builds(
        lambda priority, length, device: spec(name, priority=priority, context_length=length, devices=device),
        st.sampled_from([100, 200]),
        st.sampled_from([None, 4096]),
        st.sampled_from(["auto", ("cuda:0",), ("cuda:1",)]),
    )


@settings(deadline=None, max_examples=300)
@given(worlds(), st.booleans(), st.sets(st.sampled_from("abcdef")))
def test_a_plan_that_is_carried_out_gives_the_preset_and_a_second_is_all_keep(
    world: tuple[Fleet, Preset], exclusive: bool, beside: set[str]
) -> None:
    there, wanted = world
    before = {i.id for i in there.instances.values() if not i.state.ended}
    plan = compare(wanted, there, exclusive=exclusive, beside=beside)
    assert not plan.problems
    assert {step.model for step in plan.steps if replaces(step)} <= beside
    touched = {step.model for step in plan.steps if step.action != "keep"}
    carry_out(plan, wanted, there)
    again = compare(wanted, there, exclusive=exclusive)
    assert again.in_place, again
    assert {step.action for step in again.steps} <= {"keep"}
    if exclusive and wanted.models:
        have = {e.spec.name: (e.spec, e.awake, e.asleep) for e in capture(there, "p").models}
        assert have == {e.spec.name: (e.spec, e.awake, e.asleep) for e in wanted.models}
    running = {i.id for i in there.instances.values() if not i.state.ended}
    for id in before - running:
        assert there.instances[id].model in touched, "what is kept is not touched"


@settings(deadline=None)
@given(worlds(), st.sets(st.sampled_from("abcdef")))
def test_groups_share_no_device_and_give_memory_back_before_they_take_it(
    world: tuple[Fleet, Preset], beside: set[str]
) -> None:
    there, wanted = world
    plan = compare(wanted, there, beside=beside)
    touched = [{device for step in group for device in step.devices} for group in plan.groups]
    for one, other in itertools.combinations(touched, 2):
        assert not one & other
    for group in plan.groups:
        actions = [step.action for step in group]
        starts = [n for n, action in enumerate(actions) if action in ("start", "wake")]
        stops = [n for n, action in enumerate(actions) if action == "stop"]
        assert not starts or not stops or max(stops) < min(starts)
        moves = [n for n, step in enumerate(group) if replaces(step)]
        assert not starts or not moves or max(moves) < min(starts), "a start may take what a move left"
        assert not stops or not moves or max(stops) < min(moves)
    models = [{step.model for step in group} for group in plan.groups]
    for one, other in itertools.combinations(models, 2):
        assert not one & other, "a model's steps follow each other"


@settings(deadline=None, max_examples=20)
@given(records.preset_contents)
def test_a_preset_survives_yaml(wanted: Preset) -> None:
    assert from_yaml(to_yaml(wanted)) == wanted


# -- capture ----------------------------------------------------------------------------------------------------------


def test_what_runs_and_sleeps_is_captured_as_it_runs() -> None:
    old = spec("a", context_length=2048, priority=1)
    new = spec("a", context_length=4096, priority=5)
    b = spec("b")
    there = fleet(
        new, b, spec("idle"), instances=[
            instance(old, devices=("cuda:1",)), instance(b, S.SLEEPING, level=2), instance(b, S.DRAINING),
            instance(b, S.FAILED),
        ],
    )  # fmt: skip
    a_entry, b_entry = capture(there, "p", "by day").models
    assert a_entry.spec.context_length == 2048, "it runs with that, whatever the model has now"
    assert a_entry.spec.priority == 5, "that follows at once"
    assert a_entry.devices == (("cuda:1",),)
    assert (b_entry.awake, b_entry.asleep, b_entry.sleep_level) == (0, 1, 2)


def test_nothing_to_save_is_refused() -> None:
    with pytest.raises(ConflictError, match="nothing runs"):
        capture(fleet(spec("a"), instances=[instance(spec("a"), S.STOPPED)]), "p")


def test_devices_are_fixed_where_one_choice_serves_all() -> None:
    a = spec("a")
    there = fleet(a, instances=[instance(a), instance(a)])
    assert capture(there, "p", fix_devices=True).models[0].spec.devices == ("cuda:0",)
    there = fleet(a, instances=[instance(a), instance(a, devices=("cuda:1",))])
    with pytest.raises(ConflictError, match="different devices"):
        capture(there, "p", fix_devices=True)
    assert capture(there, "p").models[0].spec.devices == "auto"


# -- steps and their reasons ------------------------------------------------------------------------------------------


def test_live_settings_change_without_a_new_start_and_others_with_one() -> None:
    a = spec("a")
    there = fleet(a, instances=[instance(a)])
    (step,) = compare(preset(PresetEntry(spec=spec("a", priority=3))), there).steps
    assert (step.action, step.settings, step.live) == ("change", ("priority",), True)
    plan = compare(preset(PresetEntry(spec=spec("a", priority=3, context_length=9))), there)
    assert words(plan) == [["stop a", "change a", "start a"]]
    assert "context_length" in plan.steps[0].reason
    assert "priority" not in plan.steps[0].reason
    assert not plan.steps[1].live


def test_what_fits_beside_the_old_one_takes_its_place_while_that_serves() -> None:
    a, longer = spec("a", devices=("cuda:0",)), spec("a", devices=("cuda:0",), context_length=9, priority=3)
    there = fleet(a, instances=[running := instance(a, devices=("cuda:0",))])
    (step,) = compare(preset(PresetEntry(spec=longer)), there, beside="a").steps
    assert (step.action, step.instances, step.live) == ("change", (running.id,), False)
    assert set(step.settings) == {"context_length", "priority"}
    assert step.reason == "context_length: as saved, while it serves"
    assert wanted_move(PresetEntry(spec=longer), a, 7.0).changes == {"context_length": 9, "priority": 3}
    elsewhere = PresetEntry(spec=spec("a", devices=("cuda:1",)))
    (step,) = compare(preset(elsewhere), there, beside="a").steps
    assert (step.action, step.instances) == ("move", (running.id,))
    assert step.reason == "from cuda:0 to cuda:1, while it serves"
    assert step.devices == ("cuda:0", "cuda:1")
    assert wanted_move(elsewhere, a, 7.0).changes == {"devices": ["cuda:1"]}
    gone = compare(preset(PresetEntry(spec=spec("a", devices=("cuda:9",)))), there, beside="a")
    assert "this machine has" in gone.problems[0].message


def test_what_a_move_cannot_do_is_a_stop_and_a_start() -> None:
    old, new = spec("a"), spec("a", context_length=9)
    for entry, instances in (
        (PresetEntry(spec=new), [instance(old), instance(old)]),  # another number of them
        (PresetEntry(spec=new, awake=2), [instance(old)]),
        (PresetEntry(spec=new, awake=0, asleep=1), [instance(old)]),
        (PresetEntry(spec=new), [instance(old, S.SLEEPING, level=1)]),
        (PresetEntry(spec=new), [instance(old, S.STARTING)]),
        (PresetEntry(spec=spec("a", context_length=9, port=9001)), [instance(spec("a", port=9001))]),
    ):
        plan = compare(preset(entry), fleet(old, instances=instances), beside="a")
        assert not any(replaces(step) for step in plan.steps), words(plan)
        assert plan.steps[0].action == "stop"


def test_an_instance_that_runs_other_settings_than_its_model_is_started_anew() -> None:
    a = spec("a")
    there = fleet(a, instances=[instance(spec("a", context_length=9))])
    assert words(compare(preset(PresetEntry(spec=a)), there)) == [["stop a", "start a"]]


def test_another_sleep_level_goes_through_waking() -> None:
    a = spec("a")
    there = fleet(a, instances=[instance(a, S.SLEEPING, level=1)])
    assert words(compare(preset(PresetEntry(spec=a, awake=0, asleep=1, sleep_level=2)), there)) == [
        ["wake a", "sleep a"]
    ]


def test_what_may_run_anywhere_stays_where_it_serves() -> None:
    fixed, free = spec("a", devices=("cuda:0",)), spec("a")
    there = fleet(fixed, instances=[instance(fixed)])
    wanted = preset(PresetEntry(spec=free))
    for beside in ((), ("a",)):
        (step,) = compare(wanted, there, beside=beside).steps
        assert (step.action, step.reason) == ("change", "devices: as saved, without a new start")
    carry_out(compare(wanted, there), wanted, there)
    assert compare(wanted, there).in_place
    elsewhere = preset(PresetEntry(spec=spec("a", devices=("cuda:1",)), devices=(("cuda:1",),)))
    (step,) = compare(elsewhere, there, beside=("a",)).steps
    assert (step.action, step.reason) == ("move", "from cuda:0 to cuda:1, while it serves")


def test_different_devices_are_apart_and_the_same_one_in_order() -> None:
    a, b, c, d = (spec(name) for name in "abcd")
    there = fleet(a, b, c, d, instances=[instance(a), instance(b, devices=("cuda:1",))])
    wanted = preset(
        PresetEntry(spec=c, devices=(("cuda:0",),)),
        PresetEntry(spec=d, awake=0, asleep=1, devices=(("cuda:0",),)),
        PresetEntry(spec=b, devices=(("cuda:1",),)),
    )
    assert words(compare(wanted, there)) == [["stop a", "start d", "sleep d", "start c"], ["keep b"]]
    assert words(compare(wanted, there, exclusive=False)) == [["start d", "sleep d", "start c"], ["keep b"]]
    assert compare(wanted, there, exclusive=False).left == ("a",)


def test_a_start_on_unknown_devices_waits_for_everything() -> None:
    a, b = spec("a"), spec("b")
    there = fleet(a, b, instances=[instance(a)])
    assert words(compare(preset(PresetEntry(spec=b)), there)) == [["stop a", "start b"]]


def test_problems_are_known_before_and_leave_the_model_alone() -> None:
    a = spec("a")
    there = fleet(a, instances=[instance(a)], origin="file")
    plan = compare(preset(PresetEntry(spec=spec("a", floor=2**30, priority=2))), there)
    assert plan.steps == ()
    assert not plan.in_place
    assert "floor, priority" in plan.problems[0].message
    assert compare(preset(PresetEntry(spec=a)), there).in_place, "the same settings are no problem"
    plan = compare(preset(PresetEntry(spec=spec("x", devices=("cuda:9",)))), there)
    assert "cuda:9" in plan.problems[0].message
    plan = compare(preset(PresetEntry(spec=spec("x"))), there, faults={"x": "its source is not there", "a": "no"})
    assert [(one.model, one.message) for one in plan.problems] == [("x", "its source is not there")]
    plan = compare(preset(PresetEntry(spec=spec("x"), devices=(("cuda:9",),))), there)
    assert not plan.problems
    assert "was on cuda:9" in plan.notes[0]
    assert HOST.id not in {device.id for device in there.devices}


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"name": "p", "colour": 1}, "colour: there is no such setting"),
        ({"name": " p"}, "name"),
        ({"name": "p", "shoal_preset": "1"}, "format '1'"),
        ({"name": "p", "models": [{"spec": {"name": "m", "source": "x"}, "awake": 0}]}, "from 1 to 64"),
        ({"name": "p", "models": [{"spec": {"name": "m", "source": "x"}, "awake": 60, "asleep": 9}]}, "from 1 to 64"),
        ({"name": "p", "models": [{"spec": {"name": "m", "source": "x"}, "sleep_level": 3}]}, "models.0.sleep_level"),
        ({"name": "p", "models": [{"spec": {"name": "m", "source": "x"}, "devices": [["a"], ["b"]]}]}, "2 instances"),
        ({"name": "p", "models": [{"spec": {"name": "m", "source": "x", "port": 80}, "awake": 2}]}, "fixed port"),
        ({"name": "p", "models": [{"spec": {"name": "m", "source": "x"}}] * 2}, "m stands twice"),
        ({"name": "p", "models": {}}, "models"),
        ([], ""),
        (None, ""),
    ],
)
def test_what_is_no_preset_is_refused_with_its_place(data: object, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_preset(data)
    assert fault in caught.value.message


@given(st.text(max_size=200) | st.text("[]{}:,-&*!|>'\"\n ab0", max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    with contextlib.suppress(ConfigError):  # and nothing else
        from_yaml(text)


@pytest.mark.parametrize("odd", ["\x85", "a\u2028b", "\ufeff", "ü\n\n x ", "'\"", "no", "1"])
def test_every_character_comes_back_from_yaml(odd: str) -> None:
    wanted = Preset(name="p", description=odd, models=(PresetEntry(spec=spec("m", args=[odd], environment=odd)),))
    assert from_yaml(to_yaml(wanted)) == wanted


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^description: "):
        from_yaml('shoal_preset: 1\nname: p\ndescription: "\\ud800"')


def test_a_book_replaces_only_when_told() -> None:
    book = PresetBook()
    first, new = book.put(Preset(name="p"), 1.0, replace=False)
    assert new
    assert book.put(Preset(name="p"), 2.0, replace=False) == (first, False), "the same again is no change"
    with pytest.raises(ConflictError, match="there is a preset p"):
        book.put(Preset(name="p", description="x"), 2.0, replace=False)
    second, new = book.put(Preset(name="p", description="x"), 3.0, replace=True)
    assert (second.created_at, second.changed_at, new) == (1.0, 3.0, False)


def test_the_documented_example_is_a_preset() -> None:
    page = (Path(__file__).parents[2] / "docs/presets.md").read_text()
    match = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert match is not None
    (entry,) = from_yaml(match[1]).models
    assert (entry.spec.floor, entry.awake, entry.asleep) == (2 * 2**30, 1, 1)
