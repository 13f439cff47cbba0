"""vLLM's scheduler over an elastic KV cache: `--scheduler-cls shoal.engines.vllm.plugin.scheduler.ElasticScheduler`."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus
from vllm.version import __version__ as VLLM_VERSION  # noqa: N812 - vLLM's own name for it

from shoal.memory.client import Rank
from shoal.memory.elastic import ElasticTerms

from . import hooks
from .demand import LEASE_AHEAD, Workload
from .leases import Leases
from .needs import Needs
from .pace import Pace
from .pager import Pager
from .patience import Patience
from .pool import ElasticPool
from .ranks import find_ranks
from .worker import engine_name

log = logging.getLogger("vllm.shoal")

LOOKED_AT = 64
"""Waiting requests whose prompts are counted; the others are taken to be like them."""

SETTLED = 32
"""Requests that are past their prompts, from the last admitted on, after which those before them are taken to be so
too: vLLM admits in order. To look at all would take the interpreter from vLLM's own thread 20 times a second."""

GATHERED = 16
"""Waiting requests for which memory is got before the first step, at most."""

HOLD, HOLD_A_BLOCK, HOLD_STEP = 0.01, 0.0002, 0.005
"""Seconds for which a newcomer is held back at most, and more for each block it lacks; and at once if nothing runs."""

ALONE_TOKENS = 256
"""Tokens of its answer that a request which has the engine to itself should have room for when it begins."""

STUCK_WAIT = 0.02
"""Seconds for which an engine that can run nothing waits for memory before it looks at its messages again."""


class ElasticMixin:
    """What the asynchronous and the plain scheduler have in common; goes before vLLM's class."""

    pager: Pager | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        hooks.verify(hooks.SCHEDULER_HOOKS, VLLM_VERSION)
        super().__init__(*args, **kwargs)
        scheduler: Any = self
        terms = ElasticTerms.read(os.environ)
        engine = engine_name(terms, os.getpid())
        ranks = find_ranks(engine, scheduler.vllm_config.parallel_config.world_size)
        if ranks.reason:
            # The worker has said so already, and has given this model a cache of fixed size.
            ranks.close()
            return
        pool = scheduler.kv_cache_manager.block_pool
        hooks.verify_fields(self, hooks.SCHEDULER_FIELDS, VLLM_VERSION)
        hooks.verify_fields(pool, hooks.POOL_FIELDS, VLLM_VERSION)
        hooks.verify_fields(pool.free_block_queue, hooks.QUEUE_FIELDS, VLLM_VERSION)
        hooks.verify_fields(pool.null_block, hooks.BLOCK_FIELDS, VLLM_VERSION)
        geometry = ranks.geometry()
        if len(pool.blocks) != geometry.blocks:
            raise hooks.HookError(
                f"vLLM has {len(pool.blocks)} blocks, but its cache was laid out for {geometry.blocks}"
            )
        leased = [
            Rank(
                engine, d.device, d.device_size, number, terms.floor, terms.ceiling, terms.priority, geometry.block_size
            )
            for number, d in enumerate(ranks.descriptions)
        ]
        self._patience = Patience(terms.patience)
        self._steps = Pace()
        self._held = ("", 0.0)
        # Since some version the number of requests that run is limited apart from the number of the runner's slots.
        self._limit = "max_num_active_reqs" if hasattr(self, "max_num_active_reqs") else "max_num_running_reqs"
        # Read once: the pager's thread must not meet what `schedule` sets it to for a step.
        self._places = int(getattr(self, self._limit))
        self._sizes = [group.kv_cache_spec.block_size for group in scheduler.kv_cache_config.kv_cache_groups]
        config = scheduler.vllm_config
        self._needs = Needs(
            self._sizes,
            int(scheduler.scheduler_config.max_num_batched_tokens),
            # A connector that could not load a prefix has it computed after all.
            drafts=config.speculative_config is not None or config.kv_transfer_config is not None,
        )
        pager = Pager(ElasticPool(pool, geometry), ranks, Leases(terms, leased), self._workload)
        pager.start()
        self.pager = pager
        log.info(
            "Shoal: elastic KV cache of up to %.2f GiB in blocks of %.2f MiB on %d device(s), leased from %s as %s",
            geometry.size / 2**30,
            geometry.block_size / 2**20,
            len(leased),
            terms.socket,
            engine,
        )

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step's work, with memory for what runs."""
        pager = self.pager
        if pager is None:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        scheduler: Any = self
        running = scheduler.running
        if running:
            needs, ahead = self._needs, scheduler.num_lookahead_tokens
            pager.before_step(lambda: needs.required(running, ahead), needs.at_most(len(running), ahead))
        # Without a place in the batch nobody is admitted, and so nobody has to be held back.
        held_back = bool(scheduler.waiting) and len(running) < self._places and self._hold_back(pager)
        if not running and scheduler.waiting and not held_back and self._admit_first(pager):
            self._gather(pager)
        before, batch = pager.pool.free, len(running)
        if held_back:
            # One more step without newcomers.
            setattr(self, self._limit, len(running))
        try:
            output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        finally:
            if held_back:
                setattr(self, self._limit, self._places)
        tokens = output.total_num_scheduled_tokens
        ran = tokens > 0
        self._needs.stepped(scheduler.running, batch, len(output.num_scheduled_tokens), tokens)
        if ran:
            self._steps.count += 1
        pager.after_step(before - pager.pool.free, ran=ran)
        if scheduler.waiting and len(scheduler.running) < self._places:
            pager.poke()
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any, *args: Any, **kwargs: Any) -> Any:
        """What a step brought; requests that memory will never suffice for end here, with an error."""
        pager = self.pager
        if pager is not None and scheduler_output.total_num_scheduled_tokens > 0:
            pager.processed()
        outputs = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output, *args, **kwargs
        )
        if pager is not None:
            for request_id in self._patience.take_lost():
                self._end(request_id, outputs)
        return outputs

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """The pager begins with the prompt's memory at once, if it is much of what is ready."""
        result = super().add_request(request, *args, **kwargs)  # type: ignore[misc]
        if self.pager is not None:
            self.pager.expect(self._needs.blocks(request.num_tokens))
        return result

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's statistics, with the cache's usage as a share of all it could grow to."""
        stats = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None and self.pager is not None:
            pool = self.pager.pool
            stats.kv_cache_usage = (pool.used - 1) / max(1, pool.total - 1)
        return stats

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """End the pager, then vLLM's part."""
        if self.pager is not None:
            self.pager.close()
        return super().shutdown(*args, **kwargs)  # type: ignore[misc]

    def _hold_back(self, pager: Pager) -> bool:
        """Whether the first waiting request should wait a moment: for memory that is owed, or that is on its way.

        vLLM would admit it on blocks that another engine is waiting for, or evict cached blocks for it while the device
        has memory that nobody uses.
        """
        scheduler: Any = self
        if pager.owes:
            pager.poke()
            return bool(scheduler.running)
        request = next(iter(scheduler.waiting))
        missing = self._missing(request)
        if pager.pool.fresh(missing) >= missing or not pager.may_grow():
            return False
        now = time.monotonic()
        if self._held[0] != request.request_id:
            self._held = (request.request_id, now + HOLD + missing * HOLD_A_BLOCK)
        if now >= self._held[1]:
            return False
        pager.poke()
        if not scheduler.running:
            pager.wait(missing - pager.pool.fresh(missing), HOLD_STEP)
        return pager.pool.fresh(missing) < missing

    def _missing(self, request: Any) -> int:
        """Blocks that a waiting request needs beyond the prefix that is cached."""
        scheduler: Any = self
        blocks = self._needs.blocks(request.num_tokens + scheduler.num_lookahead_tokens)
        if len(self._sizes) > 1 or getattr(scheduler, "hash_block_size", self._sizes[0]) != self._sizes[0]:
            return blocks
        assert self.pager is not None
        # vLLM always computes a prompt's last token.
        return blocks - self.pager.pool.cached_prefix(request.block_hashes, (request.num_tokens - 1) // self._sizes[0])

    def _admit_first(self, pager: Pager) -> bool:
        """Nothing runs, so nothing is in the way: the first waiting request gets its memory here, or waits for it.

        Returns whether it has it.
        """
        scheduler: Any = self
        request = next(iter(scheduler.waiting))
        needed = self._needs.blocks(request.num_tokens + scheduler.num_lookahead_tokens)
        short = needed - pager.pool.free
        if short <= 0:
            # With room for all it has, it may still find none for its next token.
            self._patience.notice(request.request_id, request.num_tokens, time.monotonic(), served=True)
            return True
        if pager.wait(short, STUCK_WAIT):
            return True
        # What others take of the device may come back; this engine's own terms are what they are.
        never = needed >= pager.ceiling
        if self._patience.notice(request.request_id, request.num_tokens, time.monotonic(), never=never):
            why = (
                f"the ceiling is {pager.ceiling - 1}"
                if never
                else f"it has waited {self._patience.seconds:g} s, and {pager.most} could be had at most"
            )
            log.error(
                "Shoal: request %s ends with an error: alone, it needs %d blocks of KV cache, but %s; raise this "
                "engine's ceiling or the broker's limit, free memory on the device, or send a shorter request",
                request.request_id,
                needed,
                why,
            )
        return False

    def _gather(self, pager: Pager) -> None:
        """Memory for some more of many that wait, before the first step: one with little in it is over on the device
        before the next is ready, and the device would idle."""
        scheduler: Any = self
        first = list(itertools.islice(scheduler.waiting, GATHERED))
        if len(first) < 2:
            return
        wanted = min(sum(map(self._missing, first)), self._needs.step, pager.gathers)
        if (short := wanted - pager.pool.fresh(wanted)) > 0 and pager.may_grow():
            pager.wait(short, HOLD_STEP)

    def _end(self, request_id: str, outputs: Any) -> None:
        scheduler: Any = self
        request = scheduler.requests.get(request_id)
        if request is None or request.is_finished():
            return
        scheduler.finish_requests([request_id], RequestStatus.FINISHED_ERROR)
        output = EngineCoreOutput(request_id=request_id, new_token_ids=[], finish_reason=FinishReason.ERROR)
        if request.client_index not in outputs:
            outputs[request.client_index] = EngineCoreOutputs()
        # Its list may be the class's own empty one.
        outputs[request.client_index].outputs = [*outputs[request.client_index].outputs, output]

    def _workload(self) -> Workload:
        """What is before the engine. Runs on the pager's thread: numbers that are a moment old do no harm."""
        scheduler: Any = self
        try:
            running = list(scheduler.running)
            queued = len(scheduler.waiting)
            admissible = min(queued, max(0, self._places - len(running)))
            first = list(itertools.islice(scheduler.waiting, min(LOOKED_AT, admissible)))
            prompts = [self._missing(request) for request in first]
        except (RuntimeError, IndexError):  # the queue changed meanwhile
            return Workload(running=len(scheduler.running), queued=1, step=self._needs.step)
        waiting = sum(prompts) if admissible <= len(prompts) else sum(prompts) * admissible // max(1, len(prompts))
        prefilling = late = settled = 0
        for request in reversed(running):
            missing = request.num_tokens - request.num_computed_tokens
            if missing > 1:
                prefilling += self._needs.blocks(missing)
                late += 1
            elif (settled := settled + 1) == SETTLED:
                break
        tokens = (len(running) - late) * self._steps.per_second(time.monotonic()) * LEASE_AHEAD
        growth = int(sum(tokens / size for size in self._sizes))
        alone = 0
        if first and not running:
            ahead = min(first[0].max_tokens - first[0].num_output_tokens, ALONE_TOKENS)
            alone = self._needs.blocks(first[0].num_tokens + max(ahead, scheduler.num_lookahead_tokens))
        return Workload(len(running), queued, waiting, prefilling, self._needs.step, growth, alone)


def _locked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: ElasticMixin, *args: Any, **kwargs: Any) -> Any:
        pager = self.pager
        if pager is None:
            return method(self, *args, **kwargs)
        with pager.lock:
            return method(self, *args, **kwargs)

    return call


def _with_lock(scheduler: type) -> type:
    """`scheduler` with every public method under the pager's lock: whatever vLLM calls from outside is complete.

    But for `shutdown`, which waits for the pager to end.
    """
    for name in dir(scheduler):
        method = inspect.getattr_static(scheduler, name)
        if not name.startswith("_") and name != "shutdown" and inspect.isfunction(method):
            setattr(scheduler, name, _locked(method))
    return scheduler


class _ElasticPlainScheduler(ElasticMixin, Scheduler):  # type: ignore[misc]
    pass


class ElasticScheduler(ElasticMixin, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler; where vLLM runs without asynchronous scheduling, an instance of its plain one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("vllm_config") or args[0]
        if cls is ElasticScheduler and not config.scheduler_config.async_scheduling:
            return _ElasticPlainScheduler(*args, **kwargs)
        return super().__new__(cls)


_with_lock(_ElasticPlainScheduler)
_with_lock(ElasticScheduler)
