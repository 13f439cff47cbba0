"""Spans of inference requests, for OpenTelemetry. Imported only where a collector is configured.

A request is one server span with up to two children: `queue` or `wake`, if it had to wait, and `engine`. They are made
with the times at which things happened, most of them when the request has ended. What is sent to an engine names the
`engine` span as its parent, so that the engine's own spans stand below it. Spans leave on a thread of their own; those
that a collector does not take in time are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from shoal import __version__
from shoal.errors import ShoalError
from shoal.messages import Outcome, Priority

EXPORT_TIMEOUT = 5.0
"""Seconds that a collector may take for a batch."""
_OTHER = "inference"
_OPERATIONS = {
    "/v1/audio/transcriptions": "transcription",
    "/v1/audio/translations": "translation",
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/images/generations": "image_generation",
    "/v1/messages": "chat",
    "/v1/messages/count_tokens": "tokenize",
    "/v1/realtime": "realtime",
    "/v1/responses": "chat",
    **{
        f"{prefix}/{name}": name for prefix in ("", "/v1", "/v2") for name in ("rerank", "score", "classify", "pooling")
    },
    "/detokenize": "detokenize",
    "/tokenize": "tokenize",
    "/v2/embed": "embeddings",
}
"""What a path does, by OpenTelemetry's names (`gen_ai.operation.name`) where there is one. The paths that clients can
make up are without number, so others share a name."""
_propagator = TraceContextTextMapPropagator()


class Trace:
    """The spans of one request. Times are those of `time.monotonic`."""

    __slots__ = ("_context", "_engine", "_engine_from", "_epoch", "_request", "_tracing", "lines")

    def __init__(self, tracing: Tracing, request: Span, epoch: int) -> None:
        self._tracing = tracing
        self._request = request
        self._context = set_span_in_context(request, Context())
        self._epoch = epoch
        self._engine: Span | None = None
        self._engine_from = 0.0
        self.lines: list[bytes] = []
        """What an engine is told: header lines."""

    def to_engine(self, now: float) -> None:
        """The request goes to an engine, with `lines`."""
        self._engine_from = now
        self._engine = self._start("engine", now, SpanKind.CLIENT)
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(self._engine, Context()))
        self.lines = [f"{name}: {value}".encode("latin-1", "replace") for name, value in carrier.items()]

    def end(
        self,
        now: float,
        outcome: Outcome,
        *,
        status: int | None,
        error: ShoalError | None,
        served: str,
        instance: str,
        priority: Priority,
        held: bool,
        waited: float,
        first: float,
        tokens: tuple[int, int] | None,
    ) -> None:
        """All is over. `status` is that of the engine's answer, None if there was none; `error` is what the client was
        told instead, or in the middle of it. `served` is the name that the engine was asked for. It waited so many
        seconds, for its turn or (`held`) until the model served; `first` is when the answer's first bytes came, 0 if
        none did; `tokens` of the prompt and of the answer, as the engine counted.
        """
        request = self._request
        failed = error is not None and (error.status >= 500 or status is not None)
        if waited:
            until = self._engine_from or now
            span = self._start("wake" if held else "queue", until - waited)
            if self._engine is None and failed:
                self._fail(span, error)
            span.end(self._ns(until))
        if self._engine is not None:
            if instance:
                self._engine.set_attribute("shoal.instance", instance)
            if first:
                self._engine.add_event("first byte", timestamp=self._ns(first))
            if status is not None:
                self._engine.set_attribute("http.response.status_code", status)
                if status >= 400:
                    self._engine.set_attribute("error.type", str(status))
                    self._engine.set_status(Status(StatusCode.ERROR))
            if failed:
                self._fail(self._engine, error)
            self._engine.end(self._ns(now))
        attributes: dict[str, AttributeValue] = {"shoal.outcome": outcome, "shoal.priority": priority}
        if served:
            attributes["gen_ai.response.model"] = served
        if tokens is not None:
            attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"] = tokens
        if status is None and error is not None:
            status = error.status
        if status is not None:
            attributes["http.response.status_code"] = status
        request.set_attributes(attributes)
        if failed:
            self._fail(request, error)
        elif error is not None:  # the client's own fault, which is none of the server's
            request.set_attribute("error.type", error.code)
        elif status is not None and status >= 400:
            request.set_attribute("error.type", str(status))
            if status >= 500:
                request.set_status(Status(StatusCode.ERROR))
        request.end(self._ns(now))

    def _start(self, name: str, at: float, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        return self._tracing.tracer.start_span(name, self._context, kind, start_time=self._ns(at))

    def _fail(self, span: Span, error: ShoalError | None) -> None:
        if error is not None:
            span.set_attribute("error.type", error.code)
            span.set_status(Status(StatusCode.ERROR, error.message))

    def _ns(self, at: float) -> int:
        return self._epoch + int(at * 1e9)


class Tracing:
    """Makes spans and hands them to a processor, which belongs to it from now on.

    Which requests are traced: those whose client says so in `traceparent`; of the others, and whatever else there is
    to say, OpenTelemetry's own variables decide (`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, …).
    """

    headers = frozenset({b"traceparent", b"tracestate"})
    """Request headers (W3C Trace Context) that are replaced on the way to an engine."""

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create({"service.version": __version__, "process.pid": os.getpid()})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "shoal"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("shoal.gateway", __version__)

    def begin(
        self, fields: Mapping[bytes, bytes], method: bytes, path: str, model: str, id: str, arrived: float
    ) -> Trace:
        """A request with these header fields, by lower-case name. `model` is the one that it names, "" if that is none
        that there is; `arrived` its time of `time.monotonic`."""
        epoch = time.time_ns() - time.monotonic_ns()
        operation = _OPERATIONS.get(path, _OTHER)
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "shoal",
            "http.request.method": method.decode("latin-1"),
            "url.path": path[:256],
            "shoal.request.id": id,
        }
        if model:
            attributes["gen_ai.request.model"] = model
        request = self.tracer.start_span(
            f"{operation} {model}" if model else operation,
            _parent(fields),
            SpanKind.SERVER,
            attributes,
            start_time=epoch + int(arrived * 1e9),
        )
        return Trace(self, request, epoch)

    async def stop(self, patience: float) -> None:
        """Hand over what is left, for at most `patience` seconds. No request may be traced from now on."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # A daemon: a collector that does not answer must not keep the process.
        threading.Thread(target=flush, name="flush-spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await done.wait()


def to_collector(endpoint: str) -> Tracing:
    """Spans to a collector that speaks OTLP over HTTP at this URL, to which `/v1/traces` is added."""
    url = endpoint.rstrip("/")
    if not url.endswith("/v1/traces"):
        url += "/v1/traces"
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT)))


def _parent(fields: Mapping[bytes, bytes]) -> Context:
    """What the client says that the request is a part of; nothing if it says so twice, or wrongly."""
    if b"traceparent" not in fields:
        return Context()
    names = ("traceparent", "tracestate")
    carrier = {name: fields.get(name.encode(), b"").decode("latin-1") for name in names}
    return _propagator.extract(carrier, Context())
