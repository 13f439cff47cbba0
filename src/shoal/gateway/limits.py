"""What a key may use, has left and has under way: the arithmetic of its limits. Pure; times are passed in.

Where several relays serve one port they count together: a `Record` is what they share of a key. All it holds is what
was used, not what is left, so that relays which learn of a changed limit at different moments need not agree on it.
"""

from __future__ import annotations

import math
from typing import Protocol

from shoal.errors import ShoalError
from shoal.messages import Key

_NOTHING = 1e-6
"""What may be missing of a request or a token: sums of times are not exact, and who waits as told is to get in."""


class Bucket:
    """A token bucket that holds a minute's worth. `used` is what is missing of that at the time `at`; it shrinks as
    time passes, and what is more than the bucket holds is a debt."""

    __slots__ = ("_capacity", "_rate", "at", "used")

    def __init__(self, capacity: float) -> None:
        self.used = 0.0
        self.at = -math.inf
        self.capacity = capacity

    @property
    def capacity(self) -> float:
        """What it holds. In another size as much is missing of it."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: float) -> None:
        self._capacity = float(capacity)
        self._rate = capacity / 60

    def wait(self, cost: float, now: float) -> float:
        """Seconds until `cost` may be taken; 0: now. More than the bucket holds may be taken once it is full, which
        leaves it in debt: otherwise it never could be."""
        self._settle(now)
        missing = min(cost, self._capacity) - self._capacity + self.used
        return missing / self._rate if missing > _NOTHING else 0.0

    def take(self, cost: float, now: float) -> bool:
        """Take `cost`, if `wait` would be 0."""
        used = self.used
        if now > self.at:  # as `_settle`, written out: every request comes by here
            used -= (now - self.at) * self._rate
            if used < 0.0:
                used = 0.0
            self.used = used
            self.at = now
        if used > _NOTHING and used + cost > self._capacity + _NOTHING:  # for more than it holds it has to be full
            return False
        self.used = used + cost
        return True

    def give(self, cost: float, now: float) -> None:
        """Put back; with a negative `cost` take, whatever there is. What does not fit is lost."""
        if cost < 0:
            self._settle(now)  # what time has paid counts first, as far as there was room for it
        self.used = max(0.0, self.used - cost)

    def _settle(self, now: float) -> None:
        """Count what time has paid. Another relay may have done so already, up to a moment later than `now`."""
        if now > self.at:
            self.used = max(0.0, self.used - (now - self.at) * self._rate)
            self.at = now


class Record(Protocol):
    """What relays know together of what a key has used, and how much of it each of them has under way."""

    def fetch(self, requests: Bucket | None, tokens: Bucket | None) -> int:
        """Fill the buckets, and say how many requests the other relays have under way. Nobody else may until
        `release`."""
        ...

    def keep(self, requests: Bucket | None, tokens: Bucket | None) -> None:
        """Have others know these buckets; between `fetch` and `release`."""
        ...

    def release(self) -> None:
        """Let others have it."""
        ...

    def run(self, running: int) -> None:
        """So many requests are under way here. At any time."""
        ...

    def give(self, tokens: float) -> None:
        """Put back so many tokens; whoever fetches next finds them. At any time."""
        ...

    def leave(self) -> None:
        """This relay has no more to do with the key."""
        ...


class Account:
    """What one key may use, has left and has under way. `listed`: it is in the newest table."""

    __slots__ = ("concurrent", "elsewhere", "listed", "models", "record", "requests", "running", "tokens")

    def __init__(self) -> None:
        self.models: frozenset[str] = frozenset()
        self.concurrent: int | None = None
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0
        self.elsewhere = 0  # what other relays had under way when this was last looked at
        self.listed = True
        self.record: Record | None = None
        """What is shared with other relays, if anything is."""

    @property
    def limited(self) -> bool:
        """Whether there is anything to count."""
        return self.concurrent is not None or self.requests is not None or self.tokens is not None

    def follow(self, key: Key) -> None:
        """Take over a key's settings; what was used of the old ones counts against the new."""
        self.models = frozenset(key.models)
        self.concurrent = key.concurrent
        self.requests = _follow(self.requests, key.requests_per_minute)
        self.tokens = _follow(self.tokens, key.tokens_per_minute)

    def share(self, record: Record | None) -> None:
        """Count together with other relays from now on; None: alone."""
        if self.record is not None:
            self.record.leave()
            self.elsewhere = 0
        self.record = record
        if record is not None:
            record.run(self.running)

    def begin(self, cost: float, now: float) -> bool:
        """Take a request of about `cost` tokens out of all limits; or, if one forbids it, nothing of any."""
        record = self.record
        if record is None:
            return self._begin(cost, now)
        self.elsewhere = record.fetch(self.requests, self.tokens)
        try:
            begun = self._begin(cost, now)
            if begun:
                record.keep(self.requests, self.tokens)
                record.run(self.running)
        finally:
            record.release()
        return begun

    def _begin(self, cost: float, now: float) -> bool:
        requests, tokens = self.requests, self.tokens
        if self.concurrent is not None and self.running + self.elsewhere >= self.concurrent:
            return False
        if requests is not None and not requests.take(1, now):
            return False
        if tokens is not None and not tokens.take(cost, now):
            if requests is not None:
                requests.used -= 1
            return False
        self.running += 1
        return True

    def end(self, cost: float, tokens: int | None, now: float) -> None:
        """A request that began with this `cost` has ended, and `tokens` were really used; None: the cost stands."""
        self.running -= 1
        record = self.record
        if record is not None:
            record.run(self.running)
        if tokens is None or self.tokens is None:
            return
        unused = cost - tokens
        if record is None:
            self.tokens.give(unused, now)
        elif unused >= 0:  # which need not be known before somebody takes, and makes no difference then
            record.give(unused)
        else:
            self.elsewhere = record.fetch(self.requests, self.tokens)
            self.tokens.give(unused, now)
            record.keep(self.requests, self.tokens)
            record.release()

    def refusal(self, key: Key, cost: float, now: float) -> ShoalError:
        """Why a request may not begin: of the limits that forbid it, the one that does so for longest."""
        limits: list[tuple[float, str, str]] = []
        if self.concurrent is not None and self.running + self.elsewhere >= self.concurrent:
            limits.append((0.0, "concurrent", f"{self.concurrent} at once; wait until one of its requests has ended"))
        for bucket, needed, name in ((self.requests, 1, "requests"), (self.tokens, cost, "tokens")):
            if bucket is not None and (wait := bucket.wait(needed, now)):
                words = f"{bucket.capacity:.0f} {name} a minute; try again in {_seconds(wait)} s"
                limits.append((wait, f"{name}_per_minute", words))
        wait, limit, words = max(limits)
        return ShoalError(
            f"the API key {key.name} is limited to {words}",
            status=429,
            code="rate_limited",
            param=limit,
            headers={"Retry-After": str(_seconds(wait))},
        )


def _follow(bucket: Bucket | None, limit: int | None) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit)
    bucket.capacity = limit
    return bucket


def _seconds(wait: float) -> int:
    return max(1, math.ceil(wait))
