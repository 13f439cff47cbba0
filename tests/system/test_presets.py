"""Presets in a whole Shoal: saved, applied as a difference, interrupted, refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from shoal.client import Client
from shoal.errors import ShoalError
from tests.system.harness import Shoal, a_shoal, until
from tests.system.moving import Clients
from tests.system.test_break_controller import kill_controller
from tests.system.test_slumber import history

SLEEPS = ("--enable-sleep-mode",)


def finished(client: Client) -> dict[str, Any]:
    """The run, once it has ended."""
    return until(lambda: run if (run := client.preset_run())["state"] != "running" else None, "the run's end") or {}


def actions(plan: dict[str, Any]) -> set[tuple[str, str]]:
    return {(step["action"], step["model"]) for group in plan["groups"] for step in group}


def test_what_ran_and_slept_comes_back_in_one_action(shoal: Shoal) -> None:
    shoal.add("a", priority=7)
    shoal.add("b", *SLEEPS)
    shoal.load("a", 2)
    shoal.load("b")
    with shoal.client as client:
        client.sleep("b", level=2)
        shoal.wait("b", "sleeping")
        view = client.save_preset("day", description="by day")
        assert [(m["spec"]["name"], m["awake"], m["asleep"]) for m in view["models"]] == [("a", 2, 0), ("b", 0, 1)]
        assert client.plan_preset("day")["in_place"]
        kept = {i["id"] for i in client.model("a")["instances"]}
        # Another world: one of `a` too few, `b` gone altogether, and `c` that nobody saved.
        client.stop_instance(next(iter(kept)))
        until(lambda: len(shoal.wait("a", "ready")) == 1, "one")
        client.remove_model("b", unload=True)
        client.change_model("a", {"priority": 9})
        shoal.add("c")
        shoal.load("c")
        plan = client.plan_preset("day")
        wanted = {("change", "a"), ("start", "a"), ("start", "b"), ("sleep", "b")}
        assert actions(plan) == {*wanted, ("stop", "c")}
        assert actions(client.plan_preset("day", exclusive=False)) == wanted
        assert client.model("c")["state"] == "ready", "a plan changes nothing"
        client.apply_preset("day")
        run = finished(client)
        assert run["state"] == "done", run["message"]
        assert run["missing"] == []
        assert len(shoal.wait("a", "ready", 2)) == 2
        assert kept & {i["id"] for i in client.model("a")["instances"]}, "what ran is left alone"
        (slept,) = shoal.wait("b", "sleeping")
        assert slept["sleep_level"] == 2
        assert client.model("a")["spec"]["priority"] == 7
        assert client.model("c")["state"] == "unloaded"
        assert client.plan_preset("day")["in_place"]
        assert client.presets()[0]["last_run"]["state"] == "done"
        client.apply_preset("day")
        assert finished(client)["state"] == "done"
    assert len(history(shoal, "preset_done")) == 2
    assert shoal.stop() == 0


def test_a_failed_step_holds_up_nothing_else_and_is_said(shoal: Shoal) -> None:
    shoal.add("good")
    shoal.add("bad", "--fail", "start-exit")
    with shoal.client as client:
        spec = {name: client.model(name)["spec"] for name in ("good", "bad")}
        preset = {"shoal_preset": 1, "name": "two", "models": [{"spec": spec[name]} for name in ("bad", "good")]}
        client.import_preset(yaml.safe_dump(preset))
        client.apply_preset("two")
        run = finished(client)
        assert run["state"] == "failed"
        assert [one["model"] for one in run["missing"]] == ["bad"]
        assert "1 of 2 models are in place" in run["message"]
        shoal.wait("good", "ready")
        assert history(shoal, "preset_step_failed")


def test_a_second_run_is_refused_and_a_run_can_be_cancelled(shoal: Shoal) -> None:
    for name in ("x", "y"):
        shoal.add(name, "--start-seconds", "1")
        shoal.load(name)
    with shoal.client as client:
        client.save_preset("both")
        client.unload("x")
        client.unload("y")
        until(lambda: not any(client.model(m)["instances"] for m in "xy"), "the end")
        with pytest.raises(ShoalError, match="nothing to cancel"):
            client.cancel_preset_run()
        client.apply_preset("both")
        for refused in (lambda: client.apply_preset("both"), lambda: client.remove_preset("both")):
            with pytest.raises(ShoalError, match="the preset both is being applied") as caught:
                refused()
            assert caught.value.code == "preset_running"
        assert client.cancel_preset_run()["cancelling"]
        run = finished(client)
        assert run["state"] == "cancelled"
        # One device: one start after the other. The first was under way and came, the other never began.
        assert [one["state"] for one in run["steps"]] == ["done", "skipped"]
        client.apply_preset("both")
        assert finished(client)["state"] == "done"
        shoal.wait("x", "ready")
        shoal.wait("y", "ready")


def test_a_killed_controller_leaves_an_interrupted_run_and_the_rest_is_a_difference(shoal: Shoal) -> None:
    for name in ("x", "y"):
        shoal.add(name, "--start-seconds", "1")
        shoal.load(name)
    with shoal.client as client:
        client.save_preset("both")
        client.unload("x")
        client.unload("y")
        until(lambda: not any(client.model(m)["instances"] for m in "xy"), "the end")
        client.apply_preset("both")
        until(lambda: client.preset_run()["steps"][0]["state"] == "running", "the first step")
        until(lambda: client.model("x")["instances"] or client.model("y")["instances"], "the first load")
        kill_controller(shoal)
    with shoal.client as client:
        last = client.presets()[0]["last_run"]
        assert last["state"] == "interrupted"
        assert "Apply it again" in last["message"]
        assert len(history(shoal, "preset_interrupted")) == 1
        with pytest.raises(ShoalError) as caught:
            client.preset_run()
        assert caught.value.code == "no_preset_run"
        client.apply_preset("both")
        assert finished(client)["state"] == "done"
        shoal.wait("x", "ready")
        shoal.wait("y", "ready")


def with_settings(client: Client, name: str, **models: dict[str, Any]) -> None:
    """A preset of models that run, with some settings otherwise."""
    specs = [{"spec": {**client.model(model)["spec"], **changes}} for model, changes in models.items()]
    client.import_preset(yaml.safe_dump({"shoal_preset": 1, "name": name, "models": specs}))


@pytest.fixture
def wide() -> Iterator[Shoal]:
    """A running Shoal with two pretended devices, and a model on each."""
    with a_shoal(simulated_devices=["80GiB", "80GiB"], drain_timeout=20) as shoal:
        shoal.start()
        for name, device in (("a", "simulated:0"), ("b", "simulated:1")):
            shoal.add(name, "--device-memory", "30GiB", "--start-seconds", "0.5", devices=[device])
            shoal.load(name)
        yield shoal


def test_what_fits_beside_the_old_one_takes_its_place_and_no_request_fails(wide: Shoal) -> None:
    with wide.client as client:
        with_settings(client, "p", a={"devices": ["simulated:1"]}, b={"context_length": 2000, "priority": 7})
        before = {i["id"] for name in "ab" for i in client.model(name)["instances"]}
        plan = client.plan_preset("p")
        assert actions(plan) == {("move", "a"), ("change", "b")}
        with Clients(wide, 2, "a") as one, Clients(wide, 2, "b") as other:
            client.apply_preset("p")
            run = finished(client)
        assert run["state"] == "done", run["message"]
        assert not one.faults
        assert not other.faults
        assert one.answered
        assert other.answered
        assert [i["devices"] for i in client.model("a")["instances"]] == [["simulated:1"]]
        assert client.model("a")["spec"]["devices"] == ["simulated:1"]
        assert client.model("b")["spec"]["priority"] == 7
        assert not before & {i["id"] for name in "ab" for i in client.model(name)["instances"]}
        assert client.plan_preset("p")["in_place"]
        # Beside these two there is no room for a third: it is stopped and started.
        with_settings(client, "q", a={"context_length": 3000}, b={"context_length": 2000, "priority": 7})
        assert actions(client.plan_preset("q")) == {("stop", "a"), ("change", "a"), ("start", "a"), ("keep", "b")}
    assert wide.stop() == 0


def test_a_killed_controller_goes_on_with_a_preset_s_move_and_the_preset_waits_for_it(wide: Shoal) -> None:
    with wide.client as client, Clients(wide, 2, "a"):
        with_settings(client, "p", a={"context_length": 2000}, b={})
        client.apply_preset("p")
        until(lambda: any(m["legs"][0]["step"] == "loading" for m in client.moves()), "the new one")
        kill_controller(wide)
        with wide.client as again:
            assert again.preset("p")["last_run"]["state"] == "interrupted"
            again.apply_preset("p")
            run = finished(again)
            assert run["state"] == "done", run["message"]
            assert [move["state"] for move in again.moves()] == ["done"]
            assert len(again.model("a")["instances"]) == 1
            assert again.plan_preset("p")["in_place"]


def test_what_cannot_be_had_is_known_before() -> None:
    with a_shoal(models={"filed": {"source": "anything", "engine": "simulated"}}) as shoal:
        shoal.start()
        text = (
            "shoal_preset: 1\nname: p\nmodels:\n"
            "- spec: {name: filed, source: other, engine: simulated}\n"
            "- spec: {name: nowhere, source: x, engine: simulated, devices: ['cuda:77']}\n"
            "- spec: {name: lost, source: /nowhere/at/all, engine: vllm}\n"
            "- spec: {name: fine, source: x, engine: simulated}\n"
            "  devices: [['cuda:78']]\n"
        )
        with shoal.client as client:
            client.import_preset(text, name="q")
            plan = client.plan_preset("q")
            problems = {one["model"]: one["message"] for one in plan["problems"]}
            assert set(problems) == {"filed", "nowhere", "lost"}
            assert "configuration file with another source" in problems["filed"]
            assert "cuda:77" in problems["nowhere"]
            assert "/nowhere/at/all" in problems["lost"]
            assert "was on cuda:78" in plan["notes"][0]
            assert actions(plan) == {("start", "fine")}
            client.apply_preset("q")
            run = finished(client)
            assert run["state"] == "failed"
            assert {one["model"] for one in run["missing"]} == set(problems)
            shoal.wait("fine", "ready")


@pytest.fixture(scope="module")
def quiet() -> Iterator[Shoal]:
    """A Shoal in which nothing runs, for all that is refused."""
    with a_shoal() as shoal:
        yield shoal.start()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("shoal_preset: 2\nname: p", "format 2"),
        ("name: p", "shoal_preset: is missing"),
        ("shoal_preset: 1\nname: p\nmodels:\n- spec: {name: m, source: x, flor: 1}", "models.0.spec.flor: there is no"),
        ("shoal_preset: 1\nname: p\nmodels:\n- spec: {name: m, source: x}\n  awake: many", "models.0.awake"),
        ("shoal_preset: 1\nname: p\nname: q", "line 3"),
        ("shoal_preset: 1\nname: a/b", "no slash"),
        ("[1", "is not YAML"),
        ("- 1", "a mapping"),
    ],
)
def test_bad_yaml_is_refused_with_the_place(quiet: Shoal, text: str, place: str) -> None:
    with quiet.client as client:
        with pytest.raises(ShoalError) as caught:
            client.import_preset(text)
        assert caught.value.status == 400
        assert place in caught.value.message
        assert client.presets() == []


def test_presets_are_kept_replaced_exported_and_removed(shoal: Shoal) -> None:
    with shoal.client as client:
        with pytest.raises(ShoalError, match="nothing runs"):
            client.save_preset("p")
        shoal.add("m", env={"TOKEN": "x"})
        shoal.load("m")
        client.save_preset("p", description="one", fix_devices=True)
        (device,) = client.model("m")["instances"][0]["devices"]
        assert client.preset("p")["models"][0]["spec"]["devices"] == [device]
        with pytest.raises(ShoalError) as caught:
            client.save_preset("p")
        assert caught.value.code == "preset_exists"
        client.save_preset("p", replace=True)
        assert client.preset("p")["description"] == "one", "it is kept unless another is given"
        text = client.export_preset("p")
        client.import_preset(text, name="copy")
        assert client.preset("copy")["models"] == client.preset("p")["models"]
        kill_controller(shoal)
    with shoal.client as client:
        assert [one["name"] for one in client.presets()] == ["copy", "p"]
        client.remove_preset("p")
        for ask in (client.preset, client.apply_preset, client.plan_preset, client.export_preset):
            with pytest.raises(ShoalError) as caught:
                ask("p")
            assert caught.value.code == "preset_not_found"
        assert client.model("m")["state"] == "ready"
