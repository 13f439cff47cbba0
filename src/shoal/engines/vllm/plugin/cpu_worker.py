"""The same worker for vLLM's CPU build: `--worker-cls shoal.engines.vllm.plugin.cpu_worker.ElasticCPUWorker`."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from .worker import ElasticMixin


class _VirtualCPUWorker(CPUWorker):  # type: ignore[misc]
    """vLLM refuses a cache above the memory that is free now; ours is made of addresses."""

    def determine_available_memory(self) -> int:
        size = self.cache_config.kv_cache_memory_bytes
        if size is None:
            return int(super().determine_available_memory())
        self.cache_config.kv_cache_memory_bytes = 1
        try:
            super().determine_available_memory()
        finally:
            self.cache_config.kv_cache_memory_bytes = size
        return int(size)


class ElasticCPUWorker(ElasticMixin, _VirtualCPUWorker):
    """The CPU's worker."""
