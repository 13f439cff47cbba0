"""JSON bodies of megabytes: read while they come, passed on byte for byte, and never read in one go."""

from __future__ import annotations

import json

import pytest

from shoal.gateway import asking, inspect
from shoal.messages import VirtualModel
from tests.gateway.harness import World, eventually, post, route
from tests.gateway.native import NativeWorld, bearer, key, serves
from tests.gateway.test_counting import COUNTED, DONE, TEXT, streams

PAD = b"QUJD" * 500_000


def chunked(body: bytes, size: int = 50_000) -> bytes:
    """A request whose body is sent in chunks."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.fixture
def read_in_one_go(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were read in one go, each time."""
    sizes: list[int] = []
    read = inspect.read_request

    def measured(target: str, body: bytes | bytearray, **rest: object) -> object:
        sizes.append(len(body))
        return read(target, body, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "read_request", measured)
    return sizes


@pytest.mark.parametrize("make", [lambda body: post(body=body), chunked], ids=["length", "chunked"])
async def test_it_is_passed_on_as_it_came(world: World, make: object, read_in_one_go: list[int]) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    body = b'{"image":"' + PAD + b'", "tokens":[' + b"1234, " * 100_000 + b'0], "model" : "m","max_tokens":5}'
    client = await world.client()
    for _ in range(2):
        assert (await client.ask(make(body))).status == 200  # type: ignore[operator]
    assert [message.body for message in engine.received] == [body, body]
    assert (await client.ask(post())).status == 200
    if world.native:
        assert max(read_in_one_go) < 1000


async def test_one_of_brackets_alone_is_read_as_a_whole(native_world: NativeWorld, read_in_one_go: list[int]) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    body = b'{"tokens":[' + b"[1]," * 400_000 + b'0],"model":"m"}'
    assert (await native_world.ask(post(body=body))).status == 200
    assert [message.body for message in engine.received] == [body]
    assert read_in_one_go == [len(body)]


@pytest.mark.parametrize("body", [b'{"image":"' + PAD + b'"', b'{"image":"' + PAD + b'"}}', b'{"model":"m" "' + PAD])
async def test_what_is_no_json_at_the_top_is_refused(world: World, body: bytes) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    answer = await world.ask(post(body=body))
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert not engine.received
    assert (await world.ask(post())).status == 200


async def test_a_large_body_has_to_name_its_model_like_any_other(world: World) -> None:
    await world.start()
    answer = await world.ask(post(body=b'{"image":"' + PAD + b'"}'))
    assert (answer.status, answer.error["code"]) == (400, "model_required")
    answer = await world.ask(post(body=b'{"model":7,"image":"' + PAD + b'"}'))
    assert (answer.status, answer.error["code"]) == (400, "invalid_model")
    answer = await world.ask(post(body=b'{"image":"' + PAD + b'"}', extra=b"x-shoal-model: none\r\n"))
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "options",
    [{}, {"stream_options": {"include_usage": False, "continuous_usage_stats": True}}, {"stream_options": None}],
)
async def test_its_stream_is_asked_for_usage(
    native_world: NativeWorld, options: dict[str, object], read_in_one_go: list[int]
) -> None:
    engine = await native_world.engine(script=streams(TEXT, COUNTED, DONE))
    await native_world.begin(serves("m", engine), keys=(key("a"),))
    sent = {"model": "m", "stream": True, **options, "image": PAD.decode()}
    body = json.dumps(sent).encode() + b" \r\n"
    answer = await native_world.ask(post(body=body, extra=bearer("a")))
    assert answer.body == TEXT + DONE
    (message,) = engine.received
    assert message.json == {**sent, "stream_options": {"include_usage": True}}
    await eventually(lambda: native_world.controls.usage)
    assert [(used.prompt_tokens, used.completion_tokens) for used in native_world.controls.usage] == [(7, 3)]
    assert max(read_in_one_go) < 1000


@pytest.mark.parametrize("change", ["set", "defaults"])
async def test_what_a_virtual_model_says_of_usage_holds(native_world: NativeWorld, change: str) -> None:
    """A model that has its clients told what they used tells it those with large bodies, too."""
    engine = await native_world.engine(script=streams(TEXT, COUNTED, DONE))
    said = {"stream_options": {"include_usage": True}}
    virtual = VirtualModel("v", "m", set=said) if change == "set" else VirtualModel("v", "m", defaults=said)
    await native_world.begin(serves("m", engine), keys=(key("a"),), virtual=(virtual,))
    sent = {"model": "v", "stream": True, "image": PAD.decode()}
    answer = await native_world.ask(post(body=json.dumps(sent).encode(), extra=bearer("a")))
    assert answer.body == TEXT + COUNTED + DONE
    (message,) = engine.received
    assert message.body.count(b"stream_options") == 1
