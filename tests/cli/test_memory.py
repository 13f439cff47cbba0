"""`shoal memory`: people who look and steer, at a real broker process with engines that lease from it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.memory_parts import GPU, KEY, MIB, SHOAL, Brokers, Engines, answers, until

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def broker(path: Path, brokers: Brokers) -> Brokers:
    brokers.start("--headroom", "0", "--limit", f"{KEY}=75%")
    until(lambda: answers(path))
    return brokers


@pytest.fixture
def engines(broker: Brokers, path: Path) -> Iterator[Engines]:
    engines = Engines(path)
    yield engines
    for lease in engines.leases:
        lease.close()


def test_ls_shows_devices_and_engines(run: Run, engines: Engines) -> None:
    engines.start("coder", 300 * MIB, want=400 * MIB, floor=100 * MIB)
    engines.start("[b]tiny[/b]", 500 * MIB, ceiling=200 * MIB)
    result = run("memory", "ls")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout
    assert any(line.startswith(KEY) and "1.0 GiB" in line for line in lines)
    assert "budget 768.0 MiB, leased 600.0 MiB, limited to 768.0 MiB" in lines
    (coder,) = (line.split() for line in lines if line.startswith("coder"))
    assert coder[:9] == ["coder", "400.0", "MiB", "300.0", "MiB", "100.0", "MiB", "100.0", "MiB"]
    assert "[b]tiny[/b]" in result.stdout
    assert "needs 300.0" in " ".join(result.stdout.split())
    found = json.loads(run("memory", "ls", "--json").stdout)
    (device,) = (one for one in found["devices"] if one["key"] == KEY)
    assert (device["budget"], device["limit"], device["held_back"]) == (768 * MIB, 768 * MIB, 0)
    assert [(e["engine"], e["lease"], e["want"]) for e in device["engines"]] == [
        ("coder", 400 * MIB, 400 * MIB),
        ("[b]tiny[/b]", 200 * MIB, 500 * MIB),
    ]
    # Not on a terminal, top is a look.
    assert "coder" in run("memory", "top").stdout


def test_ls_without_engines_says_so(run: Run, broker: Brokers) -> None:
    result = run("memory", "ls")
    assert result.exit_code == 0
    assert "No engine leases memory" in result.stdout
    assert "no engine on: " in result.stdout  # the host is known before an engine names it


def test_a_limit_below_what_is_in_use_is_accepted_and_asked_back(run: Run, engines: Engines) -> None:
    lease = engines.start("coder", 300 * MIB, want=700 * MIB)
    result = run("memory", "limit", "coder", "10%")
    assert result.exit_code == 0, result.output
    assert "ceiling 102.4 MiB" in " ".join(result.stdout.split())
    assert "gives 597.6 MiB back" in " ".join(result.stdout.split())
    until(lambda: lease.excess == 700 * MIB - int(GPU * 0.1))
    lease.release(lease.excess)
    lease.ask(300 * MIB, 700 * MIB)
    result = run("memory", "limit", "coder", "none", "--json")
    assert json.loads(result.stdout)["ranks"][0]["ceiling"] is None
    until(lambda: lease.lease == 700 * MIB)
    assert run("memory", "limit", "coder", "720MiB").exit_code == 0
    assert lease.terms == (0, 720 * MIB, 100)


def test_floors_that_cannot_be_kept_are_refused_with_the_numbers(run: Run, engines: Engines) -> None:
    engines.start("a", floor=500 * MIB)
    b = engines.start("b")
    result = run("memory", "floor", "b", "2GiB")
    assert result.exit_code == 5
    assert "a floor of 2,048.0 MiB is more than device" in " ".join(result.stderr.split())
    result = run("memory", "floor", "b", "50%", "--json")
    assert result.exit_code == 5
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "floors_above_budget"
    for number in ("512.0 MiB", "500.0 MiB", "1,012.0 MiB", "budget of 768.0 MiB", "limited to 768.0 MiB"):
        assert number in error["message"]
    assert run("memory", "floor", "b", "25%").exit_code == 0
    until(lambda: b.terms[0] == 256 * MIB)
    assert run("memory", "limit", "b", "1MiB").exit_code == 5  # below its floor


def test_priority_trim_and_budget(run: Run, engines: Engines) -> None:
    lease = engines.start("a", 100 * MIB, want=500 * MIB)
    assert "priority 300" in run("memory", "priority", "a", "300").stdout
    lease.ask(100 * MIB)
    assert lease.wait_answered(60)
    assert run("memory", "trim", "a", "200MiB").exit_code == 0
    until(lambda: lease.excess == 300 * MIB)
    result = run("memory", "trim", "a", "--json")
    assert result.exit_code == 0, result.output
    until(lambda: lease.excess == 400 * MIB)  # what its requests need stays
    result = run("memory", "budget", KEY, "30%")
    assert "budget 307.2 MiB, leased 500.0 MiB; 192.8 MiB asked back" in " ".join(result.stdout.split())
    assert json.loads(run("memory", "budget", KEY, "none", "--json").stdout)["budget"] == GPU
    assert run("memory", "budget", "host", "50%").exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["limit", "nobody", "1GiB"], 4, "no engine nobody is connected; connected: a"),
        (["limit", "nobody", "10%"], 4, "no engine nobody"),
        (["trim", "nobody"], 4, "no engine nobody"),
        (["priority", "nobody", "5"], 4, "no engine nobody"),
        (["budget", "moon", "1GiB"], 4, "no engine has named a device moon"),
        (["budget", "moon", "10%"], 4, "no engine has named a device moon"),
        (["budget", "cuda:77", "10%"], 4, "no device cuda:77"),
        (["limit", "a", "8 parsecs"], 2, "is not a size"),
        (["limit", "a", "101%"], 2, "more than the whole device"),
        (["floor", "a", "none"], 2, "is not a size"),
        (["trim", "a", "-1"], 2, ""),
        (["budget", KEY, ""], 2, "is not a size"),
        (["priority", "a", "0"], 2, ""),
        (["priority", "a", "many"], 2, ""),
        (["watch", "--interval", "0"], 2, ""),
        (["limit", "a"], 2, ""),
        (["limit", "a\n", "1GiB"], 1, "that cannot be asked"),
        (["limit", "a", "99999999TiB"], 1, "that cannot be asked"),
        (["nonsense"], 2, ""),
    ],
)
def test_bad_input_is_refused(run: Run, engines: Engines, args: list[str], code: int, words: str) -> None:
    engines.start("a")
    for extra in ([], ["--json"]):
        result = run("memory", *args, *extra)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert words in " ".join(re.sub(r"[│\n]", " ", result.stderr).split())
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "args",
    [["ls"], ["top"], ["watch"], ["limit", "a", "1GiB"], ["floor", "a", "1"], ["priority", "a", "1"], ["trim", "a"],
     ["budget", "host", "none"]],
)  # fmt: skip
def test_without_a_broker_every_command_says_how_to_start_one(run: Run, path: Path, args: list[str]) -> None:
    result = run("memory", *args)
    assert result.exit_code == 3
    words = " ".join(result.stderr.split())
    assert "no memory broker answers on" in words
    assert "start one with `shoal memory broker`" in words
    other = run("memory", *args, "--socket", "/nowhere/else.sock")
    assert other.exit_code == 3
    assert "/nowhere/else.sock" in other.stderr


def test_a_broker_that_speaks_another_version_is_said_to(run: Run, path: Path) -> None:
    import socket
    import threading

    payload = b'{"v": 2, "type": "unheard of"}'
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(len(payload).to_bytes(4, "big") + payload)

        thread = threading.Thread(target=serve)
        thread.start()
        result = run("memory", "ls", "--json")
        thread.join()
    assert result.exit_code == 1
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "protocol"
    assert "install the same version of Shoal for the broker and the engines" in error["message"]


def test_watch_tells_one_line_a_change_until_it_is_interrupted(engines: Engines) -> None:
    lease = engines.start("a", 100 * MIB)
    watchers = [
        subprocess.Popen(
            [*SHOAL, "memory", "watch", "--interval", "0.05", *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "COLUMNS": "80"},
        )
        for extra in ([], ["--json"])
    ]  # fmt: skip
    said: list[list[str]] = []
    try:
        for watcher in watchers:
            assert watcher.stdout is not None
            lines: list[str] = []
            while not any("100.0 MiB" in line or str(100 * MIB) in line for line in lines):
                lines.append(watcher.stdout.readline())
                assert lines[-1]
            said.append(lines)
        lease.ask(200 * MIB)
        assert lease.wait_lease(200 * MIB, 60)
        for watcher, lines in zip(watchers, said, strict=True):
            assert watcher.stdout is not None
            while "lease" not in lines[-1] or "a on" not in lines[-1].replace('"engine": "a"', "a on"):
                lines.append(watcher.stdout.readline())
                assert lines[-1]
            while not ("200.0 MiB" in lines[-1] or f'"lease": {200 * MIB}' in lines[-1]):
                lines.append(watcher.stdout.readline())
                assert lines[-1]
    finally:
        for watcher in watchers:
            watcher.send_signal(signal.SIGINT)
        ended = [watcher.communicate(timeout=60) for watcher in watchers]
    assert [watcher.returncode for watcher in watchers] == [130, 130]
    assert [err for _, err in ended] == ["", ""]
    for line in said[1]:
        assert {"at", "kind", "what", "device"} <= json.loads(line).keys()
    assert any(f"a on {KEY}: is here" in line for line in said[0])


def test_watch_ends_when_the_broker_does(engines: Engines, broker: Brokers) -> None:
    watcher = subprocess.Popen(
        [*SHOAL, "memory", "watch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert watcher.stdout is not None
    assert watcher.stdout.readline()
    broker.end(broker.started[0])
    _, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 3
    assert "has closed the connection" in " ".join(err.split())


def test_top_on_a_terminal_follows_the_books_and_outlives_the_broker(engines: Engines, broker: Brokers) -> None:
    import pty

    engines.start("coder", 100 * MIB)
    controller, terminal = pty.openpty()
    top = subprocess.Popen(
        [*SHOAL, "memory", "top", "--interval", "0.05"], stdin=terminal, stdout=terminal, stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([controller], [], [], 1.0)[0]:
                seen += os.read(controller, 65536)
        seen = seen.split(text, 1)[1]

    try:
        wait_for(b"coder")
        wait_for(b"q leaves")
        engines.leases[0].ask(300 * MIB)
        wait_for(b"300.0 MiB")
        broker.end(broker.started[0])
        wait_for(b"trying again")
        broker.start("--headroom", "0")
        wait_for(b"q leaves")
        os.write(controller, b"q")
        wait_for(b"\x1b[?1049l")  # the screen is as it was
        assert top.wait(60) == 0
    finally:
        if top.poll() is None:
            top.kill()
        top.communicate()
        os.close(controller)


def test_every_command_and_option_is_documented() -> None:
    import typer.main

    from shoal.cli.memory import app

    page = (ROOT / "docs/memory.md").read_text()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert f"shoal memory {name}" in page, name
        for option in (text for parameter in command.params for text in parameter.opts if text.startswith("--")):
            assert option == "--help" or f"`{option}" in page, f"{name} {option}"
