"""Who may do what, by API key: whose a key is, which models it may use, and how much. Pure; times are passed in.

Called for every request, so a key that was seen before costs one dictionary lookup and no hashing. None of these
comparisons takes constant time, and none needs to. Presented keys are looked up by a hash that is seeded anew in every
process, and digests by the SHA-256 of what was presented: nobody can choose, byte by byte, what either comes to, so
how long a lookup takes tells nothing about a key that one does not have already.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from shoal.errors import ShoalError
from shoal.messages import Key

KNOWN = 4096
"""Presented keys that are remembered. Only valid ones are, so that others cannot push those out."""
MAX_TOKEN = 512
"""Bytes; no key has more, and hashing what has would only cost time."""
_NAMED = 20
_NOTHING = 1e-6
"""What may be missing of a request or a token: sums of times are not exact, and who waits as told is to get in."""


class Bucket:
    """A token bucket that holds a minute's worth. A level below zero is a debt, which time pays."""

    __slots__ = ("_at", "_rate", "capacity", "level")

    def __init__(self, capacity: float) -> None:
        self.capacity = self.level = float(capacity)
        self._rate = capacity / 60
        self._at = -math.inf

    def wait(self, cost: float, now: float) -> float:
        """Seconds until `cost` may be taken; 0: now. More than the bucket holds may be taken once it is full, which
        leaves it in debt: otherwise it never could be."""
        level = self.level
        if now > self._at:
            level += (now - self._at) * self._rate
            if level > self.capacity:
                level = self.capacity
            self.level = level
            self._at = now
        missing = min(cost, self.capacity) - level
        return missing / self._rate if missing > _NOTHING else 0.0

    def take(self, cost: float, now: float) -> bool:
        """Take `cost`, if `wait` would be 0."""
        level = self.level + (now - self._at) * self._rate
        capacity = self.capacity
        if level > capacity:
            level = capacity
        self._at = now
        enough = level + _NOTHING
        if enough < cost and enough < capacity:  # for more than it holds it has to be full
            self.level = level
            return False
        self.level = level - cost
        return True

    def give(self, cost: float, now: float) -> None:
        """Put back; with a negative `cost` take, whatever there is. What does not fit is lost."""
        if cost < 0:
            self.wait(0, now)  # what time has paid counts first, as far as there was room for it
        self.level = min(self.capacity, self.level + cost)

    def resized(self, capacity: float) -> Bucket:
        """One of another capacity from which as much was taken."""
        other = Bucket(capacity)
        other.level -= self.capacity - self.level
        other._at = self._at
        return other


class _Account:
    """What a key may use, has left and has under way. `listed`: it is in the newest table."""

    __slots__ = ("concurrent", "listed", "models", "requests", "running", "tokens")

    def __init__(self) -> None:
        self.models: frozenset[str] = frozenset()
        self.concurrent: int | None = None
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = 0
        self.listed = True

    def follow(self, key: Key) -> None:
        """Take over a key's settings; what was used of the old ones counts against the new."""
        self.models = frozenset(key.models)
        self.concurrent = key.concurrent
        self.requests = _follow(self.requests, key.requests_per_minute)
        self.tokens = _follow(self.tokens, key.tokens_per_minute)

    def refusal(self, key: Key, cost: float, now: float) -> ShoalError:
        """Why a request may not begin: of the limits that forbid it, the one that does so for longest."""
        limits: list[tuple[float, str, str]] = []
        if self.concurrent is not None and self.running >= self.concurrent:
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


class Keyring:
    """The keys of the newest routing table, and what each has used of its limits in this relay."""

    def __init__(self) -> None:
        self._keys: tuple[Key, ...] = ()
        self._required = False
        self._by_digest: dict[str, Key] = {}
        self._accounts: dict[str, _Account] = {}  # by id: a rotated key has two digests, and one account
        self._known: dict[bytes, Key] = {}

    def replace(self, keys: tuple[Key, ...], required: bool) -> None:
        """Take the keys of a new table. Those that stay keep what they have used; of those that are gone nothing is
        left once their requests have ended."""
        self._required = required
        if keys == self._keys:
            return
        self._keys = keys
        self._by_digest = {key.digest: key for key in keys}
        ids = {key.id for key in keys}
        for id, account in list(self._accounts.items()):
            account.listed = id in ids
            if not account.listed and not account.running:
                del self._accounts[id]
        for key in keys:
            self._accounts.setdefault(key.id, _Account()).follow(key)
        self._known.clear()

    def identify(self, authorization: bytes | None, api_key: bytes | None, wall: float) -> Key | None:
        """Whose request it is, by the values of `Authorization` (`Bearer …`) or else of `x-api-key`. `wall` in Unix
        seconds.

        None: no key was given, and none is needed. Where there is no key at all and none is needed, whatever was given
        is ignored: many clients cannot send none. Raises ShoalError 401: `key_required`, `invalid_key`, `key_expired`.
        """
        return self.bearer(token_of(authorization, api_key), wall)

    def bearer(self, token: bytes | None, wall: float) -> Key | None:
        """The same, by what `token_of` found in these headers."""
        if not self._by_digest and not self._required:
            return None
        if token is None:
            if self._required:
                raise _unauthorized(
                    "this Shoal asks for an API key; send it as `Authorization: Bearer sk-shoal-…` or as `x-api-key`",
                    "key_required",
                )
            return None
        key = self._known.get(token)
        if key is None:
            key = self._look_up(token)
        if key.expires_at is not None and key.expires_at <= wall:
            raise _unauthorized(
                f"the API key {key.name} has expired; ask whoever runs this Shoal for another", "key_expired"
            )
        return key

    def allow(self, key: Key, model: str) -> None:
        """Raise ShoalError 403 (`model_not_allowed`) if the key is not for this model."""
        if key.models and not self.may_see(key)(model):
            named = ", ".join(key.models[:_NAMED])
            if len(key.models) > _NAMED:
                named += f" and {len(key.models) - _NAMED} more"
            raise ShoalError(
                f"the API key {key.name} is not for {model}; it is for {named}",
                status=403,
                code="model_not_allowed",
                param="model",
            )

    def may_see(self, key: Key | None) -> Callable[[str], bool]:
        """Which models a list may show to the bearer of this key; all of them where none is needed."""
        if key is None or not key.models:
            return _anything
        account = self._accounts.get(key.id)
        return (account.models if account is not None else frozenset(key.models)).__contains__

    def begin(self, key: Key, cost: float, now: float) -> None:
        """Take a request of about `cost` tokens out of the key's limits; `end` has to follow. `now` in seconds of any
        clock that does not go back.

        Raises ShoalError 429 (`rate_limited`, with `Retry-After` and the limit as `param`), and takes nothing then;
        401 if the key is no longer in the table.
        """
        account = self._accounts.get(key.id)
        if account is None or not account.listed:
            raise _unknown()
        requests, tokens = account.requests, account.tokens
        if account.concurrent is not None and account.running >= account.concurrent:
            raise account.refusal(key, cost, now)
        if requests is not None and not requests.take(1, now):
            raise account.refusal(key, cost, now)
        if tokens is not None and not tokens.take(cost, now):
            if requests is not None:
                requests.level += 1
            raise account.refusal(key, cost, now)
        account.running += 1

    def end(self, key: Key, cost: float, tokens: int | None, now: float) -> None:
        """A request that `begin` let in with this `cost` has ended, and `tokens` were really used; None: that is not
        known, and the cost stands. What was used beyond it is a debt of the key."""
        account = self._accounts.get(key.id)
        if account is None:
            return
        if tokens is not None and account.tokens is not None:
            account.tokens.give(cost - tokens, now)
        account.running -= 1
        if not account.running and not account.listed:
            del self._accounts[key.id]

    def _look_up(self, token: bytes) -> Key:
        """The key that was presented for the first time since the keys have changed."""
        digest = hashlib.sha256(token).hexdigest() if len(token) <= MAX_TOKEN else ""
        key = self._by_digest.get(digest)
        if key is None:
            raise _unknown()
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[token] = key
        return key


def _anything(_model: str) -> bool:
    return True


def _follow(bucket: Bucket | None, limit: int | None) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit)
    return bucket if bucket.capacity == limit else bucket.resized(limit)


def token_of(authorization: bytes | None, api_key: bytes | None) -> bytes | None:
    """The key that a request presents, by the values of `Authorization` and `x-api-key`, if any. Another scheme than
    Bearer presents none."""
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    return api_key or None


def _unauthorized(message: str, code: str) -> ShoalError:
    return ShoalError(message, status=401, code=code, headers={"WWW-Authenticate": "Bearer"})


def _unknown() -> ShoalError:
    return _unauthorized(
        "this API key is not valid here: it may be misspelt, revoked or replaced; ask whoever runs this Shoal",
        "invalid_key",
    )


def _seconds(wait: float) -> int:
    return max(1, math.ceil(wait))
