"""Virtual memory of a device: reserve addresses, back them with physical pages, take the pages away again."""

from __future__ import annotations

from shoal.memory.vmm.base import AddressRange, OutOfMemory, Vmm, VmmError

__all__ = ["AddressRange", "OutOfMemory", "Vmm", "VmmError", "open_vmm"]


def open_vmm(device: str) -> Vmm:
    """The virtual memory of ``"cpu"`` or of ``"cuda:N"``, numbered as the process sees its GPUs.

    Raises ValueError for any other name, VmmError if the device cannot be used.
    """
    if device == "cpu":
        from shoal.memory.vmm.host import HostVmm

        return HostVmm()
    kind, _, ordinal = device.partition(":")
    if kind == "cuda" and ordinal.isdecimal():
        from shoal.memory.vmm.cuda import CudaVmm

        return CudaVmm(int(ordinal))
    raise ValueError(f"{device!r} is no device; give cpu or one such as cuda:0")
