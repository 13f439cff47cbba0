"""How many blocks the running requests take in their next step, at least as many as vLLM will ask for. Pure.

Asked in every step, on vLLM's own thread. Once all are past their prompts, each takes one token, and that is quickly
counted; that it stays so need not be looked at again until somebody joins or a step computes more than a token for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Running(Protocol):
    """What is read of vLLM's request."""

    num_computed_tokens: int
    num_output_placeholders: int

    @property
    def num_tokens_with_spec(self) -> int:
        """Tokens that it has, with those that were drafted for it."""
        ...


class Needs:
    """`sizes`: tokens a block, for each group of layers. `step_tokens`: what a step computes at most. `drafts`: whether
    tokens may be drafted for a request, or taken back from it, without its leaving the batch."""

    def __init__(self, sizes: Sequence[int], step_tokens: int, *, drafts: bool) -> None:
        self._sizes = tuple(sizes)
        self._size = self._sizes[0] if len(self._sizes) == 1 else 0
        self._step_tokens = step_tokens
        self._steady = not drafts
        self._settled = False
        self.step = self.blocks(step_tokens)
        """Blocks that one step can use up at most, but for a part of one for each request."""

    def blocks(self, tokens: int) -> int:
        """Blocks for `tokens` tokens, over all groups of layers."""
        if self._size:
            return -(-tokens // self._size)
        return sum(-(-tokens // size) for size in self._sizes)

    def stepped(self, running: Sequence[Running], before: int, requests: int, tokens: int) -> None:
        """A step of `requests` requests and `tokens` tokens was scheduled; `running` were `before` when it began."""
        if self._settled and (len(running) != before or tokens != requests):
            self._settled = False
        if self._steady and not self._settled:
            # Whoever joined last is most likely not through its prompt.
            self._settled = not any(_pending(request) > 1 for request in reversed(running))

    def at_most(self, running: int, ahead: int) -> int:
        """Blocks that are always enough for `running` requests; `ahead`: tokens for which each has room besides."""
        each = running * self.blocks(1 + ahead)
        return each if self._settled else each + self.step

    def required(self, running: Sequence[Running], ahead: int) -> int:
        """Blocks that `running` take in their next step."""
        if self._settled and 0 <= ahead < (size := self._size):
            return sum(-request.num_computed_tokens % size <= ahead for request in running)
        left, blocks = self._step_tokens, 0
        for request in running:
            done = request.num_computed_tokens
            tokens = min(max(1, _pending(request)), max(1, left))
            left -= tokens
            blocks += self.blocks(done + tokens + ahead) - self.blocks(done)
        return blocks


def _pending(request: Running) -> int:
    """Tokens of a request that are to be computed."""
    return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
