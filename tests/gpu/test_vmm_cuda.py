"""Virtual memory on a real GPU. Needs cuda-bindings, and torch for some tests; `-s` shows what it measured.

Runs without the rest of Shoal's dependencies:
`PYTHONPATH=src python3 -m pytest -c /dev/null -p no:cacheprovider --noconftest -s tests/gpu/test_vmm_cuda.py`.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import shoal.memory
from shoal.memory.arena import Arena
from shoal.memory.pages import Geometry
from shoal.memory.vmm import OutOfMemory, VmmError
from shoal.memory.vmm.cuda import CudaVmm

cu: Any = pytest.importorskip("cuda.bindings.driver")

MIB = 1 << 20
GIB = 1 << 30
PATTERN = 0x5AFE5AFE
SOURCE = Path(shoal.memory.__file__).parents[2]


@pytest.fixture
def vmm() -> Iterator[CudaVmm]:
    vmm = CudaVmm()
    yield vmm
    vmm.close()


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def an_arena(vmm: CudaVmm, size: int, *, slice_bytes: int = 32 * MIB) -> Arena:
    """Blocks of one page each."""
    return Arena(vmm, Geometry.contiguous(size // vmm.page_size, vmm.page_size, vmm.page_size), slice_bytes=slice_bytes)


def half_of_the_free(vmm: CudaVmm) -> int:
    """32 GiB, or half of the free memory where that is less; whole pages."""
    return min(32 * GIB, vmm.memory()[0] // 2) // vmm.page_size * vmm.page_size


def fill(vmm: CudaVmm, address: int, size: int) -> None:
    with vmm._current():
        vmm._call(cu.cuMemsetD32, address, PATTERN, size // 4)
        vmm._call(cu.cuCtxSynchronize)


def read(vmm: CudaVmm, address: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    with vmm._current():
        vmm._call(cu.cuMemcpyDtoH, ctypes.addressof(buffer), address, size)
    return buffer.raw


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_by_one(work: Callable[[list[int]], object], blocks: Sequence[int]) -> list[float]:
    """The seconds that ``work`` takes for each block."""
    times = []
    for block in blocks:
        began = time.perf_counter()
        work([block])
        times.append(time.perf_counter() - began)
    return times


def spread(times: Sequence[float]) -> str:
    ordered = sorted(times)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"p50 {p50 * 1e6:.0f} µs, p99 {p99 * 1e6:.0f} µs, most {ordered[-1] * 1e6:.0f} µs"


def test_pages_are_the_devices_memory_and_read_as_zeros(vmm: CudaVmm) -> None:
    page = vmm.page_size
    arena = an_arena(vmm, GIB)
    print(f"\npage size {page / MIB} MiB, free and total {[f'{n / GIB:.2f} GiB' for n in vmm.memory()]}")
    before = vmm.memory()[0]
    arena.back(range(256))
    assert before - vmm.memory()[0] == pytest.approx(256 * page, abs=64 * MIB)
    assert not any(read(vmm, arena.address, 4 * page))
    fill(vmm, arena.address, 256 * page)
    assert set(read(vmm, arena.address + 255 * page, page)) == {0x5A, 0xFE}
    arena.unback(range(100, 200))
    assert set(read(vmm, arena.address + 99 * page, page)) == {0x5A, 0xFE}
    arena.back(range(100, 120))  # memory kept from before among them
    assert not any(read(vmm, arena.address + 100 * page, 20 * page))
    arena.unback([*range(120), *range(200, 256)])
    assert arena.backed_bytes == 0
    arena.trim()
    assert arena.held_bytes == 0
    assert vmm.memory()[0] == pytest.approx(before, abs=64 * MIB)


def test_the_engines_tensor(vmm: CudaVmm, torch: Any) -> None:
    page = vmm.page_size
    arena = an_arena(vmm, 512 * page)
    whole = arena.tensor()
    assert (whole.dtype, whole.numel(), str(whole.device)) == (torch.int8, 512 * page, "cuda:0")
    assert whole.data_ptr() == arena.address
    view = whole.view(torch.bfloat16).view(512, -1)
    arena.back([7, 300])
    assert float(view[7].abs().sum()) == 0
    view[7].normal_()
    view[300].copy_(view[7])
    assert torch.equal(view[300], view[7])
    square = view[300][: 512 * 512].view(512, 512)
    assert torch.equal(square @ square, view[7][: 512 * 512].view(512, 512) @ square)
    kept = view[7].clone()
    torch.cuda.synchronize()
    arena.unback([300])
    assert torch.equal(view[7], kept)
    arena.back([300])
    assert not view[300].any()
    torch.cuda.synchronize()
    del whole, view, square
    arena.close()
    assert float(torch.ones(1000, device="cuda").sum()) == 1000


def test_out_of_memory_is_an_answer_and_everything_works_after(vmm: CudaVmm) -> None:
    page = vmm.page_size
    free, total = vmm.memory()
    blocks = (total + 8 * GIB) // page
    arena = an_arena(vmm, blocks * page)
    took = seconds(lambda: print(f"\n{arena.back_up_to(range(blocks))} of {blocks} pages fitted"))
    most = arena.backed_blocks
    assert 0.9 * free < most * page <= free
    print(f"{most * page / GIB:.1f} of {free / GIB:.1f} GiB free backed in {took:.2f} s")
    for _ in range(20):
        with pytest.raises(OutOfMemory, match="CUDA_ERROR_OUT_OF_MEMORY"):
            arena.back(range(most, most + 64))
    assert arena.backed_blocks == most
    fill(vmm, arena.address, most * page)
    assert set(read(vmm, arena.address + (most - 1) * page, page)) == {0x5A, 0xFE}
    arena.unback(range(100))
    arena.back(range(most, most + 90))
    assert not any(read(vmm, arena.address + most * page, 4 * page))
    took = seconds(lambda: arena.unback([*range(100, most), *range(most, most + 90)]))
    print(f"all unbacked in {took:.2f} s")
    arena.trim()
    assert vmm.memory()[0] == pytest.approx(free, abs=256 * MIB)


def test_an_address_that_is_not_backed_faults() -> None:
    """Loudly: as an error of the access, and never as someone's bytes."""
    code = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
import ctypes
from cuda.bindings import driver as cu
from shoal.memory.vmm.cuda import CudaVmm
vmm = CudaVmm()
addresses = vmm.reserve(8 * vmm.page_size)
vmm.back(addresses, 3, 1)
vmm.unback(addresses, 3, 1)
buffer = ctypes.create_string_buffer(64)
for page in (0, 3):
    with vmm._current():
        print(cu.cuMemcpyDtoH(ctypes.addressof(buffer), addresses.address + page * vmm.page_size, 64)[0].name)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    print(f"\nreading unbacked addresses: {ended.stdout.split()}")
    assert all(name.startswith("CUDA_ERROR") for name in ended.stdout.split())


def test_a_kernel_that_strays_ends_its_process_and_its_memory_comes_back(vmm: CudaVmm, torch: Any) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
import torch
from shoal.memory.arena import Arena
from shoal.memory.pages import Geometry
from shoal.memory.vmm import VmmError
from shoal.memory.vmm.cuda import CudaVmm
vmm = CudaVmm()
arena = Arena(vmm, Geometry.contiguous(1024, vmm.page_size, vmm.page_size))
tensor = arena.tensor()
arena.back(range(512))
tensor[: vmm.page_size].fill_(1)
torch.cuda.synchronize()
try:
    print(int(tensor[600 * vmm.page_size : 601 * vmm.page_size].sum()))
except RuntimeError as error:
    print("fault")
try:
    arena.unback(range(10))
    arena.back(range(600, 610))
    print("no error")
except VmmError as error:
    print(error)
"""
    before = vmm.memory()[0]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    fault, *more = ended.stdout.splitlines()
    print(f"\nafter a stray kernel: {more}")
    assert fault == "fault"
    assert more
    assert "CUDA_ERROR" in more[0] or more == ["no error"]
    until(lambda: vmm.memory()[0] > before - 256 * MIB)


def until(condition: Callable[[], bool], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "the memory did not come back"
        time.sleep(0.05)


def full_of_the_pattern(ending: str) -> tuple[subprocess.Popen[str], int]:
    """A process that filled nearly all free memory and gave it up in one of three ways; and its pages."""
    code = f"""
import sys; sys.path.insert(0, {str(SOURCE)!r})
import os, time
from cuda.bindings import driver as cu
from shoal.memory.arena import Arena
from shoal.memory.pages import Geometry
from shoal.memory.vmm.cuda import CudaVmm
vmm = CudaVmm(zero=False, keep_bytes=0)
pages = (vmm.memory()[0] - 2 * {GIB}) // vmm.page_size
arena = Arena(vmm, Geometry.contiguous(pages, vmm.page_size, vmm.page_size))
backed = arena.back_up_to(range(pages))
with vmm._current():
    vmm._call(cu.cuMemsetD32, arena.address, {PATTERN}, backed * vmm.page_size // 4)
    vmm._call(cu.cuCtxSynchronize)
if {ending!r} == "killed":
    print(backed, flush=True)
    os.kill(os.getpid(), 9)
if {ending!r} == "alive":
    arena.unback(range(backed))
print(backed, flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    if ending != "alive" or not line:
        child.communicate()
    assert line, "the process that fills the memory failed"
    return child, int(line)


@pytest.mark.parametrize("zero", [False, True], ids=["as the driver left it", "zeroed"])
@pytest.mark.parametrize("ending", ["alive", "ended", "killed"])
def test_data_does_not_cross_processes(ending: str, zero: bool) -> None:
    vmm = CudaVmm(zero=zero, keep_bytes=0)
    free = vmm.memory()[0]
    other, filled = full_of_the_pattern(ending)
    try:
        until(lambda: vmm.memory()[0] > free - 3 * GIB // 2)  # a process that lives has a context
        page = vmm.page_size
        arena = an_arena(vmm, (vmm.memory()[0] - GIB // 2) // page * page)
        backed = arena.back_up_to(range(arena.geometry.blocks))
        assert backed > 0.95 * filled
        foreign = written = 0
        word = PATTERN.to_bytes(4, "little")
        for index in range(backed):
            at = arena.address + index * page
            seen = read(vmm, at, 4096) + read(vmm, at + random.randrange(1, page // 4096) * 4096, 4096)
            foreign += word in seen
            written += any(seen)
        print(
            f"\nother process {ending}, {'zeroed' if zero else 'not zeroed'}: of {backed} pages ({filled} were"
            f" filled) {foreign} held its bytes, {written} were not zero"
        )
        if zero:  # without, it is for the driver to keep processes apart: seen and said, not ours to promise
            assert written == 0
    finally:
        vmm.close()
        if other.poll() is None:
            other.communicate()


@pytest.mark.parametrize("zero", [True, False], ids=["zeroed", "not zeroed"])
def test_timing_of_many_pages(zero: bool) -> None:
    vmm = CudaVmm(zero=zero, keep_bytes=1 << 50)
    size = half_of_the_free(vmm)
    arena = an_arena(vmm, size)
    blocks = list(range(arena.geometry.blocks))
    mixed = random.Random(1).sample(blocks, len(blocks))
    cold = CudaVmm(zero=zero, keep_bytes=0)
    plain = an_arena(cold, size)
    print()

    def line(what: str, took: float) -> None:
        print(
            f"{what:58} {size / GIB:.0f} GiB in {took:.3f} s:"
            f" {took / len(blocks) * 1e6:.1f} µs a page, {size / took / 1e9:.0f} GB/s"
        )

    zeroed = "zeroed" if zero else "not zeroed"
    line(f"back, new memory, {zeroed}", seconds(lambda: plain.back(blocks)))
    line("unback and release", seconds(lambda: plain.unback(blocks)))
    assert cold.kept_bytes == 0
    line(f"back, new memory, {zeroed}", seconds(lambda: arena.back(blocks)))
    line("unback, memory kept", seconds(lambda: arena.unback(blocks)))
    assert vmm.kept_bytes == size
    line(f"back, kept memory, {zeroed}", seconds(lambda: arena.back(blocks)))
    line("unback again", seconds(lambda: arena.unback(blocks)))
    line(f"back one by one in any order, kept memory, {zeroed}", seconds(lambda: one_by_one(arena.back, mixed)))
    line("unback one by one in any order", seconds(lambda: one_by_one(arena.unback, mixed)))
    line("release of kept memory", seconds(arena.trim))
    assert arena.held_bytes == 0
    eight = min(len(blocks), 8 * GIB // vmm.page_size)
    plain.back(blocks[:eight])
    print(f"give 8 GiB back: {seconds(lambda: plain.unback(blocks[:eight])):.3f} s")
    vmm.close()
    cold.close()


@pytest.mark.parametrize("zero", [True, False], ids=["zeroed", "not zeroed"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_timing_of_one_page_and_of_a_waiting_thread(torch: Any, zero: bool, busy: bool) -> None:
    """What a scheduler step that needs a block waits, with the GPU idle and busy, and while 8 GiB are given back."""
    vmm = CudaVmm(zero=zero)
    arena = an_arena(vmm, 10 * GIB)
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            for _ in range(20):
                matrix @ matrix
            torch.cuda.synchronize()

    thread = threading.Thread(target=compute)
    if busy:
        thread.start()
        time.sleep(0.5)
    state = f"GPU {'busy' if busy else 'idle'}, {'zeroed' if zero else 'not zeroed'}"
    eight = 8 * GIB // vmm.page_size
    try:
        arena.back(range(eight))
        print(f"\none page, {state}: {spread(one_by_one(arena.back, range(eight, eight + 500)))}")
        giving = threading.Thread(target=lambda: arena.unback(range(eight)))
        giving.start()
        beside: list[float] = []
        while not beside or (giving.is_alive() and len(beside) < 400):
            beside += one_by_one(arena.back, [eight + 500 + len(beside)])
        giving.join()
        print(f"one page while 8 GiB are given back, {state}: {spread(beside)} ({len(beside)} pages)")
        assert arena.backed_blocks == 500 + len(beside)
    finally:
        stop.set()
        if busy:
            thread.join()
    torch.cuda.synchronize()
    vmm.close()


def test_other_threads_and_contexts(vmm: CudaVmm, torch: Any) -> None:
    torch.zeros(1, device="cuda")
    assert int(vmm._call(cu.cuCtxGetCurrent)) == int(vmm._context)  # torch uses the same one
    arena = an_arena(vmm, GIB)
    seen: list[object] = []

    def elsewhere() -> None:
        before = int(vmm._call(cu.cuCtxGetCurrent))
        arena.back(range(100))
        arena.unback(range(50))
        seen.extend([before, int(vmm._call(cu.cuCtxGetCurrent))])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [0, 0]
    assert arena.backed_blocks == 50


def test_paging_beside_kernels_and_a_graphs_capture(vmm: CudaVmm, torch: Any) -> None:
    """Pages come and go on one thread while another computes on its own pages, and captures graphs."""
    page = vmm.page_size
    arena = an_arena(vmm, 512 * page)
    view = arena.tensor().view(torch.int32).view(512, -1)
    arena.back(range(8))
    stop, problems, rounds = threading.Event(), list[BaseException](), [0]

    def churn() -> None:
        choose = random.Random(3)
        try:
            while not stop.is_set():
                some = choose.sample(range(100, 500), 40)
                arena.back(some)
                arena.unback(some)
                rounds[0] += 1
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for turn in range(40):
            graph = torch.cuda.CUDAGraph()
            view[0].fill_(turn)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                for block in range(1, 8):
                    view[block].copy_(view[block - 1])
                    view[block].add_(1)
            graph.replay()
            torch.cuda.synchronize()
            assert [int(view[block].min()) for block in range(8)] == [turn + block for block in range(8)]
            assert [int(view[block].max()) for block in range(8)] == [turn + block for block in range(8)]
    finally:
        stop.set()
        thread.join()
    print(f"\n{rounds[0]} rounds of 40 pages beside 40 captures")
    assert not problems
    assert rounds[0] > 0
    del graph


def test_larger_pages_and_errors_with_the_drivers_name(vmm: CudaVmm) -> None:
    large = CudaVmm(page_size=32 * MIB)
    arena = an_arena(large, 4 * GIB)
    took = seconds(lambda: arena.back(range(128)))
    print(f"\n4 GiB in pages of 32 MiB backed in {took:.3f} s: {4 * GIB / took / 1e9:.0f} GB/s")
    assert not any(read(large, arena.address + 127 * 32 * MIB, MIB))
    large.close()
    with pytest.raises(VmmError, match="cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE"):
        CudaVmm(99)
    with pytest.raises(VmmError, match="cuMemAddressReserve failed: CUDA_ERROR"):
        vmm.reserve(1 << 60)
