"""Metrics of the relays: what they carry, what waits, how requests ended and how long they took."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from shoal.fleet.snapshot import Fleet
from shoal.gateway.measures import BOUNDS
from shoal.messages import Distribution, DistributionName, RelayReport

_HISTOGRAMS: dict[DistributionName, tuple[str, str]] = {
    "queue": ("shoal_request_queue_seconds", "Time that requests waited in the relay"),
    "first_byte": ("shoal_request_first_byte_seconds", "Time until the first byte of the answer"),
    "inter_chunk": ("shoal_request_inter_chunk_seconds", "Time between two chunks of a stream"),
    "duration": ("shoal_request_duration_seconds", "Time of whole requests"),
    "overhead": ("shoal_relay_overhead_seconds", "Time that the relay itself added"),
}
_PHASES = ("queued", "held")
_CLASS = ["relay", "model", "priority"]


def relay_families(fleet: Fleet) -> Iterator[Metric]:
    """The families of this moment."""
    connected = GaugeMetricFamily("shoal_relays", "Relays that are connected")
    connected.add_metric([], len(fleet.relays))
    yield connected
    # A relay that connects anew may be there twice for a moment; no series may.
    reports = {report.relay: report for report in fleet.relays.values()}.values()

    outstanding = GaugeMetricFamily(
        "shoal_relay_outstanding", "Requests that run on an instance", labels=["relay", "instance"]
    )
    requests = CounterMetricFamily("shoal_relay_requests", "Requests that ended", labels=[*_CLASS, "outcome"])
    size = CounterMetricFamily("shoal_relay_bytes", "Bytes of bodies", labels=["relay", "model", "direction"])
    tokens = CounterMetricFamily("shoal_relay_tokens", "Tokens by the engines", labels=["relay", "model", "kind"])
    for report in reports:
        for instance, count in report.outstanding.items():
            outstanding.add_metric([report.relay, instance], count)
        for item in report.counts:
            requests.add_metric([report.relay, item.model, item.priority, item.outcome], item.requests)
        for traffic in report.traffic:
            size.add_metric([report.relay, traffic.model, "in"], traffic.bytes_in)
            size.add_metric([report.relay, traffic.model, "out"], traffic.bytes_out)
            tokens.add_metric([report.relay, traffic.model, "prompt"], traffic.prompt_tokens)
            tokens.add_metric([report.relay, traffic.model, "completion"], traffic.completion_tokens)
    yield from (outstanding, _waiting(fleet), requests, size, tokens)

    for name, (metric, text) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(metric, text, labels=_CLASS)
        for report in reports:
            _add(family, name, report)
        yield family


def _waiting(fleet: Fleet) -> Metric:
    """Of every model, over all relays, so that a queue which is empty again reads 0."""
    sums: Counter[tuple[str, str]] = Counter({(name, phase): 0 for name in fleet.models for phase in _PHASES})
    for report in fleet.relays.values():
        for item in report.waiting:
            sums[item.model, "queued"] += item.queued
            sums[item.model, "held"] += item.held
    family = GaugeMetricFamily("shoal_relay_waiting", "Requests that wait in the relays", labels=["model", "phase"])
    for labels, count in sums.items():
        family.add_metric(labels, count)
    return family


def _add(family: HistogramMetricFamily, name: DistributionName, report: RelayReport) -> None:
    bounds = [*map(floatToGoString, BOUNDS[name]), "+Inf"]
    for item in report.distributions:
        if item.name == name and _fits(item):
            sums = itertools.accumulate(item.counts)
            buckets = list(zip(bounds, map(float, sums), strict=True))
            family.add_metric([report.relay, item.model, item.priority], buckets, item.total)


def _fits(item: Distribution) -> bool:
    """Whether it has the buckets known here; those of a relay of another version may be others."""
    return len(item.counts) == len(BOUNDS[item.name]) + 1
