"""vLLM's worker with an elastic KV cache: `--worker-cls shoal.engines.vllm.plugin.worker.ElasticWorker`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from vllm.v1.worker.gpu_worker import Worker
from vllm.version import __version__ as VLLM_VERSION  # noqa: N812 - vLLM's own name for it

from shoal.memory.client import Lease, LeaseError
from shoal.memory.client import Rank as LeasedRank
from shoal.memory.elastic import ElasticTerms
from shoal.memory.pages import PageMap
from shoal.memory.vmm import Vmm

from . import hooks
from .copying import CopyingMixin
from .layout import NotElasticError, gpu_page, plan, refuse_others
from .placing import Placement
from .rank import RankMemory

log = logging.getLogger("vllm.shoal")

CONTEXT_PARALLEL = ("decode_context_parallel_size", "prefill_context_parallel_size")
UNSCALED = ("auto", "bfloat16", "float16", "float32")
BROKER_TIMEOUT = 30.0
WARM_UP_TIMEOUT = 120.0


class ElasticMixin:
    """What both the GPU's and the CPU's worker do; goes before vLLM's class."""

    _shoal: _Memory | None = None

    def determine_available_memory(self) -> int:
        """Bytes of KV cache: addresses if the model can be elastic, else a fixed size."""
        worker: Any = self
        available = int(super().determine_available_memory())  # type: ignore[misc]
        self._shoal = memory = _Memory(worker)
        return memory.fixed(available) if memory.reason else available

    def initialize_from_config(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        """Place the KV cache in the arena's addresses."""
        memory = self._shoal
        if memory is not None and not memory.reason:
            memory.plan(kv_cache_config)
        try:
            super().initialize_from_config(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        finally:
            if memory is not None:
                memory.ready()

    def _maybe_get_memory_pool_context(self, tag: str) -> Any:
        memory = self._shoal
        if tag == "kv_cache" and memory is not None and memory.placement is not None:
            return memory.placement
        return super()._maybe_get_memory_pool_context(tag)  # type: ignore[misc]

    def compile_or_warm_up_model(self) -> Any:
        """Blocks that warm-up steps make up for themselves are backed as they come, and go when it is over."""
        memory = self._shoal
        if memory is None or memory.reason:
            return super().compile_or_warm_up_model()  # type: ignore[misc]
        with memory.warm_up():
            return super().compile_or_warm_up_model()  # type: ignore[misc]

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """One step; while warming up, with its blocks backed first."""
        memory = self._shoal
        if memory is not None and memory.warming is not None:
            memory.warming.back(_blocks_of(scheduler_output))
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def sleep(self, level: int = 1) -> None:
        """All KV memory goes first, then what vLLM offloads."""
        if self._shoal is not None:
            if not getattr(self, "_settled", False):
                self._shoal.settle()
            self._shoal.suspend()
        super().sleep(level)  # type: ignore[misc]

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Block 0 comes back before anything runs; the rest as it is needed."""
        if self._shoal is not None and (tags is None or "kv_cache" in tags):
            self._shoal.rank.resumed()
        super().wake_up(tags)  # type: ignore[misc]

    def shutdown(self) -> None:
        """Give all memory back."""
        super().shutdown()  # type: ignore[misc]
        if self._shoal is not None:
            self._shoal.close()


class ElasticWorker(CopyingMixin, ElasticMixin, Worker):  # type: ignore[misc]
    """The GPU's worker."""


class _Memory:
    """What one worker knows of its memory until the pager takes over."""

    def __init__(self, worker: Any) -> None:
        hooks.verify(hooks.WORKER_HOOKS, VLLM_VERSION)
        self.terms = terms = ElasticTerms.read(os.environ)
        self._parallel = worker.vllm_config.parallel_config
        # Where the scheduler lives: here, or in the process that started this one.
        self._scheduler = os.getppid() if _is_worker_process(self._parallel) else os.getpid()
        self.engine = engine_name(terms, self._scheduler)
        self._torch_device = torch.device(worker.device)
        device, size = describe_device(self._torch_device)
        self.rank = RankMemory(self.engine, int(worker.rank), device, size)
        self.placement: Placement | None = None
        self.warming: _WarmUp | None = None
        self.reason = _refusal(worker)
        self.rank.reason = self.reason
        if self.reason and terms.mode == "required":
            raise NotElasticError(f"elastic memory is required, but not possible: {self.reason}")

    def fixed(self, available: int) -> int:
        """The bytes of a KV cache that cannot be elastic."""
        size = min(available, self.terms.fixed)
        log.warning(
            "Shoal: the KV cache of this model is not elastic but has a fixed size of %.2f GiB: %s",
            size / 2**30,
            self.reason,
        )
        return size

    def plan(self, config: Any) -> None:
        """Lay the cache of `config` out, and catch vLLM's allocation of it."""
        suitable = gpu_page(config) if self._torch_device.type == "cuda" else None
        vmm = open_device(self._torch_device, self.terms.page or suitable)
        layout = plan(config, vmm.page_size)
        if self._torch_device.type == "cuda" and len(layout.geometry.runs) > 1:
            raise NotElasticError(
                "blocks lie in many pieces, so that none could be given back alone; set VLLM_KV_CACHE_LAYOUT=BLNHC and "
                "an attention backend that supports it, or run the model with a fixed KV cache (elastic: off)"
            )
        self.placement = Placement(layout.size, lambda: self.rank.place(vmm, layout))

    def ready(self) -> None:
        """vLLM has its cache: from now on the pager may call."""
        placement, self.placement = self.placement, None
        if placement is not None and placement.placed != 1:
            raise hooks.HookError(
                f"vLLM {VLLM_VERSION} did not ask for its KV cache as expected ({placement.placed} times for "
                "torch.zeros(size, dtype=torch.int8)); run the model with a fixed KV cache (elastic: off)"
            )
        if self._scheduler != os.getpid():
            self.rank.serve(self._scheduler)

    @contextlib.contextmanager
    def warm_up(self) -> Iterator[None]:
        """While vLLM warms up, what it touches is backed under a lease of its own."""
        self.warming = _WarmUp(self.rank, self.terms)
        try:
            self.warming.back([0])
            yield
        finally:
            warming, self.warming = self.warming, None
            self.settle()
            warming.close()

    def suspend(self) -> None:
        """Take the cache away. Nothing that this rank has begun may still touch it."""
        self.rank.suspended()

    def close(self) -> None:
        self.rank.close()

    def settle(self) -> None:
        """Wait for all that the device has been given to do."""
        if self._torch_device.type == "cuda":
            torch.cuda.synchronize(self._torch_device)


class _WarmUp:
    """Backs what warm-up steps use, before a scheduler exists that would know."""

    def __init__(self, rank: RankMemory, terms: ElasticTerms) -> None:
        self._rank = rank
        self._socket = terms.socket
        self._map = PageMap(_geometry(rank))
        name = f"{rank.engine}:start"
        self._lease = Lease(terms.socket, LeasedRank(name, rank.device, rank.device_size, rank.rank))
        try:
            self._lease.wait_connected(BROKER_TIMEOUT)
        except LeaseError:
            self._lease.close()
            raise

    def back(self, blocks: list[int]) -> None:
        """Back those of `blocks` that are not. Raises RuntimeError if there is no memory for them."""
        ids = sorted({block for block in blocks if not self._map.is_backed(block)})
        if not ids:
            return
        plan = self._map.plan_back(ids)
        need = self._map.backed_bytes + plan.size
        self._lease.ask(need, need)
        if not self._lease.wait_lease(need, WARM_UP_TIMEOUT):
            raise RuntimeError(
                f"warming up needs {need >> 20} MiB of KV cache on {self._rank.device}, but the memory broker on "
                f"{self._socket} gave {self._lease.lease >> 20} MiB within {WARM_UP_TIMEOUT:.0f} s; free memory on the "
                "device, raise the broker's limit, or lower --max-num-seqs"
            )
        done = self._rank.back(ids)
        if done < len(ids):
            raise RuntimeError(
                f"warming up needs {need >> 20} MiB of KV cache on {self._rank.device}, which another program took; "
                "free memory on the device and start again"
            )
        self._map.commit(plan)

    def close(self) -> None:
        if ids := self._map.ids():
            self._rank.unback(ids)
        self._lease.close()


def engine_name(terms: ElasticTerms, scheduler: int) -> str:
    """The name at the broker: as given, or after the process that the scheduler runs in."""
    return terms.engine or f"vllm-{scheduler}"


def describe_device(device: torch.device) -> tuple[str, int]:
    """A device's key at the broker, and its size in bytes."""
    if device.type == "cpu":
        return "host", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    properties = torch.cuda.get_device_properties(device)
    uuid = str(properties.uuid)
    return (uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"), int(properties.total_memory)


def open_device(device: torch.device, page: int | None = None) -> Vmm:
    """The virtual memory of a worker's device, in pages of `page` bytes (the device's granularity, if None).

    Memory of the GPU that is not in use is not kept. Raises ValueError for a page that the device cannot have.
    """
    if device.type == "cpu":
        from shoal.memory.vmm.host import HostVmm

        return HostVmm() if page is None else HostVmm(page_size=page)
    from shoal.memory.vmm.cuda import CudaVmm

    ordinal = torch.cuda.current_device() if device.index is None else device.index
    return CudaVmm(ordinal, page_size=page, keep_bytes=0)


def _refusal(worker: Any) -> str:
    """Why this model cannot be elastic; empty if it can."""
    config, parallel = worker.vllm_config, worker.vllm_config.parallel_config
    if parallel.data_parallel_size > 1:
        return "data parallel ranks run steps of their own, which may touch memory that is gone"
    if parallel.pipeline_parallel_size > 1:
        return "the stages of a pipeline have caches of different shapes"
    if any(getattr(parallel, name, 1) > 1 for name in CONTEXT_PARALLEL):
        return "context parallel ranks share the blocks of a request"
    if config.speculative_config is not None:
        return "a draft of speculative decoding may still use a request's blocks when its step counts as processed"
    if config.kv_transfer_config is not None:
        return f"the KV connector {config.kv_transfer_config.kv_connector} registers the whole cache"
    if (
        getattr(config.model_config, "enable_sleep_mode", False)
        and str(config.cache_config.cache_dtype) not in UNSCALED
    ):
        return "waking from sleep clears the whole of a quantised cache"
    try:
        refuse_others(worker.get_kv_cache_spec())
    except NotElasticError as error:
        return str(error)
    return ""


def _is_worker_process(parallel: Any) -> bool:
    return parallel.distributed_executor_backend not in (None, "uni")


def _geometry(rank: RankMemory) -> Any:
    assert rank.arena is not None
    return rank.arena.geometry


def _blocks_of(scheduler_output: Any) -> list[int]:
    """The blocks that a step is the first to use."""
    found: list[int] = []
    for request in scheduler_output.scheduled_new_reqs:
        for ids in request.block_ids:
            found.extend(ids)
    for groups in scheduler_output.scheduled_cached_reqs.new_block_ids:
        for ids in groups or ():
            found.extend(ids)
    return found
