"""`shoal` as a process of its own: pipes, signals, imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.cli.scripted import ScriptedShoal, instance

SHOAL = [sys.executable, "-m", "shoal.cli"]


def shoal_process(*args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SHOAL, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", env={**os.environ, "COLUMNS": "80", **environment},
    )  # fmt: skip


def run(*args: str, **environment: str) -> tuple[int, str, str]:
    process = shoal_process(*args, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from shoal.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('httpx2', 'fastapi', 'sqlalchemy', 'yaml', 'psutil', 'pydantic_settings', 'shoal.client',"
        " 'shoal.cli.serve', 'shoal.cli.engines', 'shoal.settings') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    for word in ("serve", "models", "engines", "doctor", "Exit codes", "cannot be reached"):
        assert word in done.stdout


def test_lazy_commands_show_their_own_help() -> None:
    code, out, _ = run("serve", "--help")
    assert code == 0
    assert "--port" in out


def test_output_in_a_pipe_has_no_colour_and_fits(shoal: ScriptedShoal) -> None:
    shoal.add("x" * 150, instance("i-1", "x" * 150, "ready"))
    for args in (["ps"], ["models", "ls"], ["devices"], ["status"]):
        code, out, err = run(*args)
        assert code == 0, err
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) <= 80
        assert "…" not in out


def test_a_terminal_that_cannot_show_a_name_is_no_reason_to_fail(shoal: ScriptedShoal) -> None:
    shoal.add("🐟")
    assert run("models", "ls", PYTHONIOENCODING="ascii")[0] == 0
    code, out, _ = run("models", "ls", "--json", PYTHONIOENCODING="ascii")
    assert code == 0
    assert json.loads(out)["models"][0]["name"] == "🐟"


@pytest.mark.parametrize(
    ("args", "code"), [(["ps"], 0), (["show"], 2), (["logs", "nosuch"], 4), (["ps", "--url", "http://127.0.0.1:9"], 3)]
)
def test_exit_codes(shoal: ScriptedShoal, args: list[str], code: int) -> None:
    got, _, err = run(*args)
    assert got == code
    assert "Traceback" not in err


def test_an_interrupted_wait_leaves_quietly(shoal: ScriptedShoal) -> None:
    shoal.add("m", desired=0)
    shoal.stages = [{"state": "starting"}]
    process = shoal_process("load", "m")
    until(lambda: shoal.event_connections == 1)
    assert process.stderr is not None
    assert "starting" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on loading" in err
    assert "Traceback" not in err


def test_interrupting_an_answer_ends_the_request(shoal: ScriptedShoal) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.answer = ["Once", "HANG"]
    process = shoal_process("chat", "m", "tell me a story")
    assert process.stdout is not None
    assert process.stdout.read(4) == "Once"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_followed_log_can_be_interrupted(shoal: ScriptedShoal) -> None:
    shoal.add("m", instance("m-1", "m", "ready"))
    shoal.logs["m-1"] = ["hello"]
    process = shoal_process("logs", "m", "-f")
    assert process.stdout is not None
    assert process.stdout.readline() == "hello\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""


def test_followed_events_are_json_lines(shoal: ScriptedShoal) -> None:
    process = shoal_process("events", "-f", "--json", "--limit", "0")
    until(lambda: shoal.event_connections == 1)
    message = {"at": 1.0, "level": "info", "kind": "x", "model": "m", "instance": None, "message": "m did it"}
    shoal.tell("message", message)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == message
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_conversation_remembers_and_survives_an_error(shoal: ScriptedShoal) -> None:
    """Through a pseudo-terminal, as a person would."""
    import pty

    shoal.add("m", instance("m-1", "m", "ready"))
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*SHOAL, "chat", "m"], stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "TERM": "dumb"}
    )
    os.close(terminal)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(controller, 4096)
        seen = seen.split(text, 1)[1]

    try:
        wait_for(b"> ")
        os.write(controller, b"first\n")
        wait_for(b"[b]you[/b]")
        wait_for(b"> ")
        shoal.answer = ["ERROR"]
        os.write(controller, b"second\n")
        wait_for(b"the engine died")
        wait_for(b"> ")
        shoal.answer = ["So be it"]
        os.write(controller, b"third\n")
        wait_for(b"So be it")
        wait_for(b"> ")
        os.write(controller, b"\x04")
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(controller)
    asked = [body["messages"] for _, path, body in shoal.requests if path == "/v1/chat/completions"]
    assert [[message["content"] for message in messages] for messages in asked] == [
        ["first"],
        ["first", "Hello [b]you[/b]", "second"],
        ["first", "Hello [b]you[/b]", "third"],
    ]
