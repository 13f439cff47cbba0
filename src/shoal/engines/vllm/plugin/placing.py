"""Gives vLLM an arena's addresses where it asks torch for its KV cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Placement(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, `torch.zeros(size, dtype=torch.int8)` is answered with `place()`, and nothing else is.

    vLLM makes its one KV tensor that way. The addresses read as zeros once they are backed, and fault before.
    """

    def __init__(self, size: int, place: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self._size = size
        self._place = place
        self.placed = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and kwargs.get("dtype") is torch.int8 and self._wanted(args, kwargs):
            self.placed += 1
            return self._place()
        return func(*args, **kwargs)

    def _wanted(self, args: Any, kwargs: Any) -> bool:
        size = args[0] if args else kwargs.get("size")
        if isinstance(size, tuple | list) and len(size) == 1:
            size = size[0]
        return isinstance(size, int) and size == self._size
