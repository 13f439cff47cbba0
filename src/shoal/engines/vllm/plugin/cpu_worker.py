"""The same worker for vLLM's CPU build: `--worker-cls shoal.engines.vllm.plugin.cpu_worker.ElasticCPUWorker`."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from .worker import ElasticMixin


class ElasticCPUWorker(ElasticMixin, CPUWorker):  # type: ignore[misc]
    """The CPU's worker."""
