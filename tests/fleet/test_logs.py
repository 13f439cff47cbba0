"""Reading logs: their end, and what comes new, whatever engines print."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.logs import MAX_LINE, Follower, chunks, older, tail


def test_the_tail_spans_both_halves(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    older(log).write_text("one\ntwo\n")
    log.write_text("three\nfour\n")
    assert tail(log, 3) == ["two", "three", "four"]
    assert tail(log, 10) == ["one", "two", "three", "four"]
    assert b"".join(chunks(log)) == b"one\ntwo\nthree\nfour\n"


def test_no_log_is_no_lines(tmp_path: Path) -> None:
    assert tail(tmp_path / "none", 5) == []
    assert Follower(tmp_path / "none").read() == []


def test_binary_progress_bars_and_endless_lines_are_shown_as_text(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"\xff\x00bad\n 10%\r 50%\r100%\n" + b"x" * (MAX_LINE * 3) + b"\n")
    first, second, third = tail(log, 10)
    assert first == "\ufffd\x00bad"
    assert second == "100%"
    assert third.startswith("xxx")
    assert third.endswith(f"… ({MAX_LINE * 3} characters)")


def test_a_follower_survives_rotation(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("a\n")
    follower = Follower(log)
    assert follower.read() == ["a"]
    with log.open("a") as file:
        file.write("b\n")
    log.rename(older(log))
    log.write_text("c\n")
    assert follower.read() + follower.read() == ["b", "c"]
    follower.close()


def test_a_follower_can_start_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("old\n")
    follower = Follower(log, at_end=True)
    assert follower.read() == []
    with log.open("a") as file:
        file.write("new\n")
    assert follower.read() == ["new"]
    follower.close()


@given(text=st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=50), cut=st.integers(0, 60))
def test_a_line_cut_anywhere_arrives_whole(text: str, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "engine.log")
        data = f"{text}\n".encode()
        log.write_bytes(data[:cut])
        follower = Follower(log)
        lines = follower.read()
        with log.open("ab") as file:
            file.write(data[cut:])
        lines += follower.read()
        follower.close()
        assert lines == [text]
