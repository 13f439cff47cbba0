"""What travels is as large as real traffic, and can be read back."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.bench.relay import bodies, tally, wrk


@pytest.mark.parametrize("model", [bodies.ANSWERS, *bodies.STREAMS])
def test_requests_are_of_a_real_size_and_stream_where_the_model_does(model: str) -> None:
    asked = json.loads(bodies.chat(model))
    assert asked["model"] == model
    assert asked["stream"] is (model != bodies.ANSWERS)
    assert 600 <= len(bodies.chat(model)) <= 800
    head, _, body = bodies.request(model, 8000, "sk-x").partition(b"\r\n\r\n")
    assert body == bodies.chat(model)
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Authorization: Bearer sk-x" in head


def test_answers_and_events_are_of_a_real_size() -> None:
    assert 600 <= len(bodies.answer()) <= 800
    assert json.loads(bodies.answer())["object"] == "chat.completion"
    event = bodies.event(bodies.SPREAD, 123_456_789_012_345)
    assert 180 <= len(event) <= 240
    said = json.loads(event.removeprefix(b"data: "))
    assert said["choices"][0]["delta"]["content"] == "123456789012345"
    assert event.endswith(b"\n\n")


@given(st.lists(st.integers(10**9, 10**18), max_size=5))
def test_stamps_come_back_out_of_events_that_came_together(made: list[int]) -> None:
    assert bodies.stamps(b"".join(bodies.event(bodies.STEPS, stamp) for stamp in made)) == made


def test_stamps_are_found_as_others_write_json_and_nowhere_else() -> None:
    assert bodies.stamps(b'{"content": "12345678901"}') == [12345678901]
    assert bodies.stamps(b'{"content":"","created":1767225600} {"content":"hello"}') == []


def test_a_chunk_is_one_of_the_transfer_coding() -> None:
    assert bodies.chunk(b"x" * 200) == b"c8\r\n" + b"x" * 200 + b"\r\n"


WRK = """Running 5s test @ http://127.0.0.1:8000/v1/chat/completions
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   816.00us  100.00us   2.00ms   90.00%
Requests/sec:  58471.12
result {"requests":292355,"seconds":5.000123,"p50_us":816,"p99_us":1169,"failed":3}
"""


def test_what_wrk_says_is_read() -> None:
    served = tally.parse(WRK, tally.Served)
    assert served == tally.Served(292355, 5.000123, 816, 1169, 3)
    assert served.rate == pytest.approx(58469.6, abs=0.1)


def test_output_without_a_result_is_an_error_that_shows_it() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        tally.parse("unable to connect to 127.0.0.1:8000", tally.Served)
    with pytest.raises(ValueError):
        tally.parse('result {"requests":1}', tally.Served)


def test_every_tally_comes_back_as_it_was() -> None:
    streamed = tally.Streamed(100, 25_000, 5.0, 200.5, 900.0, 120.25, 400.0, 0.4, 40 << 20, 0)
    aborted = tally.Aborted(2000, 8.5, 200, 150, 0)
    assert tally.parse("noise\n" + tally.line(streamed), tally.Streamed) == streamed
    assert tally.parse(tally.line(aborted), tally.Aborted) == aborted


def test_the_script_holds_body_and_key_so_that_lua_reads_them_back() -> None:
    script = wrk.script(bodies.ANSWERS, "sk-x")
    (body,) = re.findall(r"\[==\[(.*)\]==\]", script)
    assert body.encode() == bodies.chat(bodies.ANSWERS)
    assert '"Bearer sk-x"' in script
    assert wrk.command("wrk", 8000, "a.lua", connections=64, seconds=5)[:4] == ["wrk", "-t1", "-c64", "-d5s"]
