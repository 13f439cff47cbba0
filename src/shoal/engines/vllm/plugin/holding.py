"""What a worker's process holds of its GPU, measured: for those who cannot tell its process from others there.

All that vLLM allocates is in segments of torch's allocator, also what its sleep unmaps. That keeps its addresses, so
torch and vLLM go on listing them: hence the driver is asked of each whether there is memory behind it. What comes past
torch (CUDA's context, NCCL's buffers) is not counted: a sleep leaves it as it is.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch


def held(device: torch.device) -> int:
    """Bytes of memory that torch's allocator has on `device`. Raises RuntimeError if that is not known."""
    index = torch.cuda.current_device() if device.index is None else device.index
    segments = [one for one in torch.cuda.memory_snapshot() if one["device"] == index]
    if not segments:  # an allocator of another kind lists nothing, and a worker without weights has nothing to say
        raise RuntimeError("torch's allocator lists no memory")
    driver = importlib.import_module("cuda.bindings.driver")
    return sum(int(one["total_size"]) for one in segments if _is_mapped(driver, int(one["address"])))


def _is_mapped(driver: Any, address: int) -> bool:
    code, mapped = driver.cuPointerGetAttribute(driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MAPPED, address)
    if code == driver.CUresult.CUDA_ERROR_INVALID_VALUE:  # addresses without memory are none that the driver knows
        return False
    if code != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"cuPointerGetAttribute failed with {getattr(code, 'name', code)}")
    return bool(mapped)
