"""Streams of bytes that were right before they were damaged, in ten thousand ways; a million in a nightly run.

Whatever comes, on either side: nothing is raised and nothing hangs; engines and clients get whole messages that a
strict parser reads; and it makes no difference how the bytes were cut. The dice are seeded: a failure comes again.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Iterator

import pytest

from tests.gateway.recorded import REQUESTS, RESPONSES
from tests.gateway.wire import PROBE, PROBED, Answer, Bench, Outcome, Seen, bench

FRAMES = int(os.environ.get("SHOAL_TEST_FRAMES", "10000"))
"""Damaged streams, half of them of clients and half of engines; a nightly run sets 1,000,000."""
HALF = FRAMES // 2
pytestmark = pytest.mark.timeout(max(120, FRAMES // 20))

TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0\r\n\r\n", b"5\r\nabcde\r\n", b"\r\n\r\n",
    b"\xff", b"0", b"f" * 16, b"Content-Length: 5\r\n", b"content-length: 57\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"chunked", b"Connection: keep-alive\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"Host: h\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.0", b"HTTP/1.1",
    b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n", b'{"model":"m"}', b"data: x\n\n", b"HEAD",
    b"Content-Type: text/event-stream\r\n",
]  # fmt: skip


def damaged(dice: random.Random, streams: list[bytes]) -> bytes:
    """One or a few of the streams, one after the other, with a few things put in, taken out, doubled or changed."""
    raw = bytearray(b"".join(dice.choices(streams, k=dice.choice((1, 1, 2, 3)))))
    for _ in range(dice.choice((0, 1, 1, 1, 2, 4))):
        at = dice.randrange(len(raw) + 1)
        end = min(len(raw), at + dice.choice((1, 1, 2, 8, 40)))
        match dice.randrange(6):
            case 0:
                raw[at:at] = dice.choice(TOKENS)
            case 1:
                del raw[at:end]
            case 2:
                raw[at:end] = dice.choice(TOKENS)
            case 3:
                raw[at:at] = raw[at:end]
            case 4:
                raw[at:end] = dice.randbytes(end - at)
            case 5:
                line = raw.find(b"\r\n", at) + 2  # where a field may begin
                raw[line:line] = dice.choice(TOKENS)
    return bytes(raw)


def cut(dice: random.Random, raw: bytes) -> list[bytes]:
    places = sorted(dice.randrange(len(raw) + 1) for _ in range(dice.choice((1, 2, 5, 20))))
    return [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True) if start < end]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """An engine that breaks off is worth a warning each time, and these do so a million times."""
    caplog.set_level(logging.ERROR, "shoal")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("b")) as made:
        yield made


def _same(whole: Outcome, pieces: Outcome, *methods: bytes) -> list[Answer]:
    """The answers, if a stream was understood alike; an error may have another text, and so may what broke off."""
    assert whole.seen == pieces.seen
    assert whole.closed == pieces.closed
    answers = whole.answers(methods)
    assert [_gist(answer) for answer in answers] == [_gist(answer) for answer in pieces.answers(methods)]
    return answers


def _gist(answer: Answer) -> tuple[int, bool, bytes]:
    refused = answer.get(b"server") == b"shoal"
    return (4 if refused else answer.status, answer.complete, answer.body if answer.complete and not refused else b"")


def test_requests(one: Bench, caplog: pytest.LogCaptureFixture) -> None:
    dice = random.Random(1)
    streams = list(REQUESTS.values())
    reached = refused = 0
    for number in range(HALF):
        raw = damaged(dice, streams)
        try:
            whole = one.exchange([raw])
            if b"HEAD" in raw:  # its answers cannot be read without knowing which they are
                continue
            pieces = one.exchange(cut(dice, raw))
            answers = whole.answers()
            if b"multipart" not in raw.lower() or all(answer.status == 200 for answer in [*answers, *pieces.answers()]):
                _same(whole, pieces)  # a form that is refused before it is there, whole, ends the connection
            assert all(answer.complete for answer in answers)
            assert {answer.status for answer in answers} <= {200, 400, 404, 405, 413, 417, 431, 501, 503, 505}
            refused += sum(answer.status >= 400 for answer in answers)
        except BaseException:
            print(number, raw)
            raise
        assert not caplog.records, raw
        reached += len(whole.seen)
    assert HALF / 4 < reached < 3 * HALF  # or it is not that which is tested here
    assert HALF / 20 < refused < 2 * HALF


def test_responses(one: Bench) -> None:
    dice = random.Random(2)
    streams = list(RESPONSES.values())
    good = 0
    for number in range(HALF):
        raw, close, method = damaged(dice, streams), dice.random() < 0.5, dice.choice((b"GET", b"GET", b"HEAD"))
        request = method + b" /v1/x?model=m HTTP/1.1\r\nHost: h\r\n\r\n"
        try:
            if re.search(rb"[0-9A-Fa-f][ \t]+(;|\r\n)", raw):
                continue  # blanks before a chunk's extension are right, but h11 does not know them
            whole = _answered(one, [raw], close, request)
            answers = _same(whole, _answered(one, cut(dice, raw), close, request), method)
            assert len(answers) <= 2
            if len(whole.seen) == 2:  # the connection goes on as if nothing had been
                assert answers[1].body == b"-the-end-"
                good += 1
        except BaseException:
            print(number, close, method, raw)
            raise
    assert good > FRAMES / 4


def _answered(one: Bench, pieces: list[bytes], close: bool, request: bytes) -> Outcome:
    def say(seen: Seen) -> tuple[list[bytes], bool]:
        return ([PROBED], False) if seen.target.startswith(b"/v1/probe") else (pieces, close)

    one.say = say
    return one.exchange([request, PROBE])
