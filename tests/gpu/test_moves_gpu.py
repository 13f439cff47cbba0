"""A model goes from one GPU to another and back while it is asked: no request fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.fleet.devices import Devices
from tests.gpu.test_gpu_serving import START, settings
from tests.system.harness import a_shoal, until
from tests.system.moving import Clients


def gpus() -> int:
    """How many GPUs this machine has."""
    devices = Devices()
    try:
        return sum(device.kind == "cuda" for device in devices.read())
    finally:
        devices.close()


def test_a_move_between_two_gpus_under_load_fails_no_request(model: Path, interpreter: str) -> None:
    if gpus() < 2:
        pytest.skip("needs two GPUs")
    with a_shoal(health_interval=1) as shoal:
        shoal.start()
        with shoal.client as client:
            client.add_model({"name": "m", **settings(model, interpreter, kv_cache_memory="2GiB")})
            client.load("m")
        shoal.wait("m", "ready", seconds=START)
        with shoal.client as client, Clients(shoal, 8) as clients:
            for there in ("cuda:1", "cuda:0"):
                id = client.begin_move("m", to=[there])["id"]
                until(lambda: client.move(id)["state"] not in ("waiting", "running"), "the move's end", START)  # noqa: B023
                move = client.move(id)
                assert move["state"] == "done", move
                (leg,) = move["legs"]
                loaded, drained = leg["switched_at"] - leg["began_at"], leg["ended_at"] - leg["switched_at"]
                print(
                    f"to {there}: switched after {loaded:.1f} s, ended {drained:.1f} s later, {clients.answered} asked"
                )
                (one,) = shoal.wait("m", "ready")
                assert one["devices"] == [there]
                assert not move["legs"][0]["note"], "both answered the canary alike"
        assert shoal.stop() == 0
