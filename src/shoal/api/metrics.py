"""`/metrics`: Shoal's own numbers and the engines', under one set of names whatever the engine calls them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from shoal import __version__
from shoal.api.metrics_memory import memory_families
from shoal.api.metrics_relay import relay_families
from shoal.api.metrics_residency import residency_families
from shoal.engines.base import EngineMetrics
from shoal.fleet.state import InstanceState

if TYPE_CHECKING:
    from shoal.controller import Controller

CONTENT_TYPE = CONTENT_TYPE_LATEST
_ENGINE_HELP = {
    "requests_running": "Requests that the engine works on",
    "requests_waiting": "Requests that wait inside the engine",
    "kv_usage": "Part of the KV cache in use, 0 to 1",
    "prompt_tokens_total": "Prompt tokens read",
    "generation_tokens_total": "Tokens generated",
    "preemptions_total": "Requests put back for want of KV cache",
    "prefix_queries_total": "Prompt tokens looked up in the prefix cache",
    "prefix_hits_total": "Prompt tokens found in the prefix cache",
    "steps_total": "Steps of the engine",
    "kv_token_bytes": "Bytes of KV cache that a token takes on each device",
    "device_memory": "Bytes that the engine says it holds on its devices",
}


def render(controller: Controller) -> bytes:
    """All metrics as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(namespace="shoal_controller", registry=registry)
    PlatformCollector(registry=registry)
    registry.register(_Fleet(controller))
    return generate_latest(registry)


class _Fleet:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Metric]:
        """The families of this moment."""
        fleet = self._controller.manager.fleet
        info = GaugeMetricFamily("shoal_info", "Shoal's version", labels=["version"])
        info.add_metric([__version__], 1)
        yield info

        models = GaugeMetricFamily("shoal_model_instances", "Instances by model and state", labels=["model", "state"])
        for name in fleet.models:
            counts = dict.fromkeys(InstanceState, 0)
            for instance in fleet.of_model(name):
                counts[instance.state] += 1
            for state, count in counts.items():
                models.add_metric([name, state.value], count)
        yield models

        yield from residency_families(self._controller.manager, self._controller.effects.now())
        yield from self._naps()
        restarts = GaugeMetricFamily("shoal_instance_restarts", "Crashes in a row", labels=["model", "instance"])
        memory = GaugeMetricFamily(
            "shoal_instance_memory_bytes", "Memory that an instance holds", labels=["model", "instance", "kind"]
        )
        for instance in fleet.instances.values():
            if not instance.state.ended:
                restarts.add_metric([instance.model, instance.id], instance.restarts)
                for kind, size in instance.memory.items():
                    memory.add_metric([instance.model, instance.id, kind], size)
        yield restarts
        yield memory
        yield from self._devices()
        yield from memory_families(fleet)
        yield from self._engines()
        yield from relay_families(fleet)

        unsaved = GaugeMetricFamily("shoal_store_unsaved", "Changes that could not be saved yet")
        unsaved.add_metric([], self._controller.store.unsaved)
        yield unsaved
        watchers = GaugeMetricFamily("shoal_event_watchers", "Open event streams")
        watchers.add_metric([], self._controller.hub.watchers)
        yield watchers

    def _naps(self) -> Iterator[Metric]:
        labels = ["model", "outcome"]
        count = CounterMetricFamily("shoal_naps", "Sleeps and wakes that ended, by how", labels=labels)
        took = CounterMetricFamily("shoal_nap_seconds", "What they took together, without draining", labels=labels)
        for (model, outcome), (times, seconds) in self._controller.manager.fleet.naps.items():
            count.add_metric([model, outcome], times)
            took.add_metric([model, outcome], seconds)
        yield count
        yield took

    def _devices(self) -> Iterator[Metric]:
        total = GaugeMetricFamily("shoal_device_memory_total_bytes", "Size of a device", labels=["device", "kind"])
        used = GaugeMetricFamily("shoal_device_memory_used_bytes", "Bytes in use on it", labels=["device", "kind"])
        busy = GaugeMetricFamily("shoal_device_utilization", "How busy it is, 0 to 1", labels=["device", "kind"])
        for device in self._controller.manager.fleet.devices:
            labels = [device.id, device.kind]
            total.add_metric(labels, device.memory_total)
            used.add_metric(labels, device.memory_used)
            if device.utilization is not None:
                busy.add_metric(labels, device.utilization)
        yield total
        yield used
        yield busy

    def _engines(self) -> Iterator[Metric]:
        fleet = self._controller.manager.fleet
        ready = [i for i in fleet.instances.values() if i.state is InstanceState.READY and i.id in fleet.metrics]
        for field in dataclasses.fields(EngineMetrics):
            labels = ["model", "instance", "engine"]
            text = _ENGINE_HELP[field.name]
            name = f"shoal_engine_{field.name.removesuffix('_total')}"
            family: CounterMetricFamily | GaugeMetricFamily
            if field.name.endswith("_total"):
                family = CounterMetricFamily(name, text, labels=labels)
            else:
                family = GaugeMetricFamily(name, text, labels=labels)
            for instance in ready:
                value = getattr(fleet.metrics[instance.id], field.name)
                if value is not None:
                    family.add_metric([instance.model, instance.id, instance.engine], value)
            yield family
