"""vLLM's metric names, which the simulated engine shares, read into `EngineMetrics`."""

from __future__ import annotations

from shoal.engines.base import EngineMetrics
from shoal.engines.promtext import parse_samples


def read_vllm_metrics(text: str) -> EngineMetrics:
    """Readings out of a page at vLLM's `/metrics`. With several engine cores in one process they are summed."""
    samples = parse_samples(text)
    usage = samples.get("vllm:kv_cache_usage_perc", samples.get("vllm:gpu_cache_usage_perc"))  # the older name
    return EngineMetrics(
        requests_running=samples.get("vllm:num_requests_running"),
        requests_waiting=samples.get("vllm:num_requests_waiting"),
        kv_usage=None if usage is None else min(1.0, max(0.0, usage)),
        prompt_tokens_total=samples.get("vllm:prompt_tokens_total"),
        generation_tokens_total=samples.get("vllm:generation_tokens_total"),
        preemptions_total=samples.get("vllm:num_preemptions_total"),
        prefix_queries_total=samples.get("vllm:prefix_cache_queries_total"),
        prefix_hits_total=samples.get("vllm:prefix_cache_hits_total"),
        # A histogram of tokens per step, despite its name: its count is the number of steps.
        steps_total=samples.get("vllm:iteration_tokens_total_count"),
        device_memory=samples.get("simulated:device_memory_bytes"),  # vLLM itself does not say
    )
