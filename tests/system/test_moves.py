"""Moves in a whole Shoal: under load, cancelled, refused. Simulated engines and devices."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx2
import pytest

from shoal.client import Client
from shoal.errors import ShoalError
from tests.system.harness import PATIENCE, Shoal, a_shoal, until
from tests.system.moving import (
    HERE,
    THERE,
    Clients,
    alone,
    answered_by,
    at,
    finished,
    loaded,
    metrics,
    three_devices,
    why,
)
from tests.system.test_break_controller import engines
from tests.system.test_slumber import history


@pytest.fixture
def shoal() -> Iterator[Shoal]:
    with three_devices() as shoal:
        yield shoal


def test_a_move_under_load_fails_no_request_and_every_one_is_answered_once(shoal: Shoal) -> None:
    loaded(shoal, "m", "--start-seconds", "0.5")
    with shoal.client as client, Clients(shoal, 6):
        for there in (THERE, "simulated:2", HERE):
            before = [i["id"] for i in shoal.wait("m", "ready")]
            move = finished(client, client.begin_move("m", to=[there])["id"])
            assert move["state"] == "done", move
            assert move["message"] == f"m was moved to {there}"
            (one,) = shoal.wait("m", "ready")
            assert one["devices"] == [there]
            assert one["id"] not in before
            assert not one["outdated"]
    alone(shoal, devices=[HERE])
    assert shoal.model("m")["spec"]["devices"] == [HERE]
    assert len(history(shoal, "move_switched")) == 3
    assert shoal.stop() == 0


def test_every_request_reaches_exactly_one_copy(shoal: Shoal) -> None:
    old = loaded(shoal, "m", "--tokens-per-second", "1000")
    with shoal.client as client:
        clients = Clients(shoal, 4)
        with clients:
            move = finished(client, client.begin_move("m", to=[THERE])["id"])
            assert move["state"] == "done"
        there = move["legs"][0]["target"]
        counts = {id: answered_by(client, id) for id in (old, there)}
        assert min(counts.values()) > 1
        canaries = 2  # one each
        assert sum(counts.values()) == clients.answered + canaries


@pytest.mark.parametrize("step", ["asking", "loading", "checking"])
def test_a_move_cancelled_under_load_at_each_step_leaves_the_old_one_serving(shoal: Shoal, step: str) -> None:
    slow = ("--start-seconds", "1") if step == "loading" else ("--ttft", "0.7")
    old = loaded(shoal, "m", *slow)
    with shoal.client as client, Clients(shoal, 3):
        id = client.begin_move("m", to=[THERE])["id"]
        at(client, id, step)
        client.cancel_move(id)
        move = finished(client, id)
        assert move["state"] == "cancelled", move
    alone(shoal, devices=[HERE], id=old)
    with shoal.client as client:
        with pytest.raises(ShoalError, match="has ended") as caught:
            client.cancel_move(id)
        assert (caught.value.status, caught.value.code) == (409, "move_ended")


def test_after_the_switch_a_cancel_is_too_late_and_says_so(shoal: Shoal) -> None:
    loaded(shoal, "m", "--slow-shutdown", "1")
    with shoal.client as client:
        id = client.begin_move("m", to=[THERE])["id"]
        at(client, id, "draining")
        with pytest.raises(ShoalError, match="move it back") as caught:
            client.cancel_move(id)
        assert caught.value.code == "move_switched"
        assert finished(client, id)["state"] == "done"
    alone(shoal, devices=[THERE])


@pytest.mark.parametrize(("fault", "cause"), [("start-exit", "the new one failed"), ("oom", "the new one failed")])
def test_a_new_one_that_does_not_start_leaves_the_old_one_serving(shoal: Shoal, fault: str, cause: str) -> None:
    old = loaded(shoal)
    with shoal.client as client, Clients(shoal, 2):
        spec = shoal.model("m")["spec"]
        move = client.begin_move("m", to=[THERE], changes={"args": [*spec["args"], "--fail", fault]})
        move = finished(client, move["id"])
        assert move["state"] == "failed"
        assert cause in move["message"]
    alone(shoal, devices=[HERE], id=old)
    assert shoal.model("m")["spec"] == spec
    assert history(shoal, "move_failed")


def test_a_canary_that_differs_leaves_the_old_one_serving(shoal: Shoal) -> None:
    old = loaded(shoal, "m", "--enable-sleep-mode", "--fail", "canary-differs")
    (one,) = shoal.wait("m", "ready")
    transport = httpx2.HTTPTransport(uds=one["address"].removeprefix("unix:"))
    with httpx2.Client(transport=transport, timeout=PATIENCE) as engine:  # behind Shoal's back
        assert engine.post("http://engine/sleep?level=1").status_code == 200
        assert engine.post("http://engine/wake_up").status_code == 200
    with shoal.client as client:
        move = finished(client, client.begin_move("m", to=[THERE])["id"])
        assert move["state"] == "failed"
        assert "answers the canary with" in move["message"]
    alone(shoal, devices=[HERE], id=old)


def test_an_engine_that_completes_no_text_is_moved_without_a_canary_and_says_so(shoal: Shoal) -> None:
    loaded(shoal, "m", "--task", "embed")
    with shoal.client as client:
        move = finished(client, client.begin_move("m", to=[THERE])["id"])
        assert move["state"] == "done"
        assert "completes no text" in move["legs"][0]["note"]
    with shoal.http() as http:
        assert http.post("/v1/embeddings", json={"model": "m", "input": "hello"}).status_code == 200
    assert "completes no text" in history(shoal, "move_switched")[0]


def test_a_device_that_is_gone_at_the_next_start_ends_the_move() -> None:
    with a_shoal(simulated_devices=["80GiB", "80GiB"], keep_engines=True) as shoal:
        shoal.start()
        old = loaded(shoal, "m", "--start-seconds", "3")
        with shoal.client as client:
            id = client.begin_move("m", to=[THERE])["id"]
            at(client, id, "loading")
            until(lambda: engines(shoal) == 2, "the new engine")
        assert shoal.process is not None
        shoal.process.kill()
        shoal.process.wait()
        shoal.settings["simulated_devices"] = ["80GiB"]
        shoal.start()
        with shoal.client as client:
            move = finished(client, id)
            assert move["state"] == "failed"
            assert f"{THERE} is gone" in move["message"]
        alone(shoal, devices=[HERE], id=old)


def test_two_opposite_commands_at_once(shoal: Shoal) -> None:
    loaded(shoal, "m", "--start-seconds", "0.5")
    answers: list[str] = []
    refusals: list[ShoalError] = []

    def ask(there: str) -> None:
        with shoal.client as client:
            try:
                answers.append(str(client.begin_move("m", to=[there])["id"]))
            except ShoalError as error:
                refusals.append(error)

    threads = [threading.Thread(target=ask, args=(there,)) for there in (THERE, "simulated:2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(answers) == 1, "one is carried out, the other one refused"
    assert [error.code for error in refusals] == ["model_moving"]
    assert "is being moved already" in refusals[0].message
    with shoal.client as client:
        move = finished(client, answers[0])
        assert move["state"] == "done"
        alone(shoal, devices=move["legs"][0]["devices"])
        # A move and an unload: the unload wins.
        id = client.begin_move("m", to=[HERE])["id"]
        at(client, id, "loading")
        client.unload("m")
        assert finished(client, id)["state"] == "failed"
        until(lambda: not shoal.model("m")["instances"], "the end")
    until(lambda: engines(shoal) == 0, "the end of the engines")


def test_moves_apart_run_side_by_side_and_others_in_order(shoal: Shoal) -> None:
    slow = ("--start-seconds", "1")
    loaded(shoal, "m", *slow)
    shoal.add("far", *slow, devices=["simulated:2"])
    shoal.load("far")
    with shoal.client as client:
        first = client.begin_move("m", to=[THERE])["id"]
        second = client.begin_move("far", to=[THERE])["id"]
        assert client.move(second)["state"] == "waiting"
        assert first in client.move(second)["message"]
        assert [m["id"] for m in client.moves()] == [first, second]
        assert finished(client, first)["state"] == "done"
        assert finished(client, second)["state"] == "done"
        client.begin_move("m", to=[HERE])
        third = client.begin_move("far", to=["simulated:2"])
        assert third["state"] == "waiting", "both leave the same device"


def test_other_settings_with_room_without_and_stopped_first(shoal: Shoal) -> None:
    old = loaded(shoal, "m", context_length=1000)
    with shoal.client as client, Clients(shoal, 3):
        move = finished(client, client.begin_move("m", changes={"context_length": 2000})["id"])
        assert move["state"] == "done", move
        new = shoal.wait("m", "ready")[0]
        assert new["devices"] == [HERE]
        assert new["id"] != old
        assert shoal.model("m")["spec"]["context_length"] == 2000
        # Seventy more GiB fit beside nothing, and that is known before anything begins.
        big = {"args": ["--device-memory", "75GiB"]}
        before = client.moves()
        with pytest.raises(ShoalError) as caught:
            client.begin_move("m", changes=big)
        assert (caught.value.status, caught.value.code) == (409, "too_little_memory")
        assert "m needs 75.0 GiB on simulated:0" in caught.value.message
        assert "--stop-first" in caught.value.message
        assert client.moves() == before
        assert shoal.wait("m", "ready")[0]["id"] == new["id"]
        # Held, not refused: no client sees an error.
        move = finished(client, client.begin_move("m", changes=big, stop_first=True)["id"])
        assert move["state"] == "done", move
    alone(shoal, devices=[HERE])
    assert shoal.model("m")["spec"]["args"] == big["args"]
    with shoal.client as client, Clients(shoal, 3):
        odd = {"args": ["--device-memory", "75GiB", "--fail", "start-exit"]}
        move = finished(client, client.begin_move("m", changes=odd, stop_first=True)["id"])
        assert move["state"] == "failed", move
    alone(shoal)
    assert shoal.model("m")["spec"]["args"] == big["args"]


def test_on_a_fixed_port_the_old_engine_never_answers_for_the_new_one(shoal: Shoal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    loaded(shoal, "m", "--tokens-per-second", "20", "--slow-shutdown", "1", port=port)
    counts: set[int] = set()

    def ended(client: Client, id: str) -> bool:
        counts.add(engines(shoal))
        return client.move(id)["state"] not in ("waiting", "running")

    with shoal.client as client, Clients(shoal, 3):
        id = client.begin_move("m", to=[THERE], stop_first=True)["id"]
        until(lambda: ended(client, id), "the end of the move")
        assert client.move(id)["state"] == "done"
        assert counts <= {0, 1}
    alone(shoal, devices=[THERE])


def test_on_a_fixed_port_a_load_waits_until_the_engine_that_was_unloaded_has_left(shoal: Shoal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    old = loaded(shoal, "m", "--tokens-per-second", "10", "--slow-shutdown", "1", port=port)
    statuses: list[int] = []
    asking = threading.Thread(target=lambda: statuses.append(shoal.chat("m", max_tokens=20).status_code))
    asking.start()
    with shoal.client as client:
        until(lambda: 'shoal_relay_outstanding{instance="' + old + '"' in metrics(shoal), "its request")
        client.unload("m")
        client.load("m")
        (new,) = shoal.wait("m", "queued")
        until(lambda: why(shoal, new["id"]) == f"waits for {old} to leave the port {port}", "why it waits")
        assert engines(shoal) == 1
    asking.join(PATIENCE)
    assert statuses == [200]
    assert alone(shoal)["id"] == new["id"]


def test_several_instances_are_replaced_one_after_the_other_under_load(shoal: Shoal) -> None:
    shoal.add("m", "--device-memory", "10GiB", devices=[HERE])
    shoal.load("m", 2)
    with shoal.client as client, Clients(shoal, 4):
        move = finished(client, client.begin_move("m", to=[THERE])["id"])
        assert move["state"] == "done"
        assert [leg["step"] for leg in move["legs"]] == ["done", "done"]
    found = shoal.wait("m", "ready", 2)
    assert [one["devices"] for one in found] == [[THERE], [THERE]]
    assert shoal.model("m")["desired"] == 2


def test_what_cannot_be_is_refused(shoal: Shoal) -> None:
    loaded(shoal)
    with shoal.client as client:
        for name, to, code, status in (
            ("nobody", [THERE], "model_not_found", 404),
            ("m", ["cuda:77"], "no_such_device", 400),
            ("m", [HERE], "nothing_to_move", 409),
        ):
            with pytest.raises(ShoalError) as caught:
                client.begin_move(name, to=to)
            assert (caught.value.code, caught.value.status) == (code, status)
        with pytest.raises(ShoalError) as caught:
            client.move("move-x")
        assert (caught.value.code, caught.value.status) == ("move_not_found", 404)
        with pytest.raises(ShoalError) as caught:
            client.cancel_move("move-x")
        assert caught.value.status == 404
        with pytest.raises(ShoalError, match="did you mean context_length"):
            client.begin_move("m", changes={"contxt_length": 5})
    with shoal.http() as http:
        for body in ({}, {"model": "m", "to": "simulated:1"}, {"model": "m", "where": []}, {"model": 3}):
            assert http.post("/api/v1/moves", json=body).status_code == 400
        assert http.get("/api/v1/moves").json() == {"moves": []}
