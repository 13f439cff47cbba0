"""A model that slept when Shoal stopped is loaded by the first request for it, and not before."""

from __future__ import annotations

from tests.system.harness import Shoal


def test_what_slept_is_unloaded_after_a_restart_and_the_next_request_loads_it(shoal: Shoal) -> None:
    for name in ("sleeper", "server"):
        shoal.add(name, "--enable-sleep-mode")
        shoal.load(name)
    with shoal.client as client:
        client.sleep("sleeper")
    shoal.wait("sleeper", "sleeping")
    assert shoal.stop() == 0
    shoal.start()
    shoal.wait("server", "ready")
    assert shoal.model("sleeper")["state"] == "unloaded"
    assert shoal.chat("sleeper").status_code == 200
    assert shoal.stop() == 0
