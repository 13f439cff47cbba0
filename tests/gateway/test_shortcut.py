"""The shortcut for whole events: what passes, what is counted and what is said of a stream are the same without it."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass

import pytest

from shoal.gateway import inference
from shoal.gateway.inference import Inference
from shoal.gateway.usage import Tokens
from tests.gateway.harness import Message, Script, eventually, post
from tests.gateway.native import NativeWorld, bearer, key, serves

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"hello"}}]}\n\n'
NO_USAGE = b'data: {"choices":[{"delta":{"content":"hello"}}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":%d}}\n\n'
END = b"0\r\n\r\n"


def chunk(content: bytes, size: bytes = b"%x") -> bytes:
    return size % len(content) + b"\r\n" + content + b"\r\n"


def stream(seed: int) -> list[bytes]:
    """Pieces of a stream as they come over the wire: mostly whole events, and all that may lie between them."""
    chance = random.Random(seed)
    pieces = [chunk(EVENT)]
    for number in range(60):
        kinds: list[list[bytes]] = [
            [chunk(EVENT)],
            [chunk(NO_USAGE)],
            [chunk(EVENT * 2)],
            [chunk(EVENT * 30)],  # longer than a small chunk
            [chunk(EVENT) * 2],
            [chunk(USAGE % number)],
            [chunk(EVENT.replace(b"\n", b"\r\n"))],
            [chunk(b": nothing\n\n")],
            [chunk(b"event: more\n" + EVENT)],
            [chunk(EVENT, b"%X")],
            [chunk(EVENT, b"%05x")],
            [chunk(EVENT, b"%x;extension=1")],
            [chunk(EVENT[:-1]), chunk(b"\n" + EVENT)],
            [chunk(EVENT[:9]), chunk(EVENT[9:])],
            [chunk(EVENT + EVENT[:9]), chunk(EVENT[9:])],
            [chunk(EVENT)[:20], chunk(EVENT)[20:]],
            [chunk(EVENT)[:2], chunk(EVENT)[2:]],
            [chunk(EVENT)[:-1], b"\n"],
            [chunk(EVENT) + chunk(EVENT)[:9], chunk(EVENT)[9:]],
            [chunk(b"\n\n")],
        ]
        pieces += chance.choices(kinds, [30, 10, *[1] * (len(kinds) - 2)])[0]
    return pieces


@dataclass(frozen=True)
class Seen:
    """All that anybody can see of a stream."""

    body: bytes
    complete: bool
    shown: int
    tokens: Tokens | None
    first_byte: int
    between: int
    seconds: float
    bytes_out: int


class Taps:
    """The request of each model, and how often its shortcut was taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: dict[str, int] = {}
        real, way = Inference._pass_events, Inference._shortcut

        def counted(request: Inference, data: bytes) -> bool:
            done = real(request, data)
            self.taken[request.model] = self.taken.get(request.model, 0) + done
            return done

        monkeypatch.setattr(Inference, "_pass_events", counted)
        monkeypatch.setattr(Inference, "_shortcut", lambda one: way(one) if one.model == "short" else None)


async def begin(world: NativeWorld, leave: asyncio.Event) -> None:
    """Serve `short` and `long`, each by an engine of its own."""
    routes = [serves(model, await world.engine(model, begins(leave))) for model in ("short", "long")]
    await world.begin(*routes, keys=(key("a"),))


async def seen(
    world: NativeWorld,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    pieces: list[bytes],
    extra: bytes,
    leave: asyncio.Event,
) -> Seen:
    """Ask `model`, and let `pieces` come one by one, a second apart."""
    (client,) = await world.sent(post(body=b'{"model":"%b","stream":true}' % model.encode(), extra=extra))
    (request,) = world.native_relay.requests.values()
    await eventually(lambda: request.response is not None)
    ticks = itertools.count(int(request.arrived) + 1)
    with monkeypatch.context() as patch:
        patch.setattr(inference, "monotonic", lambda: float(next(ticks)))
        for piece in pieces:
            assert request.upstream is not None
            request.upstream.data_received(piece)
    shown = request.view(0.0, None).tokens
    leave.set()
    answer = await client.response()
    assert request.ended
    reader = request._reader
    assert reader is not None
    relay = world.native_relay
    spent = next(one for one in relay.measures.distributions() if (one.name, one.model) == ("inter_chunk", model))
    return Seen(
        answer.body, answer.complete, shown, reader.tokens,
        world.observed("first_byte", model), world.observed("inter_chunk", model), spent.total,
        world.traffic(model).bytes_out,
    )  # fmt: skip


def begins(leave: asyncio.Event) -> Script:
    """An engine that sends a head, and at the end hangs up."""

    async def script(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await leave.wait()
        leave.clear()
        writer.close()

    return script


@pytest.mark.parametrize("asks", [False, True], ids=["usage is taken out", "usage is wanted"])
@pytest.mark.parametrize("seed", range(12))
async def test_nobody_can_tell_a_stream_that_took_the_shortcut(
    native_world: NativeWorld, monkeypatch: pytest.MonkeyPatch, seed: int, asks: bool
) -> None:
    leave, taps = asyncio.Event(), Taps(monkeypatch)
    await begin(native_world, leave)
    extra = b"" if asks else bearer("a")  # nobody's usage is not asked for, and so passes
    pieces = [*stream(seed), chunk(USAGE % 99), END]
    short = await seen(native_world, monkeypatch, "short", pieces, extra, leave)
    long = await seen(native_world, monkeypatch, "long", pieces, extra, leave)
    assert short == long
    assert taps.taken["short"] > len(pieces) // 4, "as most of its pieces were whole events"
    assert taps.taken.get("long", 0) == 0
    assert short.complete
    assert (b'"usage":{' in short.body) == asks
    assert short.tokens == Tokens(7, 99)


@pytest.mark.parametrize("seed", range(12))
async def test_a_stream_that_breaks_off_ends_with_the_same_error(
    native_world: NativeWorld, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    leave, taps = asyncio.Event(), Taps(monkeypatch)
    await begin(native_world, leave)
    pieces = stream(seed)[: 20 + seed]
    ends = [await seen(native_world, monkeypatch, model, pieces, bearer("a"), leave) for model in ("short", "long")]
    told = [one.body.replace(b"'short'", b"'long'") for one in ends]
    assert told[0] == told[1]
    assert b"engine_died" in told[0]
    assert not ends[0].complete
    assert ends[0].tokens == ends[1].tokens
    assert ends[0].shown == ends[1].shown
    assert taps.taken["short"]


async def test_each_event_moves_a_deadline_where_there_is_one(
    native_world: NativeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave, taps = asyncio.Event(), Taps(monkeypatch)
    native_world.configure(response_timeout=30.0)
    engine = await native_world.engine(script=begins(leave))
    await native_world.begin(serves("short", engine))
    await seen(native_world, monkeypatch, "short", [chunk(EVENT)] * 5 + [END], b"", leave)
    assert not taps.taken
