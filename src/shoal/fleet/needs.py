"""What a model needs on one device: weights, overhead, KV cache. Pure; engines estimate it, loads measure it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvLayers:
    """`layers` layers that keep `token_bytes` each for every token of a request: of its last `window` tokens, or of
    all (None)."""

    layers: int
    token_bytes: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class KvCost:
    """What requests take of the KV cache on one device, in bytes."""

    groups: tuple[KvLayers, ...]
    note: str = ""
    """What is not counted."""

    @property
    def per_token(self) -> int:
        """Bytes of one more token of a short request."""
        return sum(group.layers * group.token_bytes for group in self.groups)

    def of_request(self, tokens: int, block: int = 1) -> int:
        """Bytes of a request of so many tokens, which takes whole blocks of `block` tokens."""
        total = 0
        for group in self.groups:
            kept = tokens if group.window is None else min(tokens, group.window)
            total += group.layers * group.token_bytes * (-(-kept // block) * block)
        return total


@dataclass(frozen=True, slots=True)
class Needs:
    """What one device has to have for its share of a model, in bytes; None is unknown.

    `kv` is the KV cache that has to be there from the start: the floor or a working set where it is elastic, else all
    of it. `cost` is what requests take of it as they come, `longest` the most tokens that one may have, `concurrency`
    the most requests that run at once.
    """

    weights: int | None
    overhead: int
    kv: int
    elastic: bool = False
    measured: bool = False
    """Whether weights and overhead come from an earlier load instead of an estimate."""
    cost: KvCost | None = None
    longest: int | None = None
    concurrency: int | None = None
    notes: tuple[str, ...] = ()
    """What the numbers come from, and what is not known, in a sentence each."""

    @property
    def total(self) -> int | None:
        """All that has to be free for a start; None while the weights are unknown."""
        return None if self.weights is None else self.weights + self.overhead + self.kv

    @property
    def fixed(self) -> int:
        """What is known to be taken for as long as it runs, whatever its requests do."""
        return (self.weights or 0) + self.overhead
