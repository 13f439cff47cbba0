"""The simulated scheduler: sequences wait, run together, share a KV cache of tokens, and get one token a step."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal.engines.simulated import text
from shoal.engines.simulated.metrics import Metrics
from shoal.engines.simulated.options import Options

BLOCK = 16
_CACHED_PREFIXES = 8192
_JOINT = 0.1  # of an interval: tokens due this close together share a step, as they do in a batch


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer that is being written. Its tokens arrive in `tokens` as (index, text, finish reason)."""

    index: int
    prompt: str
    prompt_tokens: int
    seed: int
    length: int
    finish: str
    request: int
    tokens: asyncio.Queue[tuple[int, str, str | None]]
    arrived: float = field(default_factory=time.monotonic)
    produced: int = 0
    due: float = 0.0
    computed: bool = False


class Core:
    """Runs sequences on timers of the running event loop; nothing is done while nothing is due."""

    def __init__(self, options: Options, metrics: Metrics) -> None:
        self._interval = 1 / options.tokens_per_second if options.tokens_per_second else 0.0
        self._ttft = options.ttft
        self._slots = options.max_num_seqs
        self._capacity = options.kv_cache_tokens
        self._metrics = metrics
        self._running: dict[Sequence, None] = {}
        self._waiting: deque[Sequence] = deque()
        self._kv_tokens = 0
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._stalled = False
        self.on_first_token: Callable[[int], None] | None = None
        """Called with a request's number after its first token."""

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        return min(1.0, self._kv_tokens / self._capacity)

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences."""
        self._waiting.extend(sequences)
        self._admit()

    def end(self, sequences: Iterable[Sequence], reason: str) -> None:
        """Write no more of these; those that have finished by themselves stay finished."""
        for sequence in sequences:
            if sequence in self._running:
                self._leave(sequence)
            elif sequence in self._waiting:
                self._waiting.remove(sequence)
            else:
                continue
            self._metrics.finished[reason] += 1
        self._admit()

    def abort_all(self) -> None:
        """End every sequence now; their readers learn the finish reason `abort`."""
        for sequence in [*self._running, *self._waiting]:
            self.end([sequence], "abort")
            sequence.tokens.put_nowait((sequence.index, "", "abort"))

    def pause(self) -> None:
        """Make no more steps."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stall(self) -> None:
        """Go on admitting sequences, but make no step ever again."""
        self._stalled = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume(self) -> None:
        """Go on after `pause`; the time in between does not count."""
        self._paused = False
        now = time.monotonic()
        for sequence in self._running:
            sequence.due = max(sequence.due, now)
        self._admit()

    def _admit(self) -> None:
        if self._paused:
            return
        now = time.monotonic()
        while self._waiting and len(self._running) < self._slots:
            sequence = self._waiting[0]
            held = sequence.prompt_tokens + sequence.produced
            if self._running and self._kv_tokens + held + 1 > self._capacity:
                break
            self._waiting.popleft()
            self._kv_tokens += held
            sequence.due = now + self._ttft
            sequence.computed = False
            self._running[sequence] = None
            self._look_up_prefix(sequence)
        self._schedule()

    def _schedule(self) -> None:
        if self._paused or self._stalled or not self._running:
            return
        due = min(sequence.due for sequence in self._running)
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        # Event loops of asyncio keep time by time.monotonic.
        self._timer = asyncio.get_running_loop().call_at(due, self._step)

    def _step(self) -> None:
        self._timer = None
        horizon = time.monotonic() + self._interval * _JOINT
        processed = 0
        for sequence in list(self._running):
            if sequence.due <= horizon and sequence in self._running:
                processed += self._advance(sequence)
        if processed:
            self._metrics.step_tokens.observe(processed)
        if self._waiting:
            self._admit()
        self._schedule()

    def _advance(self, sequence: Sequence) -> int:
        """Give a sequence its next token; the tokens that this took to compute."""
        if self._kv_tokens >= self._capacity and self._preempt() is sequence:
            return 0
        processed = 1
        if not sequence.computed:
            sequence.computed = True
            processed = sequence.prompt_tokens + sequence.produced
        now = time.monotonic()
        if sequence.produced == 0:
            self._metrics.prompt_tokens += sequence.prompt_tokens
            self._metrics.first_token.observe(now - sequence.arrived)
        token = text.word(sequence.prompt, sequence.seed, sequence.produced)
        sequence.produced += 1
        sequence.due = max(sequence.due + self._interval, now - 1)  # a stall of the machine is caught up for a second
        self._kv_tokens += 1
        self._metrics.generation_tokens += 1
        finish = sequence.finish if sequence.produced >= sequence.length else None
        sequence.tokens.put_nowait((sequence.index, token, finish))
        if sequence.produced == 1 and self.on_first_token is not None:
            self.on_first_token(sequence.request)
        if finish is not None:
            self._leave(sequence)
            self._metrics.finished[finish] += 1
            self._metrics.latency.observe(now - sequence.arrived)
        return processed

    def _preempt(self) -> Sequence:
        """Send the newest sequence back to the queue's head, as vLLM does when its cache is full."""
        sequence = next(reversed(self._running))
        self._leave(sequence)
        self._waiting.appendleft(sequence)
        self._metrics.preemptions += 1
        return sequence

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence]
        self._kv_tokens -= sequence.prompt_tokens + sequence.produced

    def _look_up_prefix(self, sequence: Sequence) -> None:
        words = sequence.prompt.split()
        self._metrics.prefix_queries += sequence.prompt_tokens
        key, missed = 0, False
        for start in range(0, len(words) - len(words) % BLOCK, BLOCK):
            key = hash((key, *words[start : start + BLOCK]))
            missed = missed or key not in self._prefixes
            self._metrics.prefix_hits += 0 if missed else BLOCK
            self._prefixes[key] = None
            self._prefixes.move_to_end(key)
        while len(self._prefixes) > _CACHED_PREFIXES:
            self._prefixes.popitem(last=False)
