"""What counts as proof that an instance gave its memory back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import EngineMetrics
from shoal.fleet.footprint import LEAST, TOLERANCE, Footprint, Footprints, must_free, why_not_asleep
from shoal.fleet.state import Device, Instance, InstanceState
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import Books, BrokerError, DeviceBook

GIB = 2**30
sizes = st.integers(0, 2**45)


def instance(*devices: str) -> Instance:
    return Instance("i", "m", "vllm", InstanceState.DRAINING, devices, 0.0, 0.0)


def gpu(index: int, used: int) -> Device:
    return Device(f"cuda:{index}", "cuda", "GPU", 80 * GIB, used, uuid=f"GPU-{index}")


def book(key: str, **backed: int) -> DeviceBook:
    members = tuple(
        msgspec.structs.replace(MemberState(engine, 0, 1, 0, 0, None, 100, 0, 0, 0, 0, 0, None), backed=size)
        for engine, size in backed.items()
    )
    return DeviceBook(DeviceState(key, 80 * GIB, 80 * GIB, 0, 0, 0, 0), members)


class Reader(Footprints):
    """With books and a driver that the test gives; `by_process` None: the driver does not tell."""

    def __init__(
        self, devices: Sequence[Device], books: Books | None = None, host: Mapping[str, int] | None = None,
        by_process: int | None = None,
    ) -> None:  # fmt: skip
        async def read() -> Sequence[Device]:
            return devices

        super().__init__(Path("/nowhere"), read, lambda: host or {}, lambda _: 1)
        self._tool = _Books(books)  # type: ignore[assignment]
        self._processes = by_process

    def _by_process(self, instance: str, devices: Sequence[Device]) -> int | None:
        return self._processes


class _Books:
    def __init__(self, books: Books | None) -> None:
        self._found = books

    async def list(self) -> Books:
        if self._found is None:
            raise BrokerError("no_broker", "nobody answers")
        return self._found


@given(sizes, st.none() | sizes, sizes, sizes)
def test_a_sleep_is_one_only_if_weights_and_cache_came_back(
    held: int, weights: int | None, kv: int, after: int
) -> None:
    wrong = why_not_asleep(held, weights, kv, Footprint(after, 0))
    assert (wrong == "") == (max(0, held - after) >= must_free(weights, kv))
    assert why_not_asleep(held, weights, kv, Footprint(after, 1)), "a cache that still leases is none that sleeps"


def test_how_much_has_to_come_back() -> None:
    assert must_free(10 * GIB, 2 * GIB) == int(TOLERANCE * 12 * GIB)
    assert must_free(None, 0) == LEAST, "an engine that frees nothing is caught although its weights are not known"
    assert must_free(None, GIB) == int(TOLERANCE * GIB)
    assert must_free(0, 0) == 0
    assert why_not_asleep(16 * GIB, 15 * GIB, 0, Footprint(16 * GIB, 0)) == (
        "0 B came back, and its weights and KV cache are 13.5 GiB at least"
    )


async def test_what_the_engine_says_counts_with_what_its_processes_hold() -> None:
    reader = Reader([gpu(0, 9 * GIB)], {}, {"i": GIB, "other": 5 * GIB}, by_process=7 * GIB)
    assert await reader.read(instance("cuda:0"), EngineMetrics(device_memory=4 * GIB)) == Footprint(5 * GIB, 0)


async def test_on_the_host_its_processes_count() -> None:
    host = Device("host", "host", "RAM", 64 * GIB, 40 * GIB)
    reader = Reader([host], {"host": book("host", i=GIB, other=2 * GIB)}, {"i": 6 * GIB})
    assert await reader.read(instance("host"), None) == Footprint(6 * GIB, GIB)


async def test_on_gpus_the_driver_counts_and_else_the_devices_less_the_caches_of_others() -> None:
    devices = [gpu(0, 30 * GIB), gpu(1, 20 * GIB), gpu(2, 70 * GIB)]
    books = {f"GPU-{n}": book(f"GPU-{n}", i=GIB, other=3 * GIB) for n in range(3)}
    both = instance("cuda:0", "cuda:1")
    told = Reader(devices, books, by_process=17 * GIB)
    assert await told.read(both, EngineMetrics()) == Footprint(17 * GIB, 3 * GIB)
    untold = Reader(devices, books)
    assert await untold.read(both, EngineMetrics()) == Footprint((30 + 20 - 2 * 3) * GIB, 3 * GIB)
    alone = Reader(devices, None)
    assert await alone.read(both, None) == Footprint(50 * GIB, 0)


class _Driver:
    """NVML as far as it is asked for what processes hold."""

    def __init__(self, **processes: dict[int, int | None]) -> None:
        self._processes = processes

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid.replace("-", "_")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        class Process(msgspec.Struct):
            pid: int
            usedGpuMemory: int | None  # noqa: N815

        return [Process(pid, size) for pid, size in self._processes[handle].items()]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ({1: 5, 99: 7}, {1: 6}, 11),
        ({99: 7}, {1: 6}, None),  # the driver knows it by another process id
        ({1: None}, {1: 6}, None),
    ],
)
def test_what_the_driver_counts_is_taken_only_if_it_knows_the_processes_on_every_device(
    first: dict[int, int | None], second: dict[int, int | None], found: int | None
) -> None:
    async def none() -> Sequence[Device]:
        return []

    reader = Footprints(Path("/nowhere"), none, dict, lambda _: 1)
    reader._nvml = _Driver(GPU_0=first, GPU_1=second)
    assert reader._by_process("i", [gpu(0, 0), gpu(1, 0)]) == found
