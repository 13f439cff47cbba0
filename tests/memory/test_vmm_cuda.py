"""The CUDA driver's calls, in order and undone, against a model of the driver. The real one is in tests/gpu."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.memory.vmm import OutOfMemory, VmmError
from shoal.memory.vmm.cuda import CudaVmm
from tests.memory.fake_driver import GRANULARITY, OUT_OF_MEMORY, CUresult, FakeDriver


def a_vmm(pages: int = 16, *, keep: int = 0, zero: bool = True) -> tuple[FakeDriver, CudaVmm]:
    driver = FakeDriver(pages)
    return driver, CudaVmm(driver=driver, keep_bytes=keep * GRANULARITY, zero=zero)


def test_pages_come_and_go() -> None:
    driver, vmm = a_vmm()
    addresses = vmm.reserve(10 * GRANULARITY - 1)
    assert addresses.size == 10 * GRANULARITY
    vmm.back(addresses, 2, 5)
    pages = {addresses.address + page * GRANULARITY for page in range(2, 7)}
    assert driver.accessible == set(driver.mapped) == pages
    assert not driver.dirty
    assert driver.calls.count("cuMemSetAccess") == driver.calls.count("cuMemsetD8Async") == 1
    vmm.unback(addresses, 3, 2)
    assert driver.calls.count("cuMemUnmap") == 1
    assert vmm.kept_bytes == 2 * GRANULARITY
    assert vmm.trim() == 2 * GRANULARITY
    assert driver.used == 3 * GRANULARITY
    assert vmm.memory() == (13 * GRANULARITY, 16 * GRANULARITY)
    vmm.close()
    vmm.close()
    assert not (driver.used or driver.reserved or driver.mapped or driver.retained or driver.streams)
    with pytest.raises(ValueError, match="was closed"):
        vmm.reserve(1)


def test_kept_memory_is_reused_zeroed_and_bounded() -> None:
    driver, vmm = a_vmm(keep=3)
    addresses = vmm.reserve(10 * GRANULARITY)
    vmm.back(addresses, 0, 8)
    vmm.unback(addresses, 0, 8)
    assert vmm.trim() == 5 * GRANULARITY
    assert driver.used == vmm.kept_bytes == 3 * GRANULARITY
    created = driver.calls.count("cuMemCreate")
    vmm.back(addresses, 5, 4)
    assert driver.calls.count("cuMemCreate") == created + 1
    assert vmm.kept_bytes == 0
    assert not driver.dirty
    vmm.unback(addresses, 5, 4)
    assert vmm.trim(0) == 4 * GRANULARITY
    assert driver.used == 0


def test_without_zeroing_nothing_is_written() -> None:
    driver, vmm = a_vmm(zero=False)
    vmm.back(vmm.reserve(GRANULARITY), 0, 1)
    assert "cuMemsetD8Async" not in driver.calls


def test_only_reused_memory_is_zeroed_if_the_driver_is_trusted() -> None:
    driver = FakeDriver(16)
    vmm = CudaVmm(driver=driver, keep_bytes=2 * GRANULARITY, zero="reused")
    addresses = vmm.reserve(10 * GRANULARITY)
    vmm.back(addresses, 0, 3)
    assert "cuMemsetD8Async" not in driver.calls
    vmm.unback(addresses, 0, 3)
    vmm.trim()
    vmm.back(addresses, 5, 4)
    assert driver.dirty == {addresses.address + page * GRANULARITY for page in (7, 8)}  # the two that are new


def test_out_of_memory_is_an_answer_and_changes_nothing() -> None:
    driver, vmm = a_vmm(10)
    addresses = vmm.reserve(20 * GRANULARITY)
    vmm.back(addresses, 0, 4)
    mapped = dict(driver.mapped)
    with pytest.raises(
        OutOfMemory, match=r"cuMemCreate of 7 pages failed after 6 \(CUDA_ERROR_OUT_OF_MEMORY\)"
    ) as caught:
        vmm.back(addresses, 10, 7)
    assert caught.value.pages == 6
    vmm.trim()
    assert driver.mapped == mapped
    assert driver.used == 4 * GRANULARITY
    vmm.back(addresses, 10, 6)


STEPS = ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemsetD8Async", "cuStreamSynchronize"]


@settings(deadline=None)
@given(
    step=st.sampled_from(STEPS),
    nth=st.integers(1, 4),
    count=st.integers(1, 4),
    keep=st.integers(0, 3),
    error=st.sampled_from([OUT_OF_MEMORY, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS]),
)
def test_a_failure_anywhere_is_rolled_back(step: str, nth: int, count: int, keep: int, error: CUresult) -> None:
    driver, vmm = a_vmm(keep=keep)
    addresses = vmm.reserve(10 * GRANULARITY)
    vmm.back(addresses, 0, 3)
    vmm.unback(addresses, 1, 2)
    vmm.trim()
    mapped, used = dict(driver.mapped), driver.used
    driver.fail, driver.error = {step: nth}, error
    caught: OutOfMemory | VmmError | None = None
    try:
        vmm.back(addresses, 4, count)
    except (OutOfMemory, VmmError) as problem:
        caught = problem
    if caught is None:
        assert step in driver.fail  # that call was not reached
        vmm.unback(addresses, 4, count)
    else:
        assert (caught.operation, caught.name) == (step, error.name)
        assert isinstance(caught, OutOfMemory) == (error is OUT_OF_MEMORY)
        assert not isinstance(caught, OutOfMemory) or 0 <= caught.pages < count
    driver.fail = {}
    vmm.trim()
    assert driver.mapped == mapped
    assert used - 2 * GRANULARITY <= driver.used <= GRANULARITY + keep * GRANULARITY
    assert driver.used == GRANULARITY + vmm.kept_bytes
    assert not driver._stack()
    vmm.back(addresses, 4, count)
    vmm.close()
    assert driver.used == 0


def test_what_cannot_be_unmapped_or_released_is_still_counted() -> None:
    driver, vmm = a_vmm()
    addresses = vmm.reserve(10 * GRANULARITY)
    vmm.back(addresses, 0, 3)
    driver.fail = {"cuMemUnmap": 1}
    with pytest.raises(VmmError, match="cuMemUnmap failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        vmm.unback(addresses, 0, 2)
    assert vmm.kept_bytes == 0
    vmm.unback(addresses, 0, 2)
    driver.fail = {"cuMemRelease": 2}
    with pytest.raises(VmmError, match="cuMemRelease"):
        vmm.trim()
    assert vmm.kept_bytes == GRANULARITY
    # A rollback that fails leaves the page that was mapped to `free`, and the other's memory kept.
    driver.fail = {"cuMemMap": 2, "cuMemUnmap": 1}
    with pytest.raises(VmmError, match="cuMemUnmap"):
        vmm.back(addresses, 5, 2)
    vmm.close()
    assert driver.used == 0


def test_the_callers_context_and_capture_mode_are_left_alone() -> None:
    driver, vmm = a_vmm()
    addresses = vmm.reserve(8 * GRANULARITY)
    problems: list[object] = []

    def elsewhere(page: int) -> None:
        driver._stack().append("someone else's")
        for _ in range(50):
            vmm.back(addresses, page, 2)
            vmm.unback(addresses, page, 2)
            vmm.trim()
        if driver._stack() != ["someone else's"] or driver.threads.mode != 0:
            problems.append(driver._stack())

    threads = [threading.Thread(target=elsewhere, args=(2 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert driver.used == 0
    assert driver.retained == 1


def test_what_makes_no_sense_is_refused() -> None:
    driver, vmm = a_vmm()
    addresses = vmm.reserve(4 * GRANULARITY)
    vmm.back(addresses, 0, 2)
    with pytest.raises(ValueError, match="backed already"):
        vmm.back(addresses, 1, 2)
    with pytest.raises(ValueError, match="not backed"):
        vmm.unback(addresses, 1, 2)
    with pytest.raises(ValueError, match="not in a range"):
        vmm.back(addresses, 3, 2)
    vmm.free(addresses)
    with pytest.raises(ValueError, match="were freed"):
        vmm.back(addresses, 0, 1)
    with pytest.raises(ValueError, match="multiple of the device's 2097152"):
        CudaVmm(driver=driver, page_size=3 << 20)
    with pytest.raises(VmmError, match="cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE"):
        CudaVmm(1, driver=driver)
    driver.fail = {"cuStreamCreateWithPriority": 1}
    with pytest.raises(VmmError, match="cuStreamCreateWithPriority"):
        CudaVmm(driver=driver)
    assert driver.retained == 1
