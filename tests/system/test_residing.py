"""Models that do not fit beside one another, in a whole Shoal: requests make room for them, and idle ones leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.system.harness import Shoal, a_shoal, until
from tests.system.test_break_controller import engines, kill_controller

SLEEPS = ("--enable-sleep-mode", "--device-memory", "700MiB")
RULES: dict[str, Any] = {"patience": 1, "min_awake": 0.2}


@contextmanager
def a_small_shoal(*devices: str, **settings: Any) -> Iterator[Shoal]:
    """One with these pretended devices, where nobody waits or stays for long."""
    with a_shoal(simulated_devices=devices or ["1GiB"], **RULES, **settings) as shoal:
        yield shoal.start()


def add(shoal: Shoal, name: str, *args: str, **settings: Any) -> None:
    shoal.add(name, *(args or SLEEPS), elastic="off", **settings)


def states(shoal: Shoal) -> dict[str, str]:
    with shoal.client as client:
        return {model["name"]: model["state"] for model in client.models()}


def history(shoal: Shoal, *words: str) -> list[str]:
    """What happened that has all these words in it, the newest first."""
    with shoal.client as client:
        return [event["message"] for event in client.history() if all(word in event["message"] for word in words)]


def ask_all(shoal: Shoal, names: list[str], rounds: int = 1) -> list[int]:
    """Ask all of them at once, each so many times; the answers' statuses."""
    found: list[httpx2.Response] = []

    def ask(name: str) -> None:
        found.extend(shoal.chat(name) for _ in range(rounds))

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer.status_code for answer in found]


def test_a_request_makes_room_for_its_model_and_the_others_sleep() -> None:
    with a_small_shoal() as shoal:
        for name in "abc":
            add(shoal, name)
        for name in "abcab":
            assert shoal.chat(name).status_code == 200
            assert states(shoal)[name] == "ready"
            assert list(states(shoal).values()).count("ready") == 1
        assert states(shoal) == {"a": "sleeping", "b": "ready", "c": "sleeping"}
        (text, *_) = history(shoal, "a: gives way")
        assert "b needs 700.0 MiB on simulated:0, a has priority 100 and was last used" in text
        assert engines(shoal) == 3, "they wake, and are not loaded anew"
        assert shoal.stop() == 0


def test_many_requests_for_more_models_than_fit_are_all_answered() -> None:
    with a_small_shoal("1GiB", "1500MiB") as shoal:
        names = ["a", "b", "c", "d", "e"]
        for name in names:
            add(shoal, name)
        assert ask_all(shoal, names, rounds=3) == [200] * 15
        assert list(states(shoal).values()).count("ready") <= 3
        assert shoal.stop() == 0


def test_what_cannot_sleep_is_unloaded_and_so_is_what_would_not_sleep() -> None:
    with a_small_shoal() as shoal:
        add(shoal, "a", "--device-memory", "700MiB")
        add(shoal, "b", *SLEEPS, "--fail", "sleep-keeps-memory")
        add(shoal, "c")
        assert shoal.chat("a").status_code == 200
        assert shoal.chat("b").status_code == 200
        assert states(shoal) == {"a": "unloaded", "b": "ready", "c": "unloaded"}
        assert shoal.model("a")["desired"] == 0
        assert shoal.chat("c").status_code == 200
        assert states(shoal) == {"a": "unloaded", "b": "unloaded", "c": "ready"}
        assert history(shoal, "b: did not sleep")
        assert shoal.stop() == 0


def test_a_pinned_model_never_gives_way_and_what_cannot_fit_beside_it_is_refused_with_the_numbers() -> None:
    with a_small_shoal() as shoal:
        add(shoal, "a", pin=True)
        add(shoal, "b")
        add(shoal, "huge", "--device-memory", "3GiB")
        assert shoal.chat("a").status_code == 200
        refused = shoal.chat("b")
        assert refused.status_code == 503
        assert "of which 700.0 MiB are pinned; unpin a model" in refused.json()["error"]["message"]
        assert "huge needs 3.0 GiB on simulated:0" in shoal.chat("huge").json()["error"]["message"]
        assert states(shoal)["a"] == "ready"
        with shoal.client as client:
            client.change_model("a", {"pin": False})
        assert shoal.chat("b").status_code == 200
        assert states(shoal)["a"] == "sleeping"
        with shoal.client as client:
            client.change_model("b", {"pin": True})
        refused = shoal.chat("a")
        assert refused.status_code == 503
        assert "cannot wake: a needs 700.0 MiB" in refused.json()["error"]["message"]
        with shoal.client as client:
            client.change_model("b", {"pin": False})
        assert shoal.chat("a").status_code == 200
        assert shoal.stop() == 0


def test_idle_models_sleep_and_are_unloaded_as_their_settings_and_requests_say() -> None:
    with a_small_shoal("1GiB", "1GiB") as shoal:
        add(shoal, "a", sleep_after="1s", unload_after=3)
        add(shoal, "b", sleep_after=0.5)
        assert shoal.chat("a").status_code == 200
        assert shoal.chat("b", keep_alive=-1).status_code == 200
        shoal.wait("a", "sleeping")
        assert history(shoal, "a: sleeps: idle 1.")
        until(lambda: states(shoal)["a"] == "unloaded", "the unload")
        assert states(shoal)["b"] == "ready", "its last request said for ever"
        assert shoal.chat("b").status_code == 200
        shoal.wait("b", "sleeping")
        assert shoal.chat("a", keep_alive=0).status_code == 200
        shoal.wait("a", "sleeping")
        with shoal.client as client:
            client.change_model("b", {"sleep_after": None})
            client.wake("b")
            (instance,) = shoal.wait("b", "ready")
            assert not instance["outdated"]
        assert shoal.stop() == 0


def test_a_model_in_use_gives_way_to_one_that_has_waited_long_enough_and_loses_no_request() -> None:
    with a_small_shoal() as shoal:
        add(shoal, "a", *SLEEPS, "--tokens-per-second", "20")
        add(shoal, "b")
        assert shoal.chat("a").status_code == 200
        statuses: list[int] = []
        done = threading.Event()

        def use() -> None:
            while not done.is_set():
                statuses.append(shoal.chat("a", max_tokens=60, ignore_eos=True).status_code)

        users = [threading.Thread(target=use) for _ in range(2)]
        for user in users:
            user.start()
        with shoal.client as client:
            until(lambda: len(client.requests()["requests"]) == 2, "the users")
        try:
            assert shoal.chat("b").status_code == 200
        finally:
            done.set()
        for user in users:
            user.join()
        assert set(statuses) == {200}
        (text, *_) = history(shoal, "a: gives way")
        assert "a has priority 100 and has requests; b has waited 1.0 s or more" in text
        assert shoal.stop() == 0


def test_after_the_controller_was_killed_the_policy_goes_on() -> None:
    with a_small_shoal() as shoal:
        for name in "abc":
            add(shoal, name)
            assert shoal.chat(name).status_code == 200
        before = engines(shoal)
        held: list[int] = []
        asking = threading.Thread(target=lambda: held.append(shoal.chat("a").status_code))
        asking.start()
        kill_controller(shoal)
        asking.join()
        assert held == [200]
        for name in "bca":
            assert shoal.chat(name).status_code == 200
        assert engines(shoal) == before, "nothing was lost, and nothing doubled"
        assert list(states(shoal).values()).count("ready") == 1
        assert shoal.stop() == 0


def test_an_operators_sleep_while_a_request_waits_ends_before_it_begins() -> None:
    with a_small_shoal() as shoal:
        add(shoal, "a", *SLEEPS, "--tokens-per-second", "20", max_concurrency=1)
        shoal.load("a")
        answers: list[int] = []
        asking = [
            threading.Thread(target=lambda: answers.append(shoal.chat("a", max_tokens=20, ignore_eos=True).status_code))
            for _ in range(2)
        ]
        for thread in asking:
            thread.start()
        with shoal.client as client:
            until(lambda: len(client.requests()["requests"]) == 2, "the requests")
            client.sleep("a")
        for thread in asking:
            thread.join()
        assert answers == [200, 200]
        assert states(shoal)["a"] == "ready"
        assert shoal.stop() == 0
