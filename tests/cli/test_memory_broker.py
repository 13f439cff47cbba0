"""`shoal memory broker`: what it refuses, how it divides, and where it is found."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from shoal.memory.tools import BrokerTool
from tests.cli.conftest import Run
from tests.cli.memory_parts import GPU, KEY, MIB, Brokers, Engines, answers, until


def test_the_broker_refuses_a_live_socket_and_replaces_a_stale_one(path: Path, brokers: Brokers) -> None:
    first = brokers.start()
    until(lambda: answers(path))
    second = brokers.start()
    _, errors = second.communicate(timeout=60)
    assert (second.returncode, "a memory broker already runs" in " ".join(errors.split())) == (1, True)
    assert path.stat().st_mode & 0o777 == 0o600
    first.kill()
    first.communicate()
    assert path.exists()
    third = brokers.start()
    until(lambda: answers(path))
    assert brokers.end(third)[0] == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--limit", "5GiB"], 2, "write it as DEVICE=SIZE"),
        (["--limit", "=5GiB"], 2, "write it as DEVICE=SIZE"),
        (["--limit", "host=lots"], 2, "is not a size"),
        (["--limit", "cuda:99=5GiB"], 4, "no device cuda:99"),
        (["--headroom", "100%"], 2, "would leave nothing"),
        (["--headroom", "-1"], 2, "is not a size"),
        (["--socket", "/proc/nowhere/m.sock"], 1, "nowhere"),
        (["--socket", "/tmp/" + "x" * 120], 1, "longer than the 107 bytes"),
    ],
)
def test_the_broker_refuses_what_it_cannot_do(run: Run, path: Path, args: list[str], code: int, words: str) -> None:
    result = run("memory", "broker", *args)
    assert result.exit_code == code, result.output
    assert words in " ".join(re.sub(r"[│\n]", " ", result.stderr).split())


def test_limits_and_headroom_in_parts_hold_for_the_size_that_an_engine_says(path: Path, brokers: Brokers) -> None:
    brokers.start("--limit", f"{KEY}=75%", "--limit", "moon=100MiB", "--headroom", "10%")
    engines = Engines(path)
    try:
        engines.start("a")
        engines.start("b", device="sun")
        engines.start("c", device="moon")
        with BrokerTool(path) as tool:
            books = tool.list()
    finally:
        for lease in engines.leases:
            lease.close()
    assert (books[KEY].device.limit, books[KEY].device.budget) == (768 * MIB, 768 * MIB)
    assert (books["sun"].device.limit, books["sun"].device.budget) == (None, GPU - int(GPU * 0.1))
    assert books["moon"].device.budget == 100 * MIB


def test_the_usual_places_of_a_broker(monkeypatch: pytest.MonkeyPatch, run: Run, path: Path, brokers: Brokers) -> None:
    from shoal.cli import memory_common

    monkeypatch.delenv("SHOAL_MEMORY_SOCKET")
    folder = path.parent
    monkeypatch.setattr(memory_common, "user_folder", lambda: folder)
    assert memory_common.find_socket(None) == folder / "memory.sock"
    sockets = [folder / name / "memory.sock" for name in ("one", "two")]
    for socket in sockets:
        brokers.start("--socket", str(socket))
        until(partial(answers, socket))
    result = run("memory", "ls", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["code"] == "ambiguous"
    brokers.started[0].kill()
    brokers.started[0].communicate()
    assert memory_common.find_socket(None) == sockets[1]  # one is dead; that of a `shoal serve` is left
    assert run("memory", "ls").exit_code == 0
    brokers.start("--socket", str(folder / "memory.sock"))
    until(lambda: answers(folder / "memory.sock"))
    assert memory_common.find_socket(None) == folder / "memory.sock"
    assert memory_common.find_socket(sockets[0]) == sockets[0]
