"""What a crowd sends, and how it takes what it gets; the whole of it runs in `benchmarks/soak`."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shoal.bench.crowd import LEFT, WHOLE, Ask, Asker, Crowd, How, Used, documented, end_of
from shoal.engines.simulated.text import count
from tests.system.harness import a_shoal

MANUAL = Path(__file__).parents[2] / "docs" / "gateway.md"
KEYS = {name: f"sk-{name}" for name in ("app", "batch", "limited", "narrow")}


def asker(seed: int = 1) -> Asker:
    return Asker(("a", "b"), "e", KEYS, random.Random(seed))


def stream(*contents: str, usage: tuple[int, int] | None = None, end: bytes = b"data: [DONE]\n\n") -> bytes:
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": text}}]} for text in ("", *contents)]
    if usage is not None:
        events.append({"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}})
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + end


def error(code: str) -> bytes:
    return json.dumps({"error": {"message": "no", "code": code}}).encode()


def test_the_manual_tells_what_may_come() -> None:
    found = documented(MANUAL.read_text())
    assert {(429, "queue_full"), (429, "rate_limited"), (401, "key_expired"), (503, "controller_away")} <= found
    assert (500, "internal_error") not in found
    with pytest.raises(ValueError, match="no table"):
        documented("# Nothing")


STREAM = Ask("/v1/chat/completions", b"{}", "k", "m", True, tokens=(3, 2))
TOLD = Ask("/v1/chat/completions", b'{"include_usage": true}', "k", "m", True, tokens=(3, 2))
PLAIN = Ask("/v1/chat/completions", b"{}", "k", "m", tokens=(3, 2))
USAGE = b'{"usage": {"prompt_tokens": 3, "completion_tokens": %d}}'


@pytest.mark.parametrize(
    ("ask", "status", "body", "how", "end"),
    [
        (STREAM, 200, stream("x", "y"), "over", WHOLE),
        (STREAM, 200, stream("x"), "over", ""),
        (STREAM, 200, stream("x", "y", end=b""), "over", ""),
        (STREAM, 200, stream("x", "y", usage=(3, 2)), "over", ""),
        (TOLD, 200, stream("x", "y", usage=(3, 2)), "over", WHOLE),
        (TOLD, 200, stream("x", "y", usage=(3, 3)), "over", ""),
        (TOLD, 200, stream("x", "y"), "over", ""),
        (STREAM, 200, stream("x", end=b"data: " + error("engine_died") + b"\n\n"), "broken", (502, "engine_died")),
        (STREAM, 200, stream("x", "y") + b"data: " + error("engine_died") + b"\n\ndata: [DONE]\n\n", "over", ""),
        (STREAM, 200, stream("x"), "broken", ""),
        (STREAM, 200, stream("x"), "left", LEFT),
        (PLAIN, 200, USAGE % 2, "over", WHOLE),
        (PLAIN, 200, USAGE % 1, "over", ""),
        (PLAIN, 200, b"{", "over", ""),
        (PLAIN, 200, b"{", "broken", (502, "engine_died")),
        (PLAIN, 429, error("queue_full"), "over", (429, "queue_full")),
        (PLAIN, 502, b"Bad Gateway", "over", (502, "no code")),
        (PLAIN, 429, error("queue_full"), "broken", ""),
        (PLAIN, 0, b"refused", "broken", ""),
    ],
)
def test_an_end_is_what_it_looks_like(ask: Ask, status: int, body: bytes, how: How, end: object) -> None:
    assert end_of(ask, status, body, how) == end


def test_everything_is_sent_and_says_what_it_will_use() -> None:
    one = asker()
    asks = [one.any() for _ in range(2000)]
    assert {ask.key for ask in asks} == {*KEYS.values(), "sk-shoal-none", ""}
    assert {ask.leaves for ask in asks} == {None, 0, 1, 5}
    assert Counter(ask.path for ask in asks).keys() == {"/v1/chat/completions", "/v1/embeddings"}
    for ask in (ask for ask in asks if ask.tokens[1]):
        body = json.loads(ask.body)
        assert count("user: " + body["messages"][0]["content"]) == ask.tokens[0]
        assert body["max_tokens"] == ask.tokens[1]


def test_a_crowd_at_a_shoal_finds_what_it_was_promised() -> None:
    async def meet(url: str) -> Crowd:
        crowd = Crowd(url, asker(), documented(MANUAL.read_text()))
        assert await crowd.ramp(4, 0.5) > 0
        looking = asyncio.create_task(crowd.look("/v1/models", 0.05, keyed=False))
        await crowd.drive(40.0, 1.5, 30.0)
        looking.cancel()
        return crowd

    with a_shoal() as shoal:
        shoal.start()
        for name in "ab":
            shoal.add(name, "--tokens-per-second", "1000")
        shoal.add("e", "--task", "embed")
        crowd = asyncio.run(meet(shoal.url))
        assert shoal.stop() == 0
    assert crowd.wrong == []
    assert crowd.ends.total() == crowd.sent
    assert crowd.ends[WHOLE] == sum((used.requests for used in crowd.used.values()), 0)
    assert crowd.used["sk-app", "a"] != Used()
    assert crowd.looks.keys() == {"/v1/models 200"}
