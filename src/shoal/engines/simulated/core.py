"""The simulated scheduler: sequences wait, run together, share a KV cache of blocks, and get one token a step."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from shoal.engines.simulated import text
from shoal.engines.simulated.growth import Demand
from shoal.engines.simulated.metrics import Metrics
from shoal.engines.simulated.options import Options
from shoal.engines.simulated.pool import Pool

_JOINT = 0.1  # of an interval: tokens due this close together share a step, as they do in a batch


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer that is being written. Its tokens arrive in `tokens` as (index, text, finish reason).

    With the finish reason `error` the text says what went wrong.
    """

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
    blocks: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    """By what each full block can be found: its words and all before it."""
    tail: list[str] | None = None
    """The words after the last full block; None before the prompt was looked at."""

    @property
    def held(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.prompt_tokens + self.produced


class Backing(Protocol):
    """Where blocks get their memory."""

    def grow(self, blocks: int) -> None:
        """Unpark up to this many more, as far as there is memory."""
        ...

    def obey(self) -> None:
        """Give back what has been asked back and is not in use."""
        ...

    def tell(self) -> None:
        """Something may have changed: what is held, or what is needed."""
        ...


class Fixed:
    """All the memory there is, from the start. Implements `Backing`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def grow(self, blocks: int) -> None:
        """Always possible."""
        self._pool.unpark(blocks)

    def obey(self) -> None:
        """Nobody asks."""

    def tell(self) -> None:
        """Nobody listens."""


class Core:
    """Runs sequences on timers of the running event loop; nothing is done while nothing is due."""

    def __init__(self, options: Options, metrics: Metrics) -> None:
        self._interval = 1 / options.tokens_per_second if options.tokens_per_second else 0.0
        self._ttft = options.ttft
        self._slots = options.max_num_seqs
        self._block = options.block_size
        self.pool = Pool(options.blocks)
        self.backing: Backing = Fixed(self.pool)
        self._metrics = metrics
        self._running: dict[Sequence, None] = {}
        self._waiting: deque[Sequence] = deque()
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
        return self.pool.used / self.pool.total

    @property
    def stuck(self) -> Sequence | None:
        """The sequence that waits for nothing but memory while no other runs, or None."""
        return self._waiting[0] if self._waiting and not self._running and not self._paused else None

    def demand(self) -> Demand:
        """What live requests call for beside the blocks that they hold."""
        growing = 0
        for sequence in self._running:
            # One block ahead, so that it is there in time.
            ahead = min(sequence.prompt_tokens + sequence.length, sequence.held + 1 + self._block)
            growing += max(0, self._blocks(ahead) - len(sequence.blocks))
        next_up = list(islice(self._waiting, max(0, self._slots - len(self._running))))
        return Demand(growing, sum(self.cost(sequence) for sequence in next_up), len(next_up))

    def cost(self, sequence: Sequence) -> int:
        """Blocks with which a sequence can run."""
        return self._blocks(sequence.held + 1)

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences."""
        self._waiting.extend(sequences)
        self.admit()

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
        self.admit()

    def fail(self, sequence: Sequence, message: str) -> None:
        """End a sequence with an error."""
        sequence.tokens.put_nowait((sequence.index, message, "error"))
        self.end([sequence], "error")

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

    def discard(self) -> None:
        """Lose all that is cached, after `pause`: what ran is to be computed anew."""
        running = list(self._running)
        for sequence in running:
            self._leave(sequence)
        self._waiting.extendleft(reversed(running))
        self.pool.forget()

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
        self.admit()

    def admit(self) -> None:
        """Give back what was asked back, and let those run for whom there is memory."""
        self.backing.obey()
        now = time.monotonic()
        while self._waiting and len(self._running) < self._slots and not self._paused:
            sequence = self._waiting[0]
            if not self._place(sequence):
                break
            self._waiting.popleft()
            sequence.due = now + self._ttft
            sequence.computed = False
            self._running[sequence] = None
        self._schedule()
        self.backing.tell()

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
        self.admit()

    def _advance(self, sequence: Sequence) -> int:
        """Give a sequence its next token; the tokens that this took to compute."""
        if not self._extend(sequence):
            return 0
        processed = 1
        if not sequence.computed:
            sequence.computed = True
            processed = sequence.held
            for block, key in zip(sequence.blocks, sequence.keys, strict=False):
                self.pool.name(block, key)
        now = time.monotonic()
        if sequence.produced == 0:
            self._metrics.prompt_tokens += sequence.prompt_tokens
            self._metrics.first_token.observe(now - sequence.arrived)
        token = text.word(sequence.prompt, sequence.seed, sequence.produced)
        sequence.produced += 1
        sequence.due = max(sequence.due + self._interval, now - 1)  # a stall of the machine is caught up for a second
        self._fill(sequence, [token])
        if len(sequence.keys) * self._block == sequence.held:
            self.pool.name(sequence.blocks[len(sequence.keys) - 1], sequence.keys[-1])
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

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block)

    def _place(self, sequence: Sequence) -> bool:
        """Find the blocks with which a waiting sequence can run, shared with others where the words are the same."""
        if sequence.tail is None:
            sequence.tail = []
            self._fill(sequence, sequence.prompt.split() or [""])
        count = self.cost(sequence)
        self.backing.grow(self.pool.shortfall(sequence.keys, count))
        found = self.pool.found(sequence.keys)
        blocks = self.pool.take(sequence.keys, count)
        if blocks is None:
            return False
        sequence.blocks = blocks
        if sequence.produced == 0:
            self._metrics.prefix_queries += sequence.prompt_tokens
            self._metrics.prefix_hits += found * self._block
        return True

    def _extend(self, sequence: Sequence) -> bool:
        """Make room for the next token, if need be by sending the newest back to the queue, as vLLM does."""
        while self.cost(sequence) > len(sequence.blocks):
            self.backing.grow(self.pool.shortfall((), 1))
            found = self.pool.take((), 1)
            if found is not None:
                sequence.blocks += found
                continue
            newest = next(reversed(self._running))
            self._leave(newest)
            self._waiting.appendleft(newest)
            self._metrics.preemptions += 1
            if newest is sequence:
                return False
        return True

    def _fill(self, sequence: Sequence, words: Iterable[str]) -> None:
        """Add words to the tail, and a key for each block that they fill."""
        tail = sequence.tail = sequence.tail or []
        for word in words:
            tail.append(word.strip())
            if len(tail) == self._block:
                before = sequence.keys[-1] if sequence.keys else 0
                sequence.keys.append(hash((before, *tail)))
                tail.clear()

    def _leave(self, sequence: Sequence) -> None:
        del self._running[sequence]
        self.pool.give(sequence.blocks, time.monotonic())
        sequence.blocks = []
