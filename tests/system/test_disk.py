"""A full disk and a read-only state folder: serving goes on, and what could not be saved is said."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.harness import Shoal, a_shoal, until


@pytest.fixture
def on_small_disk() -> Iterator[Shoal]:
    """A Shoal whose state folder is a file system of 2 MiB; not started yet."""
    with a_shoal() as shoal:
        shoal.state.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(shoal.state)], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip("mounting a small file system needs root")
        try:
            yield shoal
            if shoal.process is not None and shoal.process.poll() is None:
                shoal.stop()
        finally:
            shoal.destroy()
            subprocess.run(["umount", "-l", str(shoal.state)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return ballast


def hurt(shoal: Shoal) -> bool:
    with shoal.client as client:
        return not client.status()["store"]["ok"]


def serves_and_says_so(shoal: Shoal) -> None:
    """Everything works but saving, and whoever changes something is told."""
    assert shoal.chat("m").status_code == 200
    with shoal.http() as http:
        added = http.post("/api/v1/models", json={"name": "new", "source": "x", "engine": "simulated"})
        assert added.status_code == 201
        until(lambda: hurt(shoal), "the problem")
        loaded = http.post("/api/v1/models/new/load")
        assert loaded.status_code == 202
        assert loaded.headers["x-shoal-warning"].startswith("not saved: ")
        shoal.wait("new", "ready")
        assert shoal.chat("new").status_code == 200
        ready = http.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["degraded"]
        status = http.get("/api/v1/status").json()
        assert status["store"]["unsaved"] > 0
        assert status["store"]["problem"] in status["warnings"]


def test_a_full_disk_does_not_stop_serving_and_heals(on_small_disk: Shoal) -> None:
    shoal = on_small_disk.start()
    shoal.add("m")
    shoal.load("m")
    ballast = fill(shoal.state)
    serves_and_says_so(shoal)
    ballast.unlink()
    until(lambda: not hurt(shoal), "everything saved")
    with shoal.http() as http:
        answer = http.post("/api/v1/models/new/unload")
        assert "x-shoal-warning" not in answer.headers
    until(lambda: shoal.model("new")["state"] == "unloaded", "the unload")
    shoal.stop()
    shoal.start()
    assert shoal.model("new")["spec"]["source"] == "x", "what was pending was saved once there was room"


def test_a_start_on_a_read_only_folder_serves_what_it_knows(on_small_disk: Shoal) -> None:
    shoal = on_small_disk.start()
    shoal.add("m")
    shoal.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(shoal.state)], check=True)
    shoal.start()
    assert shoal.model("m")["state"] == "unloaded"
    shoal.load("m")
    assert shoal.chat("m").status_code == 200
    assert hurt(shoal)
