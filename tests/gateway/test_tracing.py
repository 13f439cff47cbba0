"""Traces: which spans a request leaves, and what an engine is told of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from shoal.gateway import relay_native
from shoal.gateway.tracing import Tracing
from shoal.messages import VirtualModel
from tests.gateway.harness import Message, eventually, get, post, reply
from tests.gateway.native import Gate, NativeWorld, bearer, chat, key, serves, sleeps
from tests.gateway.traced import told

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: vendor=1\r\n".encode()
UNSAMPLED = f"traceparent: 00-{TRACE}-{PARENT}-00\r\n".encode()


class Spans:
    """What a relay has traced."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def of(self, relay: relay_native.NativeRelay) -> Spans:
        """Trace this relay."""
        relay.tracing = Tracing(SimpleSpanProcessor(self.exporter))
        return self

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    async def request(self) -> dict[str, ReadableSpan]:
        """The spans of the one request that there was, by name; that of the request itself as `request`."""
        await eventually(lambda: any(span.kind is SpanKind.SERVER for span in self.all))
        spans = {"request" if span.kind is SpanKind.SERVER else span.name: span for span in self.all}
        assert len(spans) == len(self.all)
        return spans


@pytest.fixture
def spans() -> Spans:
    return Spans()


def about(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def interval(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


async def answer_with_usage(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reply(
        writer,
        head="HTTP/1.1 200 OK\r\ncontent-type: application/json",
        body=b'{"object":"chat.completion","usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}',
    )


async def test_a_request_is_a_span_with_the_engine_below_it(native_world: NativeWorld, spans: Spans) -> None:
    engine = await native_world.engine(script=answer_with_usage)
    await native_world.begin(serves("m", engine))
    spans.of(native_world.native_relay)
    before = time.time_ns()
    answer = await native_world.ask(chat())
    after = time.time_ns()
    found = await spans.request()
    assert set(found) == {"request", "engine"}
    request, at_engine = found["request"], found["engine"]
    assert request.name == "chat m"
    assert about(request) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "shoal",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "shoal.outcome": "ok",
        "shoal.priority": "normal",
        "shoal.request.id": answer.get("x-request-id"),
        "url.path": "/v1/chat/completions",
    }
    assert request.parent is None
    assert request.status.status_code is StatusCode.UNSET
    assert at_engine.kind is SpanKind.CLIENT
    assert at_engine.parent is not None
    assert at_engine.parent.span_id == request.context.span_id
    assert about(at_engine) == {"http.response.status_code": 200, "shoal.instance": "m-0"}
    start, end = interval(request)
    engine_start, engine_end = interval(at_engine)
    (first,) = at_engine.events
    assert (first.name, engine_start <= first.timestamp <= engine_end) == ("first byte", True)
    slack = 1_000_000  # two clocks are read one after the other
    assert before - slack <= start <= engine_start <= engine_end == end <= after + slack
    assert told(engine.received[0]) == (
        f"{request.context.trace_id:032x}",
        f"{at_engine.context.span_id:016x}",
        True,
    )
    assert request.resource.attributes["service.name"] == "shoal"


async def test_a_trace_of_the_client_goes_on(native_world: NativeWorld, spans: Spans) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    spans.of(native_world.native_relay)
    await native_world.ask(chat(extra=SAMPLED))
    found = await spans.request()
    parent = found["request"].parent
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}", parent.is_remote) == (TRACE, PARENT, True)
    assert told(engine.received[0]) == (TRACE, f"{found['engine'].context.span_id:016x}", True)
    assert engine.received[0].get("tracestate") == "vendor=1"


async def test_a_client_that_wants_no_trace_gets_none_and_its_engine_is_told(
    native_world: NativeWorld, spans: Spans
) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    spans.of(native_world.native_relay)
    assert (await native_world.ask(chat(extra=UNSAMPLED))).status == 200
    trace, span, recorded = told(engine.received[0])
    assert (trace, recorded) == (TRACE, False)
    assert span != PARENT
    await native_world.ask(chat())
    assert [span.name for span in spans.all if span.kind is SpanKind.SERVER] == ["chat m"]


@pytest.mark.parametrize(
    "header",
    [
        b"traceparent: nonsense\r\n",
        b"traceparent: 00-%s-0000000000000000-01\r\n" % TRACE.encode(),
        b"traceparent: ff-%s-%s-01\r\n" % (TRACE.encode(), PARENT.encode()),
        b"tracestate: vendor=1\r\n",
        b"traceparent: \xff\xfe\r\ntracestate: \xff\r\n",
    ],
)
async def test_what_is_no_trace_begins_a_new_one(native_world: NativeWorld, spans: Spans, header: bytes) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    spans.of(native_world.native_relay)
    assert (await native_world.ask(chat(extra=header))).status == 200
    found = await spans.request()
    assert found["request"].parent is None
    assert told(engine.received[0])[0] == f"{found['request'].context.trace_id:032x}" != TRACE
    assert engine.received[0].get("tracestate") is None


async def test_a_turn_that_was_waited_for_is_a_span(native_world: NativeWorld, spans: Spans) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine, capacity=1))
    spans.of(native_world.native_relay)
    first, second = await native_world.sent(chat(name="a"), chat(name="b"))
    gate.let_go("a")
    await first.response()
    gate.let_go("b")
    answer = await second.response()
    await eventually(lambda: len(spans.all) == 5)
    (waited,) = [span for span in spans.all if span.name == "queue"]
    (request,) = [span for span in spans.all if about(span).get("shoal.request.id") == answer.get("x-request-id")]
    (at_engine,) = [
        s for s in spans.all if s.name == "engine" and s.parent and s.parent.span_id == request.context.span_id
    ]
    assert waited.parent is not None
    assert waited.parent.span_id == request.context.span_id
    start, end = interval(waited)
    assert (end - start) / 1e6 == pytest.approx(float(answer.get("x-shoal-queue-ms") or 0), abs=0.1)
    assert interval(request)[0] <= start
    assert end == interval(at_engine)[0]


async def test_a_wake_that_was_waited_for_is_a_span(native_world: NativeWorld, spans: Spans) -> None:
    engine = await native_world.engine()
    await native_world.begin(sleeps("m"))
    spans.of(native_world.native_relay)
    (client,) = await native_world.sent(chat())
    await native_world.controls.tell(serves("m", engine))
    answer = await client.response()
    found = await spans.request()
    assert set(found) == {"request", "wake", "engine"}
    start, end = interval(found["wake"])
    assert (end - start) / 1e6 == pytest.approx(float(answer.get("x-shoal-wake-ms") or 0), abs=0.1)


async def test_a_request_that_ends_before_it_is_at_an_engine(native_world: NativeWorld, spans: Spans) -> None:
    await native_world.begin(sleeps("m"))
    spans.of(native_world.native_relay)
    (client,) = await native_world.sent(chat(extra=SAMPLED))
    (id,) = await native_world.controls.requests()
    assert await native_world.controls.cancel(id)
    assert (await client.response()).status == 503
    found = await spans.request()
    assert set(found) == {"request", "wake"}
    request, wake = found["request"], found["wake"]
    assert request.parent is not None
    assert (about(request)["error.type"], request.status.status_code) == ("request_cancelled", StatusCode.ERROR)
    assert about(request)["http.response.status_code"] == 503
    assert interval(wake)[1] == interval(request)[1]
    assert about(wake)["error.type"] == "request_cancelled"


@pytest.mark.parametrize(
    ("request_", "name", "status", "error", "fault"),
    [
        (chat("nobody"), "chat", 404, "model_not_found", False),
        (chat(extra=b"Authorization: Bearer sk-shoal-wrong\r\n"), "chat", 401, "invalid_key", False),
        (chat(extra=bearer("a")), "chat m", 429, "rate_limited", False),
        (post("/v1/embeddings", b"{", bearer("a")), "embeddings", 400, "invalid_json", False),
        (post("/v1/made/up", extra=bearer("a")), "inference m", 429, "rate_limited", False),
    ],
)
async def test_refusals_are_spans_without_an_engine(
    native_world: NativeWorld, spans: Spans, request_: bytes, name: str, status: int, error: str, fault: bool
) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), keys=(key("a", requests_per_minute=1),))
    await native_world.ask(chat(extra=bearer("a")))
    spans.of(native_world.native_relay)
    answer = await native_world.ask(request_)
    assert answer.status == status
    found = await spans.request()
    assert set(found) == {"request"}
    request = found["request"]
    assert request.name == name
    assert (about(request)["http.response.status_code"], about(request)["error.type"]) == (status, error)
    assert (request.status.status_code is StatusCode.ERROR) == fault
    assert bearer("a")[15:30].decode() not in str(request.to_json())


async def test_an_error_of_the_engine(native_world: NativeWorld, spans: Spans) -> None:
    async def fail(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reply(writer, head="HTTP/1.1 500 Internal Server Error")

    engine = await native_world.engine(script=fail)
    await native_world.begin(serves("m", engine))
    spans.of(native_world.native_relay)
    assert (await native_world.ask(chat())).status == 500
    for span in (await spans.request()).values():
        assert about(span)["http.response.status_code"] == 500
        assert about(span)["error.type"] == "500"
        assert span.status.status_code is StatusCode.ERROR


async def test_an_engine_that_dies_while_it_answers(native_world: NativeWorld, spans: Spans) -> None:
    async def die(_: Message, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"a\r\ndata: {}\n\n\r\n")
        await writer.drain()
        writer.close()

    engine = await native_world.engine(script=die)
    await native_world.begin(serves("m", engine))
    spans.of(native_world.native_relay)
    client = await native_world.send(chat(stream=True))
    assert b"engine_died" in await client.closed()
    for span in (await spans.request()).values():
        assert about(span)["http.response.status_code"] == 200
        assert about(span)["error.type"] == "engine_died"
        assert span.status.status_code is StatusCode.ERROR


async def test_an_engine_that_takes_no_connection(native_world: NativeWorld, spans: Spans) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    await engine.stop()
    spans.of(native_world.native_relay)
    assert (await native_world.ask(chat(extra=b"X-Shoal-Hold: off\r\n"))).status == 503
    for span in (await spans.request()).values():
        assert about(span)["error.type"] == "engine_connection_failed"


async def test_a_client_that_leaves_is_no_error(native_world: NativeWorld, spans: Spans) -> None:
    gate = Gate()
    engine = await native_world.engine(script=gate)
    await native_world.begin(serves("m", engine))
    spans.of(native_world.native_relay)
    client = await native_world.send(chat(name="a"))
    await eventually(lambda: gate.begun)
    client.close()
    found = await spans.request()
    assert about(found["request"])["shoal.outcome"] == "cancelled"
    assert "http.response.status_code" not in about(found["request"])
    assert {span.status.status_code for span in found.values()} == {StatusCode.UNSET}


async def test_a_virtual_model_is_named_beside_the_one_that_serves(native_world: NativeWorld, spans: Spans) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine), virtual=(VirtualModel("v", "m", set={"temperature": 0}),))
    spans.of(native_world.native_relay)
    await native_world.ask(chat("v"))
    request = (await spans.request())["request"]
    assert request.name == "chat v"
    assert about(request)["gen_ai.request.model"] == "v"
    assert about(request)["gen_ai.response.model"] == "m"
    assert told(engine.received[0])


async def test_without_tracing_the_clients_headers_go_on_as_they_came(native_world: NativeWorld) -> None:
    engine = await native_world.engine()
    await native_world.begin(serves("m", engine))
    await native_world.ask(chat(extra=SAMPLED))
    assert native_world.native_relay.tracing is None
    assert engine.received[0].get("traceparent") == f"00-{TRACE}-{PARENT}-01"
    assert engine.received[0].get("tracestate") == "vendor=1"


async def test_what_the_controller_answers_is_not_traced(native_world: NativeWorld, spans: Spans) -> None:
    controller = await native_world.controller()
    await native_world.begin()
    spans.of(native_world.native_relay)
    assert (await native_world.ask(get("/api/v1/models", SAMPLED))).status == 200
    assert (await native_world.ask(get("/v1/models", SAMPLED))).status == 200
    assert controller.received[0].get("traceparent") == f"00-{TRACE}-{PARENT}-01"
    assert spans.all == ()


def test_opentelemetry_is_not_imported_where_it_is_not_asked_for() -> None:
    code = "import sys, shoal.gateway.__main__, shoal.gateway.relay_native\n"
    code += "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    subprocess.run([sys.executable, "-c", code], check=True)
