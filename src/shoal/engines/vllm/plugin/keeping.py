"""vLLM's allocator for sleep, with copies of the weights that are kept. Loaded on GPUs only."""

from __future__ import annotations

from typing import Any

from vllm.device_allocator.cumem import CuMemAllocator

from .copies import Allocation, HostCopies

WEIGHTS = "weights"
"""vLLM's tag of what it loads a model into."""


class KeepingAllocator(CuMemAllocator):  # type: ignore[misc]
    """Takes the place of vLLM's one allocator before anything was allocated with it."""

    copies: HostCopies | None = None

    @staticmethod
    def install() -> KeepingAllocator:
        """Make it the one that vLLM uses from now on. Raises RuntimeError if vLLM's own is in use already."""
        stock = CuMemAllocator.get_instance()
        if stock.pointer_to_data:
            raise RuntimeError("its allocator is in use already")
        CuMemAllocator.instance = allocator = KeepingAllocator()
        return allocator

    def weights(self) -> list[Allocation]:
        """What weights lie in."""
        found = list(self.pointer_to_data.items())
        return [Allocation(pointer, data.handle[1], data) for pointer, data in found if data.tag == WEIGHTS]

    def sleep(self, offload_tags: Any = None) -> None:
        """As vLLM's, but weights that have a copy are not copied again. Where that fails vLLM copies them itself, and
        what was kept is given up for that."""
        copies, tags = self.copies, (offload_tags,) if isinstance(offload_tags, str) else offload_tags or ()
        if copies is None or WEIGHTS not in tags or not copies.finish():
            if copies is not None:
                if WEIGHTS in tags:
                    copies.give_up()
                copies.sleeps()
            super().sleep(offload_tags)
            return
        super().sleep(tuple(tag for tag in tags if tag != WEIGHTS))
        copies.lend()

    def wake_up(self, tags: list[str] | None = None) -> None:
        """As vLLM's: what was lent to it is copied back, and stays."""
        super().wake_up(tags)
        if self.copies is not None and (tags is None or WEIGHTS in tags):
            self.copies.woke()

    def _python_free_callback(self, ptr: int) -> Any:
        if self.copies is None:
            return super()._python_free_callback(ptr)
        with self.copies.freeing():
            handle = super()._python_free_callback(ptr)
            self.copies.freed(ptr)
        return handle
