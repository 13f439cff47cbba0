"""The relays' metrics, read back by Prometheus's own parser."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from shoal.api.metrics_relay import relay_families
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Model
from shoal.gateway.measures import BOUNDS, Measures
from shoal.messages import Distribution, RelayReport, Waiting
from tests.fleet.fakes import spec

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class _Relays(Collector):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> list[Metric]:
        return list(relay_families(self._fleet))


def scrape(*reports: RelayReport, models: tuple[str, ...] = ("m",)) -> tuple[dict[str, Metric], Series]:
    """Families by name, and the value of each series."""
    fleet = Fleet(models={name: Model(spec(name), "api", 0.0) for name in models}, relays=dict(enumerate(reports)))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Relays(fleet))
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    series: Series = {}
    for family in families.values():
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in series, "a series twice fails the whole scrape"
            series[key] = sample.value
    return families, series


def of(series: Series, name: str, **labels: str) -> float:
    return series[name, tuple(sorted(labels.items()))]


def report(name: str, measures: Measures, **fields: object) -> RelayReport:
    return RelayReport(
        name, "e", 1, {"m-0": 2}, measures.counts(), distributions=measures.distributions(),
        traffic=measures.traffic(), **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def test_everything_has_its_family_and_its_type() -> None:
    measures = Measures()
    measures.of("m", "high").ended("ok")
    measures.of("m", "normal").ended("refused")
    books = measures.of("m", "normal")
    books.bytes_in, books.bytes_out, books.prompt_tokens, books.completion_tokens = 10, 20, 3, 4
    families, series = scrape(report("a", measures), report("b", measures))
    assert {name: family.type for name, family in families.items()} == {
        "shoal_relays": "gauge",
        "shoal_relay_outstanding": "gauge",
        "shoal_relay_waiting": "gauge",
        "shoal_relay_requests": "counter",
        "shoal_relay_bytes": "counter",
        "shoal_relay_tokens": "counter",
        "shoal_request_queue_seconds": "histogram",
        "shoal_request_first_byte_seconds": "histogram",
        "shoal_request_inter_chunk_seconds": "histogram",
        "shoal_request_duration_seconds": "histogram",
        "shoal_relay_overhead_seconds": "histogram",
    }
    assert of(series, "shoal_relays") == 2
    for relay in "ab":
        assert of(series, "shoal_relay_outstanding", relay=relay, instance="m-0") == 2
        labels = {"relay": relay, "model": "m"}
        assert of(series, "shoal_relay_requests_total", **labels, priority="high", outcome="ok") == 1
        assert of(series, "shoal_relay_requests_total", **labels, priority="normal", outcome="refused") == 1
        assert of(series, "shoal_relay_bytes_total", **labels, direction="in") == 10
        assert of(series, "shoal_relay_bytes_total", **labels, direction="out") == 20
        assert of(series, "shoal_relay_tokens_total", **labels, kind="prompt") == 3
        assert of(series, "shoal_relay_tokens_total", **labels, kind="completion") == 4


def test_what_waits_is_the_sum_over_relays_and_zero_where_nothing_does() -> None:
    none = Measures()
    _, series = scrape(
        report("a", none, waiting=(Waiting("m", queued=2, held=1),)),
        report("b", none, waiting=(Waiting("m", queued=3),)),
        models=("m", "idle"),
    )
    assert of(series, "shoal_relay_waiting", model="m", phase="queued") == 5
    assert of(series, "shoal_relay_waiting", model="m", phase="held") == 1
    assert of(series, "shoal_relay_waiting", model="idle", phase="queued") == 0


def test_buckets_are_cumulative() -> None:
    measures = Measures()
    for seconds in (0.001, 0.002, 0.002, 700.0):
        measures.of("m", "low").queue.add(seconds)
    measures.of("m", "low").overhead.add(15e-6)
    _, series = scrape(report("a", measures))
    labels = {"relay": "a", "model": "m", "priority": "low"}
    found = [
        (dict(key)["le"], value)
        for (name, key), value in series.items()
        if name == "shoal_request_queue_seconds_bucket"
    ]
    assert [float(le) for le, _ in found] == [*BOUNDS["queue"], float("inf")]
    assert [value for _, value in found] == [1, *[3] * (len(BOUNDS["queue"]) - 1), 4]
    assert of(series, "shoal_request_queue_seconds_count", **labels) == 4
    assert of(series, "shoal_request_queue_seconds_sum", **labels) == 700.005
    assert of(series, "shoal_relay_overhead_seconds_bucket", **labels, le="1e-05") == 0
    assert of(series, "shoal_relay_overhead_seconds_bucket", **labels, le="2e-05") == 1


def test_names_are_escaped_and_strange_reports_do_not_spoil_the_scrape() -> None:
    measures = Measures()
    name = 'org/a "quoted"\\ é'
    measures.of(name, "normal").queue.add(1.0)
    other_buckets = Distribution("m", "normal", "queue", (1, 2, 3), 4.0)
    fine = report("a", measures)
    _, series = scrape(fine, fine, RelayReport("b", "e", 1, {}, distributions=(other_buckets,)))
    assert of(series, "shoal_request_queue_seconds_count", relay="a", model=name, priority="normal") == 1
    assert not any(dict(key).get("relay") == "b" for _, key in series)


def test_without_relays_there_is_nothing_to_report() -> None:
    _, series = scrape(models=())
    assert series == {("shoal_relays", ()): 0}
