"""Engines that nobody has: listed, taken back, ended; and never those of a Shoal that runs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shoal.client import Client
from shoal.errors import ShoalError
from shoal.fleet.orphans import VERSION
from tests.system.harness import Shoal, a_shoal, until
from tests.system.test_break_controller import kill_controller
from tests.system.test_slumber import history


def kill(shoal: Shoal) -> None:
    """Everything of Shoal but its engines."""
    assert shoal.process is not None
    controller = shoal.pid("shoal.controller")
    shoal.process.kill()
    shoal.process.wait()
    until(lambda: not Path(f"/proc/{controller}").exists(), "the controller's end")


def lose_the_database(shoal: Shoal) -> None:
    kill(shoal)
    for file in shoal.state.glob("shoal.db*"):
        file.unlink()
    shoal.start()


def of(client: Client, instance: str) -> dict[str, Any] | None:
    """The orphan of this instance; the machine may have others."""
    return next((one for one in client.orphans() if one["instance"] == instance), None)


def test_what_a_lost_database_leaves_goes_on_and_can_be_taken_back(shoal: Shoal) -> None:
    shoal.add("m", priority=7)
    shoal.load("m")
    before = shoal.model("m")["instances"][0]
    lose_the_database(shoal)
    with shoal.client as client:
        assert client.models() == []
        orphan = of(client, before["id"])
        assert orphan is not None
        assert (orphan["model"], orphan["engine"], orphan["adoptable"]) == ("m", "simulated", True)
        assert orphan["devices"] == before["devices"]
        assert "no record of this Shoal names it" in orphan["why"]
        assert orphan["memory"]["host"] > 0
        assert before["pid"] in orphan["pids"]
        assert any(before["id"] in warning for warning in client.status()["warnings"])
        assert len(history(shoal, "orphan_found")) == 1

        view = client.adopt_orphan(before["id"])
        assert (view["id"], view["state"], view["pid"]) == (before["id"], "ready", before["pid"])
        assert of(client, before["id"]) is None
        assert not any(before["id"] in warning for warning in client.status()["warnings"])
        assert client.model("m")["spec"]["priority"] == 7
        until(lambda: shoal.chat("m").status_code == 200, "an answer")
        # It is an instance like any other: it survives the controller, and it ends as told.
        kill_controller(shoal)
        (after,) = shoal.wait("m", "ready")
        assert after["pid"] == before["pid"]
        assert "Application startup complete" in client.logs(before["id"])
    assert shoal.stop() == 0


def test_an_orphan_that_is_ended_leaves_no_process(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m", 2)
    first, second = (one["id"] for one in shoal.model("m")["instances"])
    lose_the_database(shoal)
    with shoal.client as client:
        orphan = of(client, first)
        assert orphan is not None
        client.end_orphan(str(orphan["pid"]))
        until(lambda: of(client, first) is None, "the end")
        client.end_orphan(second, force=True)
        until(lambda: of(client, second) is None, "the other's end")
        assert not shoal.fleet_processes()
        assert not (shoal.runtime / "instances" / first).exists()
        until(lambda: not (shoal.state / "logs" / second).exists(), "the log's end")
        for ask in (client.adopt_orphan, client.end_orphan):
            with pytest.raises(ShoalError) as caught:
                ask(first)
            assert (caught.value.status, caught.value.code) == (404, "orphan_not_found")


def test_an_orphan_survives_the_ends_of_others_and_later_controllers(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    before = shoal.model("m")["instances"][0]
    lose_the_database(shoal)
    shoal.add("other")
    shoal.load("other")
    os.kill(shoal.model("other")["instances"][0]["pid"], signal.SIGKILL)
    until(lambda: shoal.model("other")["instances"][0]["restarts"] == 1, "the restart")
    shoal.wait("other", "ready")
    kill_controller(shoal)
    with shoal.client as client:
        orphan = of(client, before["id"])
        assert orphan is not None
        assert before["pid"] in orphan["pids"]
        # A model of its name with other settings keeps them; the instance says that it runs with others.
        shoal.add("m", priority=9, context_length=512)
        view = client.adopt_orphan(before["id"])
        assert view["outdated"]
        assert client.model("m")["spec"]["priority"] == 9


def test_without_a_record_it_can_only_be_ended(shoal: Shoal) -> None:
    shoal.add("m")
    shoal.load("m")
    id = shoal.model("m")["instances"][0]["id"]
    record = shoal.runtime / "instances" / id / "instance.json"
    kill(shoal)
    text = record.read_text()
    for file in shoal.state.glob("shoal.db*"):
        file.unlink()
    shoal.start()
    with shoal.client as client:
        for broken, why in (
            ("{", "cannot be read"),
            ("[]", "cannot be read"),
            (json.dumps({**json.loads(text), "shoal_instance": VERSION + 1}), f"format {VERSION + 1}"),
            (json.dumps({**json.loads(text), "id": "another"}), "its record is of another"),
            (None, "no record of its settings"),
        ):
            if broken is None:
                record.unlink()
            else:
                record.write_text(broken)
            orphan = of(client, id)
            assert orphan is not None
            assert not orphan["adoptable"]
            assert why in orphan["not_adoptable_because"]
            with pytest.raises(ShoalError) as caught:
                client.adopt_orphan(id)
            assert (caught.value.status, caught.value.code) == (409, "orphan_refused")
        client.end_orphan(id)
        until(lambda: not shoal.fleet_processes(), "the end")


def test_another_shoal_is_left_alone_while_it_runs_and_gives_its_engines_when_it_is_dead(shoal: Shoal) -> None:
    with a_shoal() as other:
        other.start()
        other.add("theirs", "--start-seconds", "0.1")
        other.load("theirs")
        before = other.model("theirs")["instances"][0]
        with shoal.client as client:
            assert of(client, before["id"]) is None
            kill(other)
            orphan = of(client, before["id"])
            assert orphan is not None
            assert "another Shoal's, which does not run" in orphan["why"]
            view = client.adopt_orphan(before["id"])
            assert (view["model"], view["pid"], view["state"]) == ("theirs", before["pid"], "ready")
            assert str(shoal.runtime) in view["address"]
            until(lambda: shoal.chat("theirs").status_code == 200, "an answer")
            assert "Application startup complete" in client.logs(before["id"])
            kill_controller(shoal)
        shoal.wait("theirs", "ready")
        # The other one comes again: it neither ends what it no longer has, nor lists it.
        other.start()
        (own,) = other.wait("theirs", "ready")
        assert own["pid"] != before["pid"]
        with other.client as client:
            assert of(client, before["id"]) is None
        until(lambda: shoal.chat("theirs").status_code == 200, "an answer still")
        (still,) = shoal.model("theirs")["instances"]
        assert (still["pid"], still["restarts"]) == (before["pid"], 0)
        assert Path(f"/proc/{before['pid']}").exists()
        with shoal.client as client:
            client.remove_model("theirs", unload=True)
            until(lambda: not Path(f"/proc/{before['pid']}").exists(), "the end")
        (left,) = other.model("theirs")["instances"]
        assert (left["pid"], left["restarts"]) == (own["pid"], own["restarts"]), "which is no end of the one that came"
        assert Path(f"/proc/{own['pid']}").exists()
        assert other.stop() == 0


def left_for_another_runtime_folder(shoal: Shoal) -> dict[str, Any]:
    """A Shoal that was killed, to start with another runtime folder; the instance of "m" that it left."""
    shoal.add("m")
    shoal.load("m")
    before: dict[str, Any] = shoal.model("m")["instances"][0]
    kill(shoal)
    shoal.runtime = shoal.folder / "elsewhere"
    shoal.settings["runtime_dir"] = str(shoal.runtime)
    return before


def test_engines_come_along_to_another_runtime_folder(shoal: Shoal) -> None:
    before = left_for_another_runtime_folder(shoal)
    shoal.start()
    (after,) = shoal.wait("m", "ready")
    assert (after["id"], after["pid"], after["restarts"]) == (before["id"], before["pid"], 0)
    assert str(shoal.runtime) in after["address"]
    until(lambda: shoal.chat("m").status_code == 200, "an answer")
    with shoal.client as client:
        assert of(client, before["id"]) is None
    assert shoal.stop() == 0


def test_one_that_cannot_come_along_is_left_and_can_be_ended(shoal: Shoal) -> None:
    before = left_for_another_runtime_folder(shoal)
    (shoal.runtime / "instances" / before["id"]).mkdir(parents=True)  # in the way, as another file system would be
    shoal.start()
    (after,) = shoal.wait("m", "ready")
    assert (after["id"], after["pid"] != before["pid"]) == (before["id"], True)
    with shoal.client as client:
        orphan = of(client, before["id"])
        assert orphan is not None
        assert before["pid"] in orphan["pids"]
        assert "from another runtime folder" in orphan["why"]
        assert "cannot be moved from" in history(shoal, "orphan_found")[0]
        with pytest.raises(ShoalError, match="there is another instance"):
            client.adopt_orphan(before["id"])
        client.end_orphan(before["id"])
        until(lambda: of(client, before["id"]) is None, "the end")
        assert Path(f"/proc/{after['pid']}").exists()
    assert shoal.stop() == 0


def test_an_engine_that_was_taken_over_and_whose_shim_is_killed_leaves_nothing(shoal: Shoal) -> None:
    with a_shoal() as other:
        other.start()
        other.add("theirs")
        other.load("theirs")
        before = other.model("theirs")["instances"][0]
        kill(other)
        with shoal.client as client:
            orphan = of(client, before["id"])
            assert orphan is not None
            client.adopt_orphan(before["id"])
            os.kill(orphan["pid"], signal.SIGKILL)
            until(lambda: shoal.model("theirs")["instances"][0]["restarts"] == 1, "the restart")
            (again,) = shoal.wait("theirs", "ready")
            assert again["pid"] != before["pid"]
            assert not other.fleet_processes()


def test_an_orphan_that_sleeps_is_taken_back_asleep_and_wakes_when_it_is_asked_for(shoal: Shoal) -> None:
    shoal.add("m", "--enable-sleep-mode")
    shoal.load("m")
    answer = shoal.chat("m").json()["choices"]
    with shoal.client as client:
        client.sleep("m")
        (before,) = shoal.wait("m", "sleeping")
    lose_the_database(shoal)
    with shoal.client as client:
        view = client.adopt_orphan(before["id"])
        assert (view["state"], view["sleep_level"], view["pid"]) == ("sleeping", 1, before["pid"])
    until(lambda: shoal.chat("m").status_code == 200, "an answer")
    assert shoal.chat("m").json()["choices"] == answer
    (after,) = shoal.wait("m", "ready")
    assert after["pid"] == before["pid"]
    assert shoal.stop() == 0
