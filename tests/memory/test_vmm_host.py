"""Virtual memory on the host, seen from outside: by the kernel's own count of resident memory."""

from __future__ import annotations

import ctypes
import mmap
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.memory.vmm import AddressRange, OutOfMemory, VmmError, open_vmm
from shoal.memory.vmm import host as host_module
from shoal.memory.vmm.host import HostVmm

PAGE = mmap.PAGESIZE
MIB = 1 << 20


@pytest.fixture
def vmm() -> Iterator[HostVmm]:
    vmm = HostVmm()
    yield vmm
    vmm.close()


def guarded(vmm: HostVmm, pages: int) -> AddressRange:
    """A range whose first and last page stay unbacked, so that the kernel does not merge it with a neighbour."""
    return vmm.reserve((pages + 2) * PAGE)


def read(addresses: AddressRange, page: int, count: int = 1) -> bytes:
    return ctypes.string_at(addresses.address + page * PAGE, count * PAGE)


def write(addresses: AddressRange, page: int, count: int = 1) -> None:
    ctypes.memset(addresses.address + page * PAGE, 0xA5, count * PAGE)


def backed_size(addresses: AddressRange) -> int:
    """Resident bytes of the usable mappings that lie in the range."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (....)", line):
            start, end = int(head[1], 16), int(head[2], 16)
            inside = addresses.address <= start and end <= addresses.address + addresses.size and head[3] == "rw-p"
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_backed_pages_are_resident_and_unbacked_ones_are_gone_at_once(vmm: HostVmm) -> None:
    addresses = guarded(vmm, 8192)
    assert backed_size(addresses) == 0
    vmm.back(addresses, 1, 8192)
    assert backed_size(addresses) == 8192 * PAGE
    vmm.unback(addresses, 1, 4096)
    assert backed_size(addresses) == 4096 * PAGE
    vmm.unback(addresses, 4097, 4096)
    assert backed_size(addresses) == 0
    assert vmm.kept_bytes == vmm.trim() == 0


def test_pages_come_back_as_zeros(vmm: HostVmm) -> None:
    addresses = guarded(vmm, 16)
    vmm.back(addresses, 1, 16)
    assert not any(read(addresses, 1, 16))
    write(addresses, 1, 16)
    vmm.unback(addresses, 4, 8)
    vmm.back(addresses, 4, 8)
    assert not any(read(addresses, 4, 8))
    assert set(read(addresses, 1, 3) + read(addresses, 12, 5)) == {0xA5}


def test_a_terabyte_of_addresses_costs_nothing() -> None:
    vmm = HostVmm(page_size=2 * MIB)
    addresses = vmm.reserve(1 << 40)
    vmm.back(addresses, (1 << 39) // (2 * MIB), 1)
    assert backed_size(addresses) == 2 * MIB
    vmm.close()


def test_mappings_do_not_pile_up(vmm: HostVmm) -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    addresses = guarded(vmm, 2000)
    before = mappings()
    for _ in range(3):
        for page in range(1, 2000, 2):
            vmm.back(addresses, page, 1)
        for page in range(1, 2000, 2):
            vmm.unback(addresses, page, 1)
    assert mappings() < before + 50


@pytest.mark.parametrize("deed", ["ctypes.string_at(at, 1)", "ctypes.memset(at, 1, 1)"])
@pytest.mark.parametrize("past", ["never backed", "unbacked"])
def test_an_address_that_is_not_backed_faults(deed: str, past: str) -> None:
    code = f"""
import ctypes
from shoal.memory.vmm.host import HostVmm
vmm = HostVmm()
addresses = vmm.reserve(3 * vmm.page_size)
at = addresses.address + vmm.page_size
if {past!r} == "unbacked":
    vmm.back(addresses, 1, 1)
    {deed}
    vmm.unback(addresses, 1, 1)
print("so far", flush=True)
{deed}
print("survived", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGSEGV
    assert ended.stdout == "so far\n"


def test_the_limit_is_out_of_memory_and_changes_nothing() -> None:
    vmm = HostVmm(limit=10 * PAGE)
    one, two = guarded(vmm, 16), guarded(vmm, 16)
    vmm.back(one, 1, 6)
    with pytest.raises(OutOfMemory, match="of 5 pages failed after 4") as caught:
        vmm.back(two, 1, 5)
    assert caught.value.pages == 4
    assert backed_size(two) == 0
    vmm.back(two, 1, 4)
    with pytest.raises(OutOfMemory):
        vmm.back(one, 7, 1)
    vmm.free(two)
    vmm.back(one, 7, 4)
    vmm.close()


def test_memory_that_the_system_refuses_is_out_of_memory_and_changes_nothing() -> None:
    """In a process of its own, whose address space leaves room to reserve and no room to write."""
    code = """
import resource
from shoal.memory.vmm import OutOfMemory
from shoal.memory.vmm.host import HostVmm
vmm = HostVmm(page_size=2 << 20)
addresses = vmm.reserve(1 << 30)
vmm.back(addresses, 0, 1)
resource.setrlimit(resource.RLIMIT_DATA, (64 << 20, 64 << 20))
try:
    vmm.back(addresses, 1, 500)
except OutOfMemory as error:
    print(error)
vmm.back(addresses, 1, 2)
vmm.unback(addresses, 0, 3)
vmm.close()
print("fine")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "out of memory: mprotect of 500 pages failed after 0 (ENOMEM)\nfine\n"


def test_an_old_kernel_is_served_too(vmm: HostVmm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "_MADV_POPULATE_WRITE", 9999)  # EINVAL, as before Linux 5.14
    addresses = guarded(vmm, 64)
    vmm.back(addresses, 1, 64)
    assert backed_size(addresses) == 64 * PAGE


def test_errors_carry_the_systems_name(vmm: HostVmm) -> None:
    with pytest.raises(VmmError, match="mmap failed: ENOMEM") as caught:
        vmm.reserve(1 << 60)
    assert (caught.value.operation, caught.value.name) == ("mmap", "ENOMEM")


def test_what_makes_no_sense_is_refused(vmm: HostVmm) -> None:
    addresses = guarded(vmm, 4)
    vmm.back(addresses, 1, 2)
    with pytest.raises(ValueError, match="backed already"):
        vmm.back(addresses, 2, 2)
    with pytest.raises(ValueError, match="not backed"):
        vmm.unback(addresses, 2, 2)
    for first, count in ((-1, 1), (0, 0), (5, 2)):
        with pytest.raises(ValueError, match="not in a range"):
            vmm.back(addresses, first, count)
    vmm.free(addresses)
    with pytest.raises(ValueError, match="were freed"):
        vmm.back(addresses, 1, 1)
    with pytest.raises(ValueError, match="multiple"):
        HostVmm(page_size=PAGE + 1)
    with pytest.raises(ValueError, match="give cpu or one such as cuda:0"):
        open_vmm("tpu:0")
    assert open_vmm("cpu").page_size == PAGE
