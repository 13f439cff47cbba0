"""Spans reach their collector, which can do no harm."""

from __future__ import annotations

import asyncio
import logging
import queue
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from shoal.gateway import relay_native, tracing
from tests.gateway.harness import Client, Engine
from tests.gateway.native import NativeWorld, chat, serves
from tests.gateway.traced import told


class Collector:
    """Speaks OTLP over HTTP."""

    def __init__(self) -> None:
        self.received: queue.Queue[tuple[str, ExportTraceServiceRequest]] = queue.Queue()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.received.put((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


async def test_spans_reach_a_collector_at_the_latest_when_the_relay_stops(
    native_world: NativeWorld, collector: Collector
) -> None:
    engine = await native_world.engine()
    native_world.configure(otlp_endpoint=collector.url + "/")
    await native_world.begin(serves("m", engine))
    assert (await native_world.ask(chat())).status == 200
    await native_world.native_relay.stop(1)
    native_world.relay = None
    path, exported = await asyncio.to_thread(collector.received.get, timeout=20)
    assert path == "/v1/traces"
    (of_relay,) = exported.resource_spans
    spans = [span for scope in of_relay.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["chat m", "engine"]
    assert {attribute.key for attribute in of_relay.resource.attributes} >= {"service.name", "service.version"}
    (at_engine,) = [span for span in spans if span.name == "engine"]
    assert told(engine.received[0])[1] == at_engine.span_id.hex()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits for collectors, no words about them, and no thread that is left."""
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT", 0.3)
    monkeypatch.setattr(relay_native, "ENDING", 0.3)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    logging.getLogger("opentelemetry").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("accepts", [False, True])
async def test_a_collector_that_is_away_or_says_nothing_costs_no_request(
    native_world: NativeWorld, accepts: bool
) -> None:
    engine: Engine = await native_world.engine()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if accepts:
            silent.listen()
        native_world.configure(otlp_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        await native_world.begin(serves("m", engine))
        client: Client = await native_world.client()
        for _ in range(1500):  # more spans than a batch, and than the queue has room for
            assert (await client.ask(chat())).status == 200
        await native_world.native_relay.stop(1)
        native_world.relay = None
