"""Copies of weights in the host's memory, in a whole Shoal with simulated engines."""

from __future__ import annotations

import httpx2

from tests.system.harness import Shoal, a_shoal, until

SLEEPS = ("--enable-sleep-mode", "--device-memory", "80MiB", "--copy-seconds", "0.3")
MIB = 2**20


def held(shoal: Shoal, name: str) -> int:
    """Bytes of the copy that the only instance of a model says that it has."""
    (instance,) = shoal.model(name)["instances"]
    transport = httpx2.HTTPTransport(uds=instance["address"].removeprefix("unix:"))
    with httpx2.Client(transport=transport) as engine:
        body = {"method": "shoal_copies", "args": ["look"]}
        answer = engine.post("http://engine/collective_rpc", json=body)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["results"][0]["held"])


def test_an_idle_instance_is_copied_and_keeps_its_copy_over_sleep_wake_and_a_new_controller() -> None:
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m", *SLEEPS)
        shoal.load("m")
        until(lambda: held(shoal, "m") == 80 * MIB, "the copy")
        with shoal.client as client:
            client.sleep("m")
        shoal.wait("m", "sleeping")
        assert held(shoal, "m") == 80 * MIB
        assert shoal.chat("m").status_code == 200
        assert held(shoal, "m") == 80 * MIB
        assert shoal.stop() == 0


def test_where_the_budget_holds_one_it_is_that_of_the_model_used_last() -> None:
    with a_shoal(host_memory="100MiB") as shoal:
        shoal.start()
        for name, other in (("a", None), ("b", "a")):
            shoal.add(name, *SLEEPS)
            shoal.load(name)
            assert shoal.chat(name).status_code == 200
            until(lambda name=name: held(shoal, name) == 80 * MIB, f"the copy of {name}")  # type: ignore[misc]
            assert other is None or held(shoal, other) == 0
        assert shoal.stop() == 0


def test_a_pinned_model_has_no_copy() -> None:
    with a_shoal() as shoal:
        shoal.start()
        shoal.add("m", *SLEEPS)
        shoal.load("m")
        until(lambda: held(shoal, "m") == 80 * MIB, "the copy")
        shoal.add("n", *SLEEPS, pin=True)
        shoal.load("n")
        until(lambda: held(shoal, "m") == 80 * MIB, "both looked at")
        assert held(shoal, "n") == 0
        assert shoal.stop() == 0
