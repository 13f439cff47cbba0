"""What goes through the relay arrives as it was sent, in both directions."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from tests.gateway.harness import Client, Engine, Message, World, eventually, get, post, reply, route


async def test_request_arrives_byte_for_byte(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    body = b'{ "model" : "m",\n "unknown_field": [1, {"x": "\\u00e9"}],"tools":[] }\r\n'
    target = "/v1/chat%2Fx/%7Ey?a=%2F+b&&empty=&plus=a+b%20c&utf=%C3%A9&x=%zz?"
    extra = (
        b"X-CaSe: Kept\r\nx-dup: 1\r\nAuthorization: Bearer k\r\nX-Dup: 2\r\nx-dup: 3\r\n"
        b"Accept-Encoding: br;q=0.1\r\nX-Empty: \r\nX-Utf: \xc3\xa9\r\n"
    )
    answer = await world.ask(post(target, body, extra))
    assert answer.status == 200
    (request,) = engine.received
    assert request.start == f"POST {target} HTTP/1.1"
    assert request.body == body
    assert request.others == [
        (b"Host", b"shoal.test"),
        (b"Content-Length", str(len(body)).encode()),
        (b"X-CaSe", b"Kept"),
        (b"x-dup", b"1"),
        (b"Authorization", b"Bearer k"),
        (b"X-Dup", b"2"),
        (b"x-dup", b"3"),
        (b"Accept-Encoding", b"br;q=0.1"),
        (b"X-Empty", b""),
        (b"X-Utf", b"\xc3\xa9"),
    ]


@pytest.mark.parametrize("target", ["/v1/x?", "/v1/x%3Fy?model=m", "/v1//x/../y/?q=%2f", "/v1/x?a=b#c"])
async def test_targets_are_not_normalised(world: World, target: str) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    await world.ask(post(target))
    assert engine.received[0].target == target


async def test_absolute_form_becomes_a_path(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    await world.ask(post("http://shoal.test/v1/x?a=1"))
    assert engine.received[0].target == "/v1/x?a=1"


async def test_hop_by_hop_headers_stay_behind(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=9\r\nConnection: X-Own, keep-alive\r\nX-Own: 1\r\nX-Stays: 1\r\n"
            b"content-length: 2\r\n\r\nok"
        )

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    extra = (
        b"Connection: keep-alive, X-Private\r\nX-Private: 1\r\nTE: trailers\r\nKeep-Alive: 3\r\n"
        b"Proxy-Connection: x\r\nX-Stays: 1\r\n"
    )
    answer = await world.ask(post(extra=extra))
    assert [name for name, _ in engine.received[0].others] == [b"Host", b"Content-Length", b"X-Stays"]
    assert answer.others == [(b"X-Stays", b"1"), (b"content-length", b"2")]


async def test_response_arrives_byte_for_byte(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 418 I am  a Teapot\r\nSet-Cookie: a=1\r\nX-CaSe: Kept\r\nset-cookie: b=2; Path=/x\r\n"
            b"X-Latin: caf\xe9\r\ncontent-length: 3\r\n\r\n\x00\xff\n"
        )

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    answer = await world.ask(post())
    assert answer.start == "HTTP/1.1 418 I am  a Teapot"
    assert answer.others == [  # no Date, no Server, no Content-Type that the engine did not send
        (b"Set-Cookie", b"a=1"),
        (b"X-CaSe", b"Kept"),
        (b"set-cookie", b"b=2; Path=/x"),
        (b"X-Latin", b"caf\xe9"),
        (b"content-length", b"3"),
    ]
    assert answer.body == b"\x00\xff\n"
    assert world.counts == {("m", "client_error"): 1}
    await world.ask(post())
    assert engine.received[1].get("cookie") is None


async def test_encoded_bodies_stay_encoded(world: World) -> None:
    packed = gzip.compress(b'{"text": "hello"}', mtime=0)

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head="HTTP/1.1 200 OK\r\nContent-Encoding: gzip", body=packed)

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    sent = gzip.compress(b'{"model": "m"}', mtime=0)
    answer = await world.ask(post(body=sent, extra=b"Content-Encoding: gzip\r\nX-Shoal-Model: m\r\n"))
    assert answer.body == packed
    assert answer.get("content-encoding") == "gzip"
    assert engine.received[0].body == sent
    refused = await world.ask(post(body=sent, extra=b"Content-Encoding: gzip\r\n"))
    assert (refused.status, refused.error["code"]) == (400, "model_required")


async def test_chunked_requests(world: World) -> None:
    """Chunk extensions end here (RFC 9112, section 7.1.1). aiohttp's relay sends the body's length."""
    engine = await world.engine()
    await world.start(route("m", engine))
    await world.ask(
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'8\r\n{"model"\r\n5;ext=1\r\n:"m"}\r\n0\r\nX-Trailer: 1\r\n\r\n'
    )
    (request,) = engine.received
    assert request.body == b'{"model":"m"}'
    framing = (b"Transfer-Encoding", b"chunked") if world.native else (b"Content-Length", b"13")
    assert request.others == [(b"Host", b"h"), framing]
    assert request.trailers == (b"X-Trailer: 1\r\n" if world.native else b"")


async def test_multipart_goes_through_untouched(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    body = (
        b'--b1\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n\x00\xff\r\n--b\r\n'
        b'\r\n--b1\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b1--\r\n'
    )
    answer = await world.ask(
        post("/v1/audio/transcriptions", body, b'Content-Type: multipart/form-data; boundary="b1"\r\n')
    )
    assert answer.status == 200
    assert engine.received[0].body == body


async def _stream(chunks: list[bytes], gate: asyncio.Queue[None], writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    for chunk in chunks:
        await gate.get()
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    await gate.get()
    writer.write(b"0\r\n\r\n")


async def test_stream_is_not_buffered(world: World) -> None:
    gate: asyncio.Queue[None] = asyncio.Queue()
    chunks = [b'data: {"n": %d}\n\n' % i for i in range(5)]

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _stream(chunks, gate, writer)

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post())
    head = await client.response(head_only=True)  # the head comes before any event does
    assert head.others == [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"Transfer-Encoding", b"chunked"),
    ]
    for chunk in chunks:  # each event is let go only when the one before has arrived
        gate.put_nowait(None)
        async with asyncio.timeout(20):
            assert await client.reader.readexactly(len(chunk) + 6) == b"%x\r\n%s\r\n" % (len(chunk), chunk)
    assert world.outstanding == {"m-0": 1}
    gate.put_nowait(None)
    assert await client.reader.readexactly(5) == b"0\r\n\r\n"
    await eventually(lambda: world.counts == {("m", "ok"): 1})
    assert world.outstanding == {}


async def test_controller_stream_is_not_buffered(world: World) -> None:
    gate: asyncio.Queue[None] = asyncio.Queue()

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _stream([b"event: snapshot\n\n"], gate, writer)

    await world.controller(script)
    await world.start()
    client = await world.client()
    await client.send(get("/api/v1/events"))
    assert (await client.response(head_only=True)).status == 200
    gate.put_nowait(None)
    assert await client.reader.readuntil(b"\n\n\r\n") == b"11\r\nevent: snapshot\n\n\r\n"
    assert world.counts == {}  # the controller's traffic is not inference


async def test_large_bodies_both_ways_with_backpressure(world: World) -> None:
    size = 24 * 2**20
    blob = bytes(range(256)) * (size // 256)
    body = b'{"model":"m","blob":"' + b"x" * size + b'"}'

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, body=blob)

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    answer = await world.ask(post(body=body))
    assert answer.body == blob
    assert engine.received[0].body == body


async def test_a_client_that_does_not_read_stops_the_engine(world: World) -> None:
    written = 0

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(1000):
            writer.write(b"10000\r\n" + b"z" * 65536 + b"\r\n")
            await writer.drain()
            written += 65536
        writer.write(b"0\r\n\r\n")

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(post())
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    last = -1
    while last != written or not written:
        last = written
        await asyncio.sleep(0.3)
    assert written < 40 * 2**20  # what fits into sockets and buffers, and not 62 MiB
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert len((await client.response()).body) == 1000 * 65536


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"OPTIONS", b"PUT", b"PATCH"])
async def test_methods_without_bodies(world: World, method: bytes) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    answer = await world.ask(get("/v1/responses/r%2F1", b"x-shoal-model: m\r\n", method))
    assert answer.status == 200
    assert engine.received[0].start == f"{method.decode()} /v1/responses/r%2F1 HTTP/1.1"
    assert engine.received[0].get("x-shoal-model") == "m"


async def test_head_204_and_304_have_no_body_and_keep_the_connection(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status = {"/v1/a": "200 OK", "/v1/b": "204 No Content", "/v1/c": "304 Not Modified", "/v1/d": "200 OK"}
        length = {
            "/v1/a": b"content-length: 5\r\n",
            "/v1/c": b"content-length: 7\r\n",
            "/v1/d": b"content-length: 0\r\n",
        }
        path = message.target.partition("?")[0]
        writer.write(f"HTTP/1.1 {status[path]}\r\n".encode() + length.get(path, b"") + b"etag: x\r\n\r\n")

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    head = await client.ask(get("/v1/a?model=m", method=b"HEAD"), head_only=True)
    assert head.others == [(b"content-length", b"5"), (b"etag", b"x")]
    for path, headers in (
        ("/v1/b", [(b"etag", b"x")]),
        ("/v1/c", [(b"content-length", b"7"), (b"etag", b"x")]),
        ("/v1/d", [(b"content-length", b"0"), (b"etag", b"x")]),
    ):
        answer = await client.ask(get(path + "?model=m"), head_only=True)
        assert answer.others == headers
    assert engine.connections == 1  # and the engine's connection was used again


async def test_head_of_a_chunked_resource(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    answer = await client.ask(get("/v1/a?model=m", method=b"HEAD"), head_only=True)
    assert answer.others == []
    assert (await client.ask(get("/v1/models"))).status == 200


async def test_a_body_that_ends_with_the_connection(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    answer = await world.ask(post())
    assert (answer.body, answer.complete) == (b"all of it", True)


async def test_http_1_0_client_gets_a_body_that_ends_with_the_connection(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(b'POST /v1/x HTTP/1.0\r\nContent-Length: 13\r\n\r\n{"model":"m"}')
    answer = await client.response(to_eof=True)
    assert answer.body == b"abcde"
    assert answer.others == [(b"Connection", b"close")]
    assert engine.received[0].get("host") == "localhost"


async def test_expect_100_continue(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    request = post(extra=b"Expect: 100-continue\r\n")
    head, _, body = request.partition(b"\r\n\r\n")
    await client.send(head + b"\r\n\r\n")
    assert (await client.response(head_only=True)).start == "HTTP/1.1 100 Continue"
    await client.send(body)
    assert (await client.response()).status == 200
    assert engine.received[0].get("expect") is None


async def test_pipelined_requests_are_answered_in_order(world: World) -> None:
    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, body=message.target.encode())

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    await client.send(b"".join(post(f"/v1/{i}") for i in range(5)))
    assert [(await client.response()).body for _ in range(5)] == [b"/v1/%d" % i for i in range(5)]


async def test_a_client_that_asks_to_close_is_closed(world: World) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    client = await world.client()
    answer = await client.ask(post(extra=b"Connection: close\r\n"))
    assert (answer.status, answer.get("connection"), answer.body) == (200, "close", b"{}")
    assert await client.closed() == b""
    assert engine.received[0].get("connection") is None


async def test_interim_responses_and_trailers(world: World) -> None:
    """They are passed on; aiohttp's relay does not get to see them."""

    async def script(message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-T\r\n"
            b"transfer-encoding: chunked\r\n\r\n3;e=1\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
        )

    engine = await world.engine(script=script)
    await world.start(route("m", engine))
    client = await world.client()
    for _ in range(2):
        answer = await client.ask(post(), head_only=world.native)
        if world.native:
            assert (answer.status, answer.headers) == (103, [(b"Link", b"x")])
            answer = await client.response()
            assert answer.trailers == b"X-T: 1\r\n"
        announced = [(b"Trailer", b"X-T")] if world.native else []
        assert (answer.status, answer.body) == (200, b"abc")
        assert answer.others == [*announced, (b"Transfer-Encoding", b"chunked")]


async def test_engine_on_a_tcp_port(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await Client(reader, writer).response()
        await reply(writer, body=request.start.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    class Tcp(Engine):
        @property
        def address(self) -> str:
            return f"tcp:127.0.0.1:{port}"

    await world.start(route("m", Tcp(world.folder / "unused")))
    answer = await world.ask(post("/v1/x?a=%2F"))
    assert answer.body == b"POST /v1/x?a=%2F HTTP/1.1"
    server.close()


@pytest.mark.parametrize(
    "path", ["/tokenize", "/detokenize", "/rerank", "/v2/rerank", "/score", "/classify", "/pooling"]
)
async def test_root_paths_of_engines(world: World, path: str) -> None:
    engine = await world.engine()
    await world.start(route("m", engine))
    assert (await world.ask(post(path))).status == 200
    assert engine.received[0].target == path


async def test_other_paths_go_to_the_controller(world: World) -> None:
    controller = await world.controller()
    await world.start()
    for path in ("/", "/api/v1/models", "/metrics", "/v1", "/tokenizer", "/health/live", "/sleep"):
        assert (await world.ask(get(path))).status == 200
    sent = await world.ask(post("/api/v1/models?x=%2F", b"not json", b"X-A: 1\r\n"))
    assert sent.status == 200
    assert controller.received[-1].body == b"not json"
    assert controller.received[-1].target == "/api/v1/models?x=%2F"
    assert len(controller.received) == 8
