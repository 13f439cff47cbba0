"""`shoal top` as a person has it: a process on a terminal of 80x24, and a real `shoal serve` with simulated engines."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.scripted import ScriptedShoal, instance
from tests.system.harness import a_shoal

PATIENCE = 60.0
_STEERING = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_LEFT = b"\x1b[?1049l"
"""What gives a terminal back what it showed before."""


class Terminal:
    """A pseudo-terminal with `shoal top` on it. `raw` is all that was written, `seen` the text that is left to see."""

    def __init__(self, url: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal.cli", "top", "--url", url], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **environment}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = b""
        self.raw = b""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], 0.1)[0]:
            return True
        try:
            found = os.read(self._ours, 65536)
        except OSError:  # nobody has the other end any more
            return False
        self.raw += found
        self.seen = _STEERING.sub(b"", self.seen + found)
        return bool(found)

    def see(self, *words: str) -> None:
        """Until all of these were written, in this order."""
        deadline = time.monotonic() + PATIENCE
        for word in words:
            while (at := self.seen.find(word.encode())) < 0:
                alive = self._read()
                assert time.monotonic() < deadline and alive, (word, self.seen.decode(errors="replace")[-4000:])
            self.seen = self.seen[at + len(word.encode()) :]

    def end(self) -> int:
        """Until it has ended; its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read():
            assert time.monotonic() < deadline, self.seen
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


Opened = Callable[..., Terminal]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens terminals that do not outlive the test."""
    terminals: list[Terminal] = []

    def start(url: str, **environment: Any) -> Terminal:
        terminals.append(Terminal(url, **environment))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_a_model_is_watched_and_steered(opened: Opened) -> None:
    with a_shoal(simulated_devices=["16GiB"]) as shoal:
        shoal.start()
        shoal.add("tiny", "--device-memory", "4GiB", "--enable-sleep-mode", devices=["simulated:0"])
        terminal = opened(shoal.url)
        terminal.see("live", "simulated:0", "tiny", "unloaded")
        terminal.type("l")
        terminal.see("tiny", "● ready")
        assert shoal.chat("tiny").status_code == 200
        terminal.type("f10%\r")
        terminal.see("done: shoal models set --floor 1717986918 tiny")
        assert shoal.model("tiny")["spec"]["floor"] == 16 * 2**30 // 10
        terminal.type("s")
        terminal.see("☾ sleeping")
        shoal.wait("tiny", "sleeping")
        terminal.type("w")
        terminal.see("● ready")
        terminal.type("c1MiB\r")  # below the floor
        terminal.see("refused: ")
        terminal.type("\x1b")
        time.sleep(0.5)  # a lone Esc is told from a sequence by what does not follow
        terminal.type("uy")
        terminal.see("– unloaded")
        shoal.stop()
        terminal.see("OLD", "trying again")
        terminal.type("q")
        assert terminal.end() == 0
        assert _LEFT in terminal.raw


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(opened: Opened, shoal: ScriptedShoal, number: signal.Signals) -> None:
    shoal.add("a", instance("a-1", "a", "ready"))
    terminal = opened(shoal.url)
    terminal.see("live", "● ready")
    terminal.process.send_signal(number)
    assert terminal.end() == 0
    assert _LEFT in terminal.raw


def test_ctrl_c_leaves(opened: Opened, shoal: ScriptedShoal) -> None:
    terminal = opened(shoal.url)
    terminal.see("live")
    terminal.type("\x03")
    assert terminal.end() == 0
    assert _LEFT in terminal.raw


def test_a_dumb_terminal_gets_ascii_without_colour(opened: Opened, shoal: ScriptedShoal) -> None:
    shoal.add("a", instance("a-1", "a", "ready"))
    terminal = opened(shoal.url, TERM="dumb")
    terminal.see("live", "cuda:0 /", "> a", "* ready", "q leave")
    terminal.type("q")
    assert terminal.end() == 0
    colours = [code for style in re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw) for code in style.split(b";")]
    assert not [code for code in colours if code.isdigit() and (30 <= int(code) <= 38 or 40 <= int(code) <= 48)]
    assert terminal.raw.isascii()


def test_nothing_is_drawn_where_there_is_no_shoal(opened: Opened) -> None:
    terminal = opened("http://127.0.0.1:9")
    terminal.see("error: nothing listens at http://127.0.0.1:9")
    assert terminal.end() == 3
    assert _LEFT not in terminal.raw
