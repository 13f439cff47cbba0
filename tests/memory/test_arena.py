"""An arena over the host's memory and over a model of the CUDA driver."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal.config import load_settings
from shoal.engines.environments import Environments
from shoal.memory.arena import Arena, _TurnLock
from shoal.memory.pages import BlockError, Geometry, Run
from shoal.memory.vmm import OutOfMemory, VmmError
from shoal.memory.vmm.cuda import CudaVmm
from shoal.memory.vmm.host import HostVmm
from tests.memory.fake_driver import GRANULARITY, OUT_OF_MEMORY, FakeDriver

SOURCE = Path(shoal.__file__).parents[1]


def host_arena(blocks: int, pages_a_block: float, limit: int | None = None) -> tuple[HostVmm, Arena]:
    """Blocks of some pages, on a host that has ``limit`` pages."""
    page = HostVmm().page_size
    vmm = HostVmm(limit=None if limit is None else limit * page)
    size = int(page * pages_a_block)
    return vmm, Arena(vmm, Geometry.contiguous(blocks, size, page), slice_bytes=4 * page)


def fake_arena(blocks: int, pages: int) -> tuple[FakeDriver, CudaVmm, Arena]:
    driver = FakeDriver(pages)
    vmm = CudaVmm(driver=driver, keep_bytes=0)
    geometry = Geometry.contiguous(blocks, GRANULARITY, GRANULARITY)
    return driver, vmm, Arena(vmm, geometry, slice_bytes=3 * GRANULARITY)


def at(arena: Arena, block: int) -> int:
    run = arena.geometry.runs[0]
    return arena.address + run.offset + block * run.stride


def fill(arena: Arena, block: int) -> None:
    ctypes.memset(at(arena, block), 1 + block % 250, arena.geometry.runs[0].length)


def holds(arena: Arena, block: int) -> set[int]:
    return set(ctypes.string_at(at(arena, block), arena.geometry.runs[0].length))


@pytest.mark.parametrize("pages_a_block", [0.25, 1, 1.125, 2.14, 4])
def test_blocks_keep_what_is_written_while_others_come_and_go(pages_a_block: float) -> None:
    vmm, arena = host_arena(40, pages_a_block)
    random.seed(pages_a_block)
    backed: set[int] = set()
    for _ in range(60):
        new = random.sample(sorted(set(range(40)) - backed), random.randint(0, 40 - len(backed)))
        cost, before = arena.cost(new), arena.backed_bytes
        arena.back(new)
        assert arena.backed_bytes == arena.held_bytes == before + cost
        for block in new:
            fill(arena, block)
        backed.update(new)
        old = random.sample(sorted(backed), random.randint(0, len(backed)))
        gain, before = arena.gain(old), arena.backed_bytes
        arena.unback(old)
        assert arena.backed_bytes == before - gain
        backed.difference_update(old)
        assert arena.backed_blocks == len(backed)
        assert all(arena.is_backed(block) == (block in backed) for block in range(40))
        assert all(holds(arena, block) == {1 + block % 250} for block in backed)
    arena.close()
    assert arena.backed_bytes == 0
    vmm.close()


def test_out_of_memory_backs_nothing() -> None:
    vmm, arena = host_arena(30, 1.5, limit=20)
    arena.back([0, 1])
    before = arena.backed_bytes
    with pytest.raises(OutOfMemory):
        arena.back(range(2, 20))  # many slices: those that fitted are undone
    assert arena.backed_bytes == before
    assert not any(arena.is_backed(block) for block in range(2, 30))
    arena.back(range(2, 10))
    vmm.close()


@settings(deadline=None)
@given(
    limit=st.integers(0, 40),
    taken=st.integers(0, 10),
    pages=st.sampled_from([0.25, 1, 1.5, 3]),
    order=st.permutations(range(10, 30)),
)
def test_as_many_as_fit_in_the_order_given(limit: int, taken: int, pages: float, order: list[int]) -> None:
    vmm, arena = host_arena(30, pages, limit=limit)
    arena.back_up_to(range(taken))
    done = arena.back_up_to(order)
    assert all(arena.is_backed(block) for block in order[:done])
    assert not any(arena.is_backed(block) for block in order[done:])
    if done < len(order):
        assert arena.backed_bytes + arena.cost([order[done]]) > limit * vmm.page_size
    vmm.close()


def test_as_many_as_fit_on_a_device() -> None:
    driver, vmm, arena = fake_arena(20, 10)
    assert arena.back_up_to(range(20)) == 10
    assert driver.used == arena.backed_bytes == arena.held_bytes == 10 * GRANULARITY
    assert arena.back_up_to([15]) == 0
    with pytest.raises(OutOfMemory, match="CUDA_ERROR_OUT_OF_MEMORY"):
        arena.back([15])
    arena.unback(range(10))
    assert driver.used == 0
    assert arena.back_up_to([]) == 0
    vmm.close()


def test_a_slice_is_as_many_pages_where_blocks_share_them() -> None:
    driver = FakeDriver(20)
    vmm = CudaVmm(driver=driver, keep_bytes=0)
    blocks = Geometry.contiguous(40, GRANULARITY // 2, GRANULARITY)
    arena = Arena(vmm, blocks, slice_bytes=3 * GRANULARITY)
    arena.back(range(20))
    assert driver.calls.count("cuMemSetAccess") == 4, "ten pages, three at a time"
    assert driver.used == 10 * GRANULARITY
    arena.unback([*range(1, 20)])
    assert driver.used == GRANULARITY
    arena.close()
    vmm.close()


def test_as_many_as_fit_when_even_those_do_not() -> None:
    """Memory for page tables may run out after the pages themselves were had."""
    driver, vmm, arena = fake_arena(20, 11)
    driver.fail, driver.error = {"cuMemMap": 11}, OUT_OF_MEMORY
    assert arena.back_up_to(range(20)) == 10
    assert driver.used == arena.backed_bytes == 10 * GRANULARITY
    vmm.close()


@settings(deadline=None)
@given(nth=st.integers(1, 12), step=st.sampled_from(["cuMemCreate", "cuMemMap", "cuMemSetAccess"]))
def test_a_failing_driver_leaves_the_arena_as_it_was(nth: int, step: str) -> None:
    driver, vmm, arena = fake_arena(20, 20)
    arena.back([3, 9])
    mapped = dict(driver.mapped)
    driver.fail = {step: nth}
    wanted = [0, 1, 2, 4, 6, 8, 10, 11, 12, 15]
    try:
        arena.back(wanted)
    except VmmError:
        assert driver.mapped == mapped
        assert driver.used == arena.backed_bytes == 2 * GRANULARITY
        arena.back(wanted)
    else:
        assert driver.fail
    assert driver.used == arena.backed_bytes == 12 * GRANULARITY
    vmm.close()


def test_an_arena_in_an_unknown_state_is_not_used() -> None:
    driver, vmm, arena = fake_arena(20, 20)
    arena.back(range(10))
    driver.fail = {"cuMemUnmap": 2}
    with pytest.raises(VmmError, match="cuMemUnmap"):
        arena.unback(range(10))
    with pytest.raises(VmmError, match="restart the engine; before, cuMemUnmap failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        arena.back([15])
    arena.close()
    assert driver.used == 0
    assert not driver.reserved
    vmm.close()


def test_kept_memory_counts_until_it_is_trimmed() -> None:
    driver = FakeDriver(20)
    vmm = CudaVmm(driver=driver, keep_bytes=4 * GRANULARITY)
    arena = Arena(vmm, Geometry.contiguous(20, GRANULARITY, GRANULARITY))
    arena.back(range(10))
    arena.unback(range(10))
    assert (arena.backed_bytes, arena.held_bytes, driver.used) == (0, 4 * GRANULARITY, 4 * GRANULARITY)
    assert arena.trim() == 4 * GRANULARITY
    assert arena.held_bytes == driver.used == 0
    arena.back(range(2))
    arena.close()
    assert not driver.reserved
    vmm.close()


def test_threads_share_an_arena() -> None:
    """Blocks of different threads lie on the same pages; each thread finds its own blocks as it left them."""
    vmm, arena = host_arena(64, 0.75)
    problems: list[str] = []

    def work(own: list[int], seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(60):
            some = choose.sample(own, choose.randint(1, len(own)))
            arena.back(some) if choose.random() < 0.5 else arena.back_up_to(some)
            for block in some:
                if holds(arena, block) - {0, 1 + block % 250}:  # its own: a shared page may have stayed
                    problems.append(f"{block} came with another's bytes")
                fill(arena, block)
            if any(holds(arena, block) != {1 + block % 250} for block in some):
                problems.append("a block was lost")
            arena.unback(some)

    threads = [threading.Thread(target=work, args=(list(range(i, 64, 4)), i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert arena.backed_bytes == 0
    vmm.close()


def test_a_thread_in_a_hurry_waits_for_one_slice_only() -> None:
    """The lock goes to whoever waits, not back to the thread that works through a long list."""
    lock, order = _TurnLock(), list[str]()
    started = threading.Event()

    def hurried() -> None:
        started.set()
        with lock:
            order.append("hurried")

    thread = threading.Thread(target=hurried)
    with lock:
        thread.start()
        started.wait()
        while not lock._waiting:
            pass
    for _ in range(3):
        with lock:
            order.append("long")
    thread.join()
    assert order == ["hurried", "long", "long", "long"]


def test_what_makes_no_sense_is_refused_before_anything_happens() -> None:
    vmm, arena = host_arena(30, 1)
    arena.back([5])
    for wrong, match in (([0, 1, 5], "backed already"), ([0, 30], "no block 30"), ([0, 1, 0], "more than once")):
        with pytest.raises(BlockError, match=match):
            arena.back(wrong)
        with pytest.raises(BlockError, match=match):
            arena.back_up_to(wrong)
    with pytest.raises(BlockError, match="is not backed"):
        arena.unback([5, 6])
    assert arena.backed_blocks == 1
    with pytest.raises(ValueError, match="pages of 1 bytes"):
        Arena(vmm, Geometry(1, 1, (Run(0, 1, 1),)))
    arena.close()
    arena.close()
    with pytest.raises(ValueError, match="was closed"):
        arena.back([0])
    vmm.close()


def test_the_package_imports_light() -> None:
    """It runs inside engines: nothing but the standard library and msgspec, and what the modules here need of Shoal."""
    code = """
import sys
import shoal.memory, shoal.memory.pages, shoal.memory.arena, shoal.memory.vmm.cuda, shoal.memory.vmm.host
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded - set(sys.stdlib_module_names) - {"__main__", "shoal", "msgspec"}))
print(*sorted(name for name in sys.modules if name.startswith("shoal") and not name.startswith("shoal.memory")))
"""
    command = [sys.executable, "-S", "-E", "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split("\n")[:2] == ["", "shoal"]


TENSOR = """
import gc, re
from pathlib import Path
import torch
from shoal.memory.arena import Arena
from shoal.memory.pages import Geometry
from shoal.memory.vmm.host import HostVmm

vmm = HostVmm()
page = vmm.page_size
arena = Arena(vmm, Geometry.contiguous(100, page + 64, page))
whole = arena.tensor()
assert (whole.dtype, whole.shape, whole.device.type) == (torch.int8, (100 * (page + 64),), "cpu")
assert whole.data_ptr() == arena.address
arena.back([10, 11])
block = whole.view(100, page + 64)[10]
assert int(block.sum()) == 0
block.fill_(7)
assert int(block.sum(dtype=torch.int64)) == 7 * (page + 64)
again = arena.tensor(page * 5)
assert again.shape == (page * 5,) and again.untyped_storage().data_ptr() == arena.address
for size in (0, arena.geometry.size + 1):
    try:
        arena.tensor(size)
    except ValueError as error:
        print(error)

def reserved():
    maps = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in maps)

# A view keeps the addresses, which fault, so that nothing else can come to lie there; the last one gone frees them.
address = arena.address
del whole, again
gc.collect()
arena.close()
assert arena.backed_bytes == 0 and reserved()
view = block[3:9]
del block
gc.collect()
assert reserved() and view.shape == (6,)
del view
gc.collect()
assert not reserved()
one = Arena(vmm, Geometry.contiguous(1, page, page))
left = one.tensor()
one.close()
vmm.close()
del left
gc.collect()
print("fine")
"""


def test_the_tensor_that_the_engine_gets() -> None:
    """In an interpreter that has torch; `make demo` installs one."""
    environment = Environments(load_settings().engines_dir).find("vllm", "cpu")
    if environment is None:
        pytest.skip("no interpreter with torch: run `shoal engines install vllm`")
    command = [
        str(environment.python),
        "-W",
        "error",
        "-c",
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{TENSOR}",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "fine"
    assert ended.stdout.count("the arena has") == 2
    assert not ended.stderr
