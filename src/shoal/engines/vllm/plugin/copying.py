"""A worker that keeps host copies of its weights: `--worker-cls shoal.engines.vllm.plugin.copying.CopyingWorker`.

`collective_rpc` reaches `shoal_copies`, which takes, forgets and looks at them, and `shoal_holds`, which says what a
sleep has left on the device.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm.v1.worker.gpu_worker import Worker
from vllm.version import __version__ as VLLM_VERSION  # noqa: N812 - vLLM's own name for it

from shoal.memory.nvml import HOST, Machine

from . import hooks
from .copies import HostCopies

log = logging.getLogger("vllm.shoal")

_MACHINE = Machine()


class CopyingMixin:
    """What goes before vLLM's worker, and before what makes its memory elastic."""

    _host_copies: HostCopies | None = None
    _copyless_because = ""
    _settled = False
    """Whether the device was waited for, and now does nothing but read weights."""

    def _maybe_get_memory_pool_context(self, tag: str) -> Any:
        if self._host_copies is None and not self._copyless_because:  # the first of all: nothing is allocated yet
            self._keep_copies()
        return super()._maybe_get_memory_pool_context(tag)  # type: ignore[misc]

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """One step, which copying gives way to."""
        if self._host_copies is not None:
            self._host_copies.step()
        return super().execute_model(*args, **kwargs)  # type: ignore[misc]

    def sleep(self, level: int = 1) -> None:
        """As vLLM's. What cannot be copied is found out before anything is taken away."""
        copies = self._host_copies
        if copies is None or level != 1:
            super().sleep(level)  # type: ignore[misc]
            return
        self._settled = copies.begin()
        try:
            super().sleep(level)  # type: ignore[misc]
        finally:
            self._settled = False
        log.info("Shoal: asleep, for which %.2f GiB of weights had to be copied", copies.copied / 2**30)

    def shoal_copies(self, what: str = "look") -> dict[str, Any]:
        """`take` copies of what has none, in the background; `forget` them; or only `look` at them."""
        copies = self._host_copies
        if copies is None:
            return {"size": 0, "held": 0, "reserved": 0, "taking": False, "reason": self._copyless_because}
        if what not in ("take", "forget", "look"):
            raise ValueError(f"shoal_copies takes take, forget or look, not {what!r}")
        return {"take": copies.take, "forget": copies.forget, "look": copies.look}[what]()

    def shoal_holds(self) -> dict[str, Any]:
        """Bytes of its device that this process holds now, `pages` of elastic KV cache among them; see `holding`."""
        worker: Any = self
        memory = getattr(worker, "_shoal", None)
        arena = memory.rank.arena if memory is not None else None
        pages = 0 if arena is None else int(arena.held_bytes)
        try:
            from .holding import held

            return {"held": held(worker.device) + pages, "pages": pages}
        except (RuntimeError, ImportError, AttributeError, KeyError) as error:  # there are other readings
            log.debug("Shoal: what this process holds is not known: %s", error)
            return {"reason": f"{type(error).__name__}: {error}"}

    def shutdown(self) -> None:
        """Stop copying first."""
        if self._host_copies is not None:
            self._host_copies.close()
        super().shutdown()  # type: ignore[misc]

    def _keep_copies(self) -> None:
        """Take the place of vLLM's allocator; where that is not as expected, vLLM sleeps as it does without Shoal."""
        worker: Any = self
        if not getattr(worker.vllm_config.model_config, "enable_sleep_mode", False):
            self._copyless_because = "this engine was started without sleep"
            return
        try:
            hooks.verify(hooks.COPY_HOOKS, VLLM_VERSION)
            from .keeping import KeepingAllocator
            from .pinned import CudaMover

            allocator = KeepingAllocator.install()
            copies = HostCopies(allocator.weights, CudaMover(worker.device), host_room)
        except (RuntimeError, ValueError, ImportError, AttributeError, AssertionError) as error:
            self._copyless_because = str(error)
            log.warning("Shoal: weights are copied to the host anew at every sleep: %s", error)
            return
        self._host_copies = allocator.copies = copies


class CopyingWorker(CopyingMixin, Worker):  # type: ignore[misc]
    """The GPU's worker, with a KV cache of vLLM's own."""


def host_room() -> int:
    """Bytes of the host's memory that are free."""
    reading = _MACHINE().get(HOST)
    return 0 if reading is None else reading.free
