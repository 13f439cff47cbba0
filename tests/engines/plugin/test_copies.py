"""Host copies of weights: when they are taken, kept, taken again and given up. The device is memory of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.engines.vllm.plugin import copies as module
from shoal.engines.vllm.plugin.copies import SPARE, Allocation, Go, HostCopies, Mark

MIB = 1 << 20
SIZES = (3 * MIB, MIB, 2 * MIB)


class Memory:
    """Pinned memory."""

    def __init__(self, size: int) -> None:
        self.tensor = bytearray(size)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Device:
    """What allocations hold, by address, and a mover between them and the host: it copies when it is waited for."""

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        self.held = {1000 + number: bytearray([number + 1]) * size for number, size in enumerate(sizes)}
        self.data = {pointer: SimpleNamespace(cpu_backup_tensor=None) for pointer in self.held}
        self.made: list[Memory] = []
        self.fetched: list[tuple[int, int, int]] = []
        self.due: list[Callable[[], None]] = []
        self.fails: Exception | None = None
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()

    def allocations(self) -> list[Allocation]:
        return [Allocation(pointer, len(held), self.data[pointer]) for pointer, held in self.held.items()]

    def reserve(self, size: int) -> Memory:
        if self.fails is not None:
            raise self.fails
        self.made.append(memory := Memory(size))
        return memory

    def fetch(self, buffer: Any, source: int, offset: int, size: int) -> None:
        self.fetched.append((source, offset, size))

        def copy() -> None:
            buffer.tensor[offset : offset + size] = self.held[source][offset : offset + size]

        self.due.append(copy)

    def wait(self) -> None:
        self.began.set()
        assert self.gate.wait(50)
        while self.due:
            self.due.pop(0)()

    def mark(self, buffer: Any, go: Go) -> Mark | None:
        return _mark(buffer.tensor) if go() else None

    def begin_marks(self, allocations: Sequence[tuple[int, int]]) -> list[Mark]:
        if self.broken:
            raise RuntimeError("no kernel image is available")
        return [_mark(self.held[pointer][:size]) for pointer, size in allocations]

    def read_marks(self, begun: Any) -> list[Mark]:
        return list(begun)


def _mark(held: bytes | bytearray) -> Mark:
    return hash(bytes(held)), len(held)


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def host(device: Device) -> Iterator[HostCopies]:
    made = HostCopies(device.allocations, device, lambda: SPARE + 64 * MIB, rate=1 << 50)
    yield made
    device.gate.set()
    made.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def taken(host: HostCopies) -> None:
    host.take()
    until(lambda: not host.look()["taking"])


def prepared(host: HostCopies) -> int:
    """The bytes copied before a sleep."""
    host.begin()
    host.finish()
    return host.copied


def asleep(device: Device, host: HostCopies) -> int:
    """As the worker and its allocator have it; the bytes copied for it."""
    copied = prepared(host)
    for pointer, held in device.held.items():
        device.held[pointer] = bytearray(len(held))
    host.lend()
    return copied


def awake(device: Device, host: HostCopies) -> None:
    for pointer, data in device.data.items():
        device.held[pointer][:] = data.cpu_backup_tensor
        data.cpu_backup_tensor = None
    host.woke()


def test_a_sleep_after_the_copy_copies_nothing_and_a_wake_brings_all_back(device: Device, host: HostCopies) -> None:
    before = {pointer: bytes(held) for pointer, held in device.held.items()}
    taken(host)
    assert host.look() == {"size": 6 * MIB, "held": 6 * MIB, "reserved": 6 * MIB, "taking": False, "reason": ""}
    for _ in range(3):
        assert asleep(device, host) == 0
        assert all(not any(held) for held in device.held.values())
        awake(device, host)
        assert {pointer: bytes(held) for pointer, held in device.held.items()} == before
    assert len(device.made) == 3, "one copy, kept"


def test_a_sleep_without_a_copy_takes_it_and_keeps_it(device: Device, host: HostCopies) -> None:
    assert asleep(device, host) == 6 * MIB
    awake(device, host)
    assert host.look()["held"] == 6 * MIB
    assert asleep(device, host) == 0


def test_what_changed_is_copied_again_and_nothing_else(device: Device, host: HostCopies) -> None:
    taken(host)
    device.held[1001][77] = 200
    device.fetched.clear()
    assert asleep(device, host) == MIB
    assert device.fetched == [(1001, 0, MIB)]
    awake(device, host)
    assert device.held[1001][77] == 200
    assert len(device.made) == 3


def test_what_changes_while_it_is_copied_is_copied_again(device: Device, host: HostCopies) -> None:
    device.gate.clear()
    host.take()
    assert device.began.wait(50)
    device.held[1000][MIB] = 99  # its piece was begun, and what came over is neither the old nor the new
    device.due.append(lambda: device.held[1000].__setitem__(MIB, 98))
    device.gate.set()
    until(lambda: not host.look()["taking"])
    assert asleep(device, host) == 3 * MIB
    awake(device, host)
    assert device.held[1000][MIB] == 98


def test_an_allocation_that_is_another_now_is_copied_anew(device: Device, host: HostCopies) -> None:
    taken(host)
    with host.freeing():
        host.freed(1002)
    device.data[1002] = SimpleNamespace(cpu_backup_tensor=None)  # freed, and its address given to other weights
    assert device.made[2].closed == 1
    assert asleep(device, host) == 2 * MIB


def test_a_sleep_ends_the_copying_and_goes_on_with_what_it_made(device: Device, host: HostCopies) -> None:
    device.gate.clear()
    host.take()
    assert device.began.wait(50)
    opening = threading.Timer(0.05, device.gate.set)
    opening.start()
    assert asleep(device, host) >= 3 * MIB
    assert len(device.made) == 3, "the memory that was ready is used"
    awake(device, host)


def test_forgetting_gives_the_memory_back_but_not_in_a_sleep(device: Device, host: HostCopies) -> None:
    taken(host)
    asleep(device, host)
    assert "these are its weights" in host.forget()["reason"]
    assert host.take()["reason"] == "the engine sleeps", "nor is any taken"
    awake(device, host)
    assert host.forget() == {"size": 6 * MIB, "held": 0, "reserved": 0, "taking": False, "reason": ""}
    until(lambda: all(memory.closed == 1 for memory in device.made))
    assert asleep(device, host) == 6 * MIB


def test_weights_that_vllm_drops_or_copies_itself_leave_the_copies_alone(device: Device, host: HostCopies) -> None:
    taken(host)
    host.begin()
    assert host.finish()
    host.sleeps()
    host.woke()
    assert not host.finish(), "nothing was begun"
    assert host.look()["held"] == 6 * MIB
    assert prepared(host) == 0


def test_a_host_without_room_is_left_alone(device: Device) -> None:
    room = [SPARE + 6 * MIB - 1]
    host = HostCopies(device.allocations, device, lambda: room[0])
    assert "needs 0.01 GiB more of the host's memory" in host.take()["reason"]
    with pytest.raises(MemoryError, match="left to others"):
        host.begin()
    assert not device.made
    room[0] += 1
    assert prepared(host) == 6 * MIB
    room[0] = 0
    assert prepared(host) == 0, "what is there needs no more"


def test_where_memory_cannot_be_pinned_vllm_does_it_its_own_way(device: Device, host: HostCopies) -> None:
    device.fails = RuntimeError("cuMemHostRegister failed")
    assert host.begin(), "the device was waited for"
    assert not host.finish()
    taken(host)
    assert "cuMemHostRegister failed" in host.look()["reason"]


def test_copies_that_vllm_makes_itself_are_not_made_beside_those_that_are_kept(
    device: Device, host: HostCopies
) -> None:
    taken(host)
    kept = device.made[:]
    with host.freeing():
        host.freed(1002)
    device.data[1002] = SimpleNamespace(cpu_backup_tensor=None)
    device.held[1000][0] = 77
    device.fails = RuntimeError("cuMemHostRegister failed")
    host.begin()
    assert not host.finish()
    written: list[int] = []
    device.due.append(lambda: written.append(kept[0].closed))
    host.give_up()
    assert written == [0], "no memory goes that something is still fetched to"
    assert [memory.closed for memory in kept] == [1, 1, 1]
    assert (host.look()["held"], host.look()["reserved"]) == (0, 0)
    assert "cuMemHostRegister failed" in host.look()["reason"], "why is still known"
    device.fails = None
    host.sleeps()
    host.woke()
    assert asleep(device, host) == 6 * MIB, "the next sleep tries again"


def test_copies_are_given_up_although_the_device_has_broken(device: Device, host: HostCopies) -> None:
    taken(host)

    def breaks() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    device.wait = breaks  # type: ignore[method-assign]
    device.made[0].close = breaks  # type: ignore[method-assign]
    host.give_up()
    assert [memory.closed for memory in device.made] == [0, 1, 1], "what can be given back is"
    assert host.look()["reserved"] == 0


def test_where_the_device_cannot_tell_vllm_does_it_its_own_way(device: Device, host: HostCopies) -> None:
    device.broken = True
    assert not host.begin()
    assert not host.finish()
    assert "no kernel image" in host.take()["reason"]
    assert not host.look()["taking"]


def test_what_takes_memory_is_done_before_the_engine_gives_up_anything(device: Device, host: HostCopies) -> None:
    host.begin()
    assert host.look()["held"] == 6 * MIB, "all of it"
    device.held[1001][0] = 77
    host.begin()
    assert host.copied == 0, "what is only to be compared, and copied into memory that is there, can wait"
    assert host.finish()
    assert host.copied == MIB


def test_memory_that_runs_out_on_the_way_fails_the_sleep(device: Device, host: HostCopies) -> None:
    device.fails = MemoryError("the host has no 3 MiB")
    with pytest.raises(MemoryError, match="no 3 MiB"):
        host.begin()
    device.fails = None
    assert asleep(device, host) == 6 * MIB


def test_copying_waits_while_steps_run(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "PIECE", MIB)
    host = HostCopies(device.allocations, device, lambda: 1 << 40, rate=1 << 50, clock=clock)
    host.step()
    host.take()
    assert not device.began.wait(0.1), "a step has just run"
    clock.now += module.QUIET
    assert device.began.wait(50)
    until(lambda: not host.look()["taking"])
    assert [fetched for fetched in device.fetched if fetched[0] == 1000] == [
        (1000, offset, MIB) for offset in (0, MIB, 2 * MIB)
    ]
    host.close()


def test_copying_keeps_its_rate(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = Clock(), []
    monkeypatch.setattr(module, "PIECE", MIB)
    host = HostCopies(device.allocations, device, lambda: 1 << 40, rate=MIB, clock=clock)

    class Waited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            clock.now += timeout
            return self.is_set()

    host._stop = Waited()
    taken(host)
    assert sum(waits) == pytest.approx(6), "six pieces of a second each"
    host.close()


def test_a_free_waits_only_so_long_for_the_copying(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREEING", 0.01)
    host = HostCopies(device.allocations, device, lambda: 1 << 40)
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        with host._lock:
            locked.set()
            assert release.wait(50)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(50)
    with host.freeing():
        host.freed(1000)
    release.set()
    holder.join()
