"""What counts as proof that an instance gave its memory back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.base import EngineMetrics
from shoal.fleet.footprint import LEAST, TOLERANCE, Footprint, Footprints, Way, must_free, why_not_asleep
from shoal.fleet.state import Device, Instance
from shoal.fleet.state import InstanceState as S
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import Books, BrokerError, DeviceBook

GIB = 2**30
sizes = st.integers(0, 2**45)


def instance(*devices: str, name: str = "i", state: S = S.DRAINING, since: float = 0.0) -> Instance:
    return Instance(name, "m", "vllm", state, devices, 0.0, since)


def gpu(index: int, used: int) -> Device:
    return Device(f"cuda:{index}", "cuda", "GPU", 80 * GIB, used, uuid=f"GPU-{index}")


def book(key: str, **backed: int) -> DeviceBook:
    members = tuple(
        msgspec.structs.replace(MemberState(engine, 0, 1, 0, 0, None, 100, 0, 0, 0, 0, 0, None), backed=size)
        for engine, size in backed.items()
    )
    return DeviceBook(DeviceState(key, 80 * GIB, 80 * GIB, 0, 0, 0, 0), members)


def says(*held: int) -> tuple[int, str]:
    """The answer of workers that hold so much."""
    return 200, json.dumps({"results": [{"held": one, "pages": 0} for one in held]})


class Reader(Footprints):
    """With books, a driver, workers and neighbours that the test gives; `by_process` None: the driver does not tell."""

    def __init__(
        self, devices: Sequence[Device], books: Books | None = None, host: Mapping[str, int] | None = None,
        by_process: int | None = None, workers: tuple[int, str] | None = None,
    ) -> None:  # fmt: skip
        async def read() -> Sequence[Device]:
            return self.devices

        super().__init__(Path("/nowhere"), read, lambda: host or {}, lambda _: 1, lambda: self.near)
        self._tool = _Books(books)  # type: ignore[assignment]
        self.devices = devices
        self.processes = by_process
        self.workers = workers
        self.near: Sequence[Instance] = ()
        self.asked = 0

    def _by_process(self, instance: str, devices: Sequence[Device]) -> int | None:
        return self.processes

    async def _ask(self) -> tuple[int, str] | None:
        self.asked += 1
        return self.workers

    async def of(
        self, one: Instance, metrics: EngineMetrics | None = None, way: Way | None = None, falling: Collection[str] = ()
    ) -> Footprint | None:
        return await self.read(one, metrics, self._ask, falling=falling, way=way)


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
    before = Footprint(held, kv)
    wrong = why_not_asleep(before, weights, Footprint(after, 0))
    assert (wrong == "") == (max(0, held - after) >= must_free(weights, kv))
    assert why_not_asleep(before, weights, Footprint(after, 1)), "a cache that still leases is none that sleeps"
    assert why_not_asleep(before, weights, None), "what cannot be read shows nothing"


def test_how_much_has_to_come_back() -> None:
    assert must_free(10 * GIB, 2 * GIB) == int(TOLERANCE * 12 * GIB)
    assert must_free(None, 0) == LEAST, "an engine that frees nothing is caught although its weights are not known"
    assert must_free(None, GIB) == int(TOLERANCE * GIB)
    assert must_free(0, 0) == 0
    assert why_not_asleep(Footprint(16 * GIB, 0), 15 * GIB, Footprint(16 * GIB, 0)) == (
        "0 B came back, and its weights and KV cache are 13.5 GiB at least"
    )


async def test_what_the_engine_says_counts_with_what_its_processes_hold() -> None:
    reader = Reader([gpu(0, 9 * GIB)], {}, {"i": GIB, "other": 5 * GIB}, by_process=7 * GIB)
    found = await reader.of(instance("cuda:0"), EngineMetrics(device_memory=4 * GIB))
    assert found == Footprint(5 * GIB, 0, Way.ENGINE)
    assert await reader.of(instance("cuda:0"), None, Way.ENGINE) is None, "this time it says nothing"


async def test_on_the_host_its_processes_count() -> None:
    host = Device("host", "host", "RAM", 64 * GIB, 40 * GIB)
    reader = Reader([host], {"host": book("host", i=GIB, other=2 * GIB)}, {"i": 6 * GIB}, workers=says(GIB))
    assert await reader.of(instance("host")) == Footprint(6 * GIB, GIB, Way.HOST)
    assert not reader.asked


async def test_on_gpus_the_driver_counts_then_the_workers_and_else_the_devices_less_the_caches_of_others() -> None:
    devices = [gpu(0, 30 * GIB), gpu(1, 20 * GIB), gpu(2, 70 * GIB)]
    books = {f"GPU-{n}": book(f"GPU-{n}", i=GIB, other=3 * GIB) for n in range(3)}
    both = instance("cuda:0", "cuda:1")
    told = Reader(devices, books, by_process=17 * GIB, workers=says(9 * GIB, 9 * GIB))
    assert await told.of(both, EngineMetrics()) == Footprint(17 * GIB, 3 * GIB, Way.PROCESSES)
    assert not told.asked, "who need not be asked is not"
    measured = Reader(devices, books, workers=says(9 * GIB, 8 * GIB))
    assert await measured.of(both, EngineMetrics()) == Footprint(17 * GIB, 3 * GIB, Way.WORKERS)
    untold = Reader(devices, books)
    assert await untold.of(both, EngineMetrics()) == Footprint((30 + 20 - 2 * 3) * GIB, 3 * GIB, Way.DEVICES)
    alone = Reader(devices, None)
    assert await alone.of(both) == Footprint(50 * GIB, 0, Way.DEVICES)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        (500, "CopyingWorker has no shoal_holds"),
        (200, "nothing"),
        (200, '{"results": [null, null]}'),
        (200, '{"results": [{"held": 5}, {"reason": "torch\'s allocator lists no memory"}]}'),
        says(5),  # of one engine of two: the other's ranks are not in it
        says(5, -1),
        says(5, 6, 7),
    ],
)
async def test_where_not_every_worker_says_what_it_holds_the_devices_are_read(answer: tuple[int, str] | None) -> None:
    reader = Reader([gpu(0, 30 * GIB), gpu(1, 20 * GIB)], workers=answer)
    both = instance("cuda:0", "cuda:1")
    assert await reader.of(both) == Footprint(50 * GIB, 0, Way.DEVICES)
    assert await reader.of(both, way=Way.WORKERS) is None, "what was read in one way is compared with no other"


async def slept(reader: Reader, one: Instance, after: Sequence[Device], near: Sequence[Instance]) -> str:
    """Why its sleep is none, with what is there after it."""
    before = await reader.of(one)
    assert before is not None
    reader.devices, reader.near = after, near
    if reader.workers is not None:
        reader.workers = says(GIB)
    return why_not_asleep(before, 20 * GIB, await reader.of(one, way=before.way))


async def test_workers_show_a_sleep_whatever_neighbours_do_meanwhile() -> None:
    one = instance("cuda:0")
    for after in (gpu(0, 70 * GIB), gpu(0, 2 * GIB), gpu(0, 40 * GIB)):
        reader = Reader([gpu(0, 40 * GIB)], workers=says(21 * GIB))
        assert not await slept(reader, one, [after], [instance("cuda:0", name="n", state=S.READY, since=1.0)])
    kept = Reader([gpu(0, 40 * GIB)], workers=says(15 * GIB))
    assert "14.0 GiB came back" in await slept(kept, one, [gpu(0, 2 * GIB)], ())


async def test_all_of_a_device_shows_a_sleep_only_as_far_as_neighbours_cannot_be_what_is_seen() -> None:
    one, full, free = instance("cuda:0"), [gpu(0, 40 * GIB)], [gpu(0, 20 * GIB)]
    waking = instance("cuda:0", name="n-1", state=S.WAKING, since=1.0)
    asleep = instance("cuda:0", name="n-2", state=S.SLEEPING, since=1.0)
    elsewhere = instance("cuda:1", name="n-3", state=S.SLEEPING, since=1.0)

    def reader() -> Reader:
        made = Reader(full)
        made.near = [instance("cuda:0", name="n-2", state=S.READY)]
        return made

    calm = reader().near
    assert not await slept(reader(), one, free, calm)
    assert "0 B came back" in await slept(reader(), one, full, calm)
    assert not await slept(reader(), one, free, [*calm, waking]), "what it took hides nothing of what is seen"
    assert await slept(reader(), one, full, [*calm, waking]) == (
        "whether its memory came back cannot be told, because only all of its devices' memory can be read, and n-1 may "
        "have taken memory there meanwhile"
    )
    assert "n-2 may have given memory back" in await slept(reader(), one, free, [asleep])
    assert "0 B came back" in await slept(reader(), one, full, [asleep]), "not even that"
    assert not await slept(reader(), one, free, [*calm, elsewhere])


async def test_who_moves_while_a_device_is_read_shows() -> None:
    one, other = instance("cuda:0"), instance("cuda:0", name="n", state=S.READY)
    reader = Reader([gpu(0, 40 * GIB)])
    reader.near = [other]
    stay = reader._devices

    async def moving() -> Sequence[Device]:
        reader.near = [replace(other, state=S.SLEEPING, changed_at=1.0)]
        return await stay()

    reader._devices = moving
    before = await reader.of(one)
    assert before is not None
    assert before.near["n"].state is S.READY, "it may have moved after this reading"
    reader.near = [other]
    after = await reader.of(one, way=Way.DEVICES)
    assert after is not None
    assert after.near["n"].state is S.SLEEPING, "or before this one"


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

    reader = Footprints(Path("/nowhere"), none, dict, lambda _: 1, tuple)
    reader._nvml = _Driver(GPU_0=first, GPU_1=second)
    assert reader._by_process("i", [gpu(0, 0), gpu(1, 0)]) == found
