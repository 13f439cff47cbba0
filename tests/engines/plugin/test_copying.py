"""The worker and the allocator that keep copies, over stand-ins for vLLM's in the shape of 0.26."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from shoal.engines.vllm.plugin import copies, hooks
from shoal.engines.vllm.plugin.copies import Mark

PACKAGE = "shoal.engines.vllm.plugin"
SIZE = 2 << 20


class CuMemAllocator:
    """vLLM's allocator, whose device is a list of what was done."""

    instance: CuMemAllocator | None = None

    def __init__(self) -> None:
        self.pointer_to_data: dict[int, Any] = {}
        self.done: list[tuple[str, int]] = []
        self.mapped: set[int] = set()
        self.stuck: set[int] = set()
        """Whose memory stays although it was told to go."""

    @staticmethod
    def get_instance() -> CuMemAllocator:
        if CuMemAllocator.instance is None:
            CuMemAllocator.instance = CuMemAllocator()
        return CuMemAllocator.instance

    def allocate(self, pointer: int, tag: str) -> None:
        self.pointer_to_data[pointer] = SimpleNamespace(handle=(0, SIZE, pointer), tag=tag, cpu_backup_tensor=None)
        self.mapped.add(pointer)

    def sleep(self, offload_tags: tuple[str, ...] | str | None = None) -> None:
        for pointer, data in self.pointer_to_data.items():
            if data.tag in (offload_tags or ()):
                data.cpu_backup_tensor = "a fresh copy"
                self.done.append(("copy out", pointer))
            self.done.append(("unmap", pointer))
            self.mapped -= {pointer} - self.stuck

    def wake_up(self, tags: list[str] | None = None) -> None:
        for pointer, data in self.pointer_to_data.items():
            if tags is None or data.tag in tags:
                self.done.append(("map", pointer))
                self.mapped.add(pointer)
                if data.cpu_backup_tensor is not None:
                    self.done.append((f"copy in {data.cpu_backup_tensor}", pointer))
                    data.cpu_backup_tensor = None

    def _python_free_callback(self, ptr: int) -> Any:
        return self.pointer_to_data.pop(ptr).handle


class AllocationData:
    def __init__(self, handle: Any, tag: str, cpu_backup_tensor: Any = None) -> None: ...


class Driver:
    """CUDA's as far as it knows which of the allocator's addresses have memory."""

    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_MAPPED=13)
    CUresult = SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_INVALID_VALUE=1)

    @staticmethod
    def cuPointerGetAttribute(attribute: int, pointer: int) -> tuple[int, int]:  # noqa: N802
        assert attribute == 13
        return 0, int(pointer == ACTIVATIONS or pointer in CuMemAllocator.get_instance().mapped)


ACTIVATIONS = 99
"""Where torch has what does not sleep."""


def segments() -> list[dict[str, int]]:
    """What torch goes on listing, whatever sleeps."""
    listed = [ACTIVATIONS, *CuMemAllocator.get_instance().pointer_to_data]
    return [{"device": 0, "address": pointer, "total_size": SIZE} for pointer in listed]


class Worker:
    """vLLM's worker."""

    def __init__(self, *, sleep_mode: bool = True) -> None:
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=sleep_mode))
        self.device = SimpleNamespace(index=0)
        self.closed = False

    def _maybe_get_memory_pool_context(self, tag: str) -> str:
        return f"pool of {tag}"

    def execute_model(self, scheduler_output: Any) -> Any:
        return scheduler_output

    def sleep(self, level: int = 1) -> None:
        CuMemAllocator.get_instance().sleep(("weights",) if level == 1 else ())

    def wake_up(self, tags: list[str] | None = None) -> None:
        CuMemAllocator.get_instance().wake_up(tags)

    def shutdown(self) -> None:
        self.closed = True


class CudaMover:
    """Copies at once; what is where never differs."""

    def __init__(self, device: Any) -> None:
        assert device.index == 0

    def reserve(self, size: int) -> Any:
        return SimpleNamespace(tensor="the kept copy", close=lambda: None)

    def fetch(self, *_: Any) -> None: ...

    def wait(self) -> None: ...

    def mark(self, *_: Any) -> Mark:
        return 1, 1

    def begin_marks(self, allocations: Sequence[tuple[int, int]]) -> Any:
        return len(allocations)

    def read_marks(self, begun: Any) -> list[Mark]:
        return [(1, 1)] * begun


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `copying` over those stand-ins."""

    def module(name: str, **fields: Any) -> None:
        made = ModuleType(name)
        vars(made).update(fields)
        monkeypatch.setitem(sys.modules, name, made)

    for name in ("vllm", "vllm.v1", "vllm.v1.worker"):
        module(name)
    module("vllm.v1.worker.gpu_worker", Worker=Worker)
    module("vllm.version", __version__="0.26.0")
    module("vllm.device_allocator", AllocationData=AllocationData)
    module("vllm.device_allocator.cumem", CuMemAllocator=CuMemAllocator)
    cuda = SimpleNamespace(memory_snapshot=segments)
    module("torch", _C=SimpleNamespace(_construct_storage_from_data_pointer=lambda: None), cuda=cuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", Driver)
    module(f"{PACKAGE}.pinned", CudaMover=CudaMover)
    monkeypatch.setattr(CuMemAllocator, "instance", None)
    for name in ("copying", "keeping", "holding"):
        monkeypatch.delitem(sys.modules, f"{PACKAGE}.{name}", raising=False)
    found = importlib.import_module(f"{PACKAGE}.copying")
    monkeypatch.setattr(found, "host_room", lambda: copies.SPARE + 100 * SIZE)
    yield found
    for name in ("copying", "keeping", "holding"):
        sys.modules.pop(f"{PACKAGE}.{name}", None)


def loaded(plugin: Any) -> tuple[Any, Any]:
    """A worker with two allocations of weights and one of KV cache, and its allocator."""
    worker = plugin.CopyingWorker()
    assert worker._maybe_get_memory_pool_context("weights") == "pool of weights"
    allocator: Any = CuMemAllocator.get_instance()
    for pointer, tag in ((1, "weights"), (2, "weights"), (3, "kv_cache")):
        allocator.allocate(pointer, tag)
    return worker, allocator


def done(allocator: Any) -> list[tuple[str, int]]:
    found = list(allocator.done)
    allocator.done.clear()
    return found


UNMAPPED = [("unmap", 1), ("unmap", 2), ("unmap", 3)]
BACK = [("map", 1), ("copy in the kept copy", 1), ("map", 2), ("copy in the kept copy", 2), ("map", 3)]


def test_a_sleep_only_unmaps_and_a_wake_copies_what_is_kept(plugin: Any) -> None:
    worker, allocator = loaded(plugin)
    for _ in range(2):
        worker.sleep()
        assert done(allocator) == UNMAPPED
        worker.wake_up()
        assert done(allocator) == BACK
    assert worker.shoal_copies()["held"] == 2 * SIZE


def test_who_comes_after_knows_that_the_device_was_waited_for(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    stock = Worker.sleep

    def sleep(self: Any, level: int = 1) -> None:
        seen.append(self._settled)
        stock(self, level)

    monkeypatch.setattr(Worker, "sleep", sleep)
    worker, _ = loaded(plugin)
    for level in (1, 2):
        worker.sleep(level)
        worker.wake_up()
    assert seen == [True, False], "a deeper sleep looks at no copy"
    assert not worker._settled


def test_what_is_held_is_what_has_memory_and_not_what_is_listed(plugin: Any) -> None:
    worker, allocator = loaded(plugin)
    assert worker.shoal_holds() == {"held": 4 * SIZE, "pages": 0}
    worker.sleep()
    assert worker.shoal_holds() == {"held": SIZE, "pages": 0}
    worker.wake_up(["weights"])
    assert worker.shoal_holds() == {"held": 3 * SIZE, "pages": 0}
    worker.wake_up(["kv_cache"])
    allocator.stuck.add(2)
    worker.sleep()
    assert worker.shoal_holds() == {"held": 2 * SIZE, "pages": 0}, "it says that all was unmapped"


def test_elastic_pages_are_held_too(plugin: Any) -> None:
    worker, _ = loaded(plugin)
    rank = SimpleNamespace(arena=None)
    worker._shoal = SimpleNamespace(rank=rank)
    assert worker.shoal_holds() == {"held": 4 * SIZE, "pages": 0}, "a cache that is not elastic"
    rank.arena = SimpleNamespace(held_bytes=5 * SIZE)
    assert worker.shoal_holds() == {"held": 9 * SIZE, "pages": 5 * SIZE}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda patch: patch.setattr(sys.modules["torch"].cuda, "memory_snapshot", list), "lists no memory"),
        (lambda patch: patch.setattr(Driver, "cuPointerGetAttribute", lambda *_: (700, 0)), "failed with 700"),
        (lambda patch: patch.setitem(sys.modules, "cuda.bindings.driver", None), "cuda.bindings.driver"),
        (lambda patch: patch.delattr(sys.modules["torch"], "cuda"), "cuda"),
    ],
)
def test_what_cannot_be_measured_is_not_made_up(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, make: Callable[[pytest.MonkeyPatch], None], why: str
) -> None:
    worker, _ = loaded(plugin)
    make(monkeypatch)
    answer = worker.shoal_holds()
    assert "held" not in answer
    assert why in answer["reason"]


def test_addresses_that_the_driver_does_not_know_hold_nothing(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, _ = loaded(plugin)
    monkeypatch.setattr(Driver, "cuPointerGetAttribute", lambda _, pointer: (0, 1) if pointer == 1 else (1, 0))
    assert worker.shoal_holds()["held"] == SIZE


def test_a_wake_in_parts(plugin: Any) -> None:
    worker, allocator = loaded(plugin)
    worker.sleep()
    done(allocator)
    worker.wake_up(["kv_cache"])
    assert "these are its weights" in worker.shoal_copies("forget")["reason"]
    worker.wake_up(["weights"])
    assert worker.shoal_copies("forget")["held"] == 0
    assert done(allocator) == [("map", 3), *BACK[:-1]]


def test_a_deeper_sleep_drops_the_weights_and_keeps_the_copy(plugin: Any) -> None:
    worker, allocator = loaded(plugin)
    worker.sleep()
    worker.wake_up()
    done(allocator)
    worker.sleep(2)
    assert done(allocator) == UNMAPPED
    worker.wake_up()
    assert done(allocator) == [("map", 1), ("map", 2), ("map", 3)], "weights are read anew, not copied back"
    assert worker.shoal_copies()["held"] == 2 * SIZE


def test_without_room_for_a_copy_nothing_is_taken_away(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "host_room", lambda: copies.SPARE)
    worker, allocator = loaded(plugin)
    with pytest.raises(MemoryError):
        worker.sleep()
    assert done(allocator) == []


def test_where_copying_fails_vllm_does_it_itself(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("cuMemHostRegister failed with CUDA_ERROR_NOT_PERMITTED")

    monkeypatch.setattr(CudaMover, "reserve", fails)
    worker, allocator = loaded(plugin)
    worker.sleep()
    assert done(allocator) == [("copy out", 1), ("unmap", 1), ("copy out", 2), ("unmap", 2), ("unmap", 3)]
    worker.wake_up()
    assert ("copy in a fresh copy", 1) in done(allocator)
    assert "NOT_PERMITTED" in worker.shoal_copies()["reason"]


def test_what_is_kept_goes_before_vllm_makes_copies_of_its_own(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, allocator = loaded(plugin)

    def reserve(*_: Any) -> Any:
        close = partial(allocator.done.append, ("give back", 0))
        return SimpleNamespace(tensor="the kept copy", close=close)

    def fails(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(CudaMover, "reserve", reserve)
    worker.sleep()
    worker.wake_up()
    done(allocator)
    monkeypatch.setattr(CudaMover, "read_marks", fails)
    worker.sleep()
    assert done(allocator)[:3] == [("give back", 0), ("give back", 0), ("copy out", 1)]
    assert worker.shoal_copies()["reserved"] == 0


def test_a_freed_allocation_has_no_copy_any_more(plugin: Any) -> None:
    worker, allocator = loaded(plugin)
    worker.sleep()
    worker.wake_up()
    assert allocator._python_free_callback(1) == (0, SIZE, 1)
    assert worker.shoal_copies() == {"size": SIZE, "held": SIZE, "reserved": SIZE, "taking": False, "reason": ""}


def test_steps_go_on_and_the_end_ends_the_copying(plugin: Any) -> None:
    worker, _ = loaded(plugin)
    assert worker.execute_model("a step") == "a step"
    worker.shoal_copies("take")
    worker.shutdown()
    assert worker.closed
    assert not worker.shoal_copies()["taking"]
    with pytest.raises(ValueError, match="take, forget or look"):
        worker.shoal_copies("keep")


def test_an_engine_without_sleep_keeps_vllms_allocator(plugin: Any) -> None:
    worker = plugin.CopyingWorker(sleep_mode=False)
    worker._maybe_get_memory_pool_context("weights")
    assert CuMemAllocator.instance is None
    assert worker.shoal_copies("take")["reason"] == "this engine was started without sleep"
    worker.execute_model("a step")
    worker.shutdown()


def _old(monkeypatch: pytest.MonkeyPatch, plugin: Any) -> None:
    monkeypatch.setattr(plugin, "VLLM_VERSION", "0.23.0")


def _otherwise(monkeypatch: pytest.MonkeyPatch, plugin: Any) -> None:
    monkeypatch.setattr(CuMemAllocator, "sleep", lambda self, tags: None)


def _in_use(monkeypatch: pytest.MonkeyPatch, plugin: Any) -> None:
    CuMemAllocator.get_instance().allocate(9, "weights")


@pytest.mark.parametrize(
    ("make", "why"), [(_old, "0.24"), (_otherwise, r"CuMemAllocator.sleep takes \(self, tags\)"), (_in_use, "in use")]
)
def test_where_vllm_is_otherwise_it_sleeps_as_it_does_by_itself(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, make: Callable[..., None], why: str
) -> None:
    make(monkeypatch, plugin)
    worker = plugin.CopyingWorker()
    worker._maybe_get_memory_pool_context("weights")
    assert type(CuMemAllocator.get_instance()) is CuMemAllocator
    reason = worker.shoal_copies("take")["reason"]
    assert re.search(why, reason), reason
    if make is _in_use:
        worker.sleep()
        assert ("copy out", 9) in done(CuMemAllocator.get_instance())


def test_the_hooks_of_copies_are_those_that_are_used() -> None:
    names = {hook.name.rpartition(".")[2] for hook in hooks.COPY_HOOKS}
    assert {"sleep", "wake_up", "_python_free_callback", "get_instance", "execute_model", "shutdown"} <= names
