"""Who may do what, by API key: whose a key is, which models it may use, and how much. Pure; times are passed in.

Called for every request, so a key that was seen before costs one dictionary lookup and no hashing. None of these
comparisons takes constant time, and none needs to. Presented keys are looked up by a hash that is seeded anew in every
process, and digests by the SHA-256 of what was presented: nobody can choose, byte by byte, what either comes to, so
how long a lookup takes tells nothing about a key that one does not have already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from shoal.errors import ShoalError
from shoal.gateway.limits import Account, Record
from shoal.messages import Key

KNOWN = 4096
"""Presented keys that are remembered. Only valid ones are, so that others cannot push those out."""
MAX_TOKEN = 512
"""Bytes; no key has more, and hashing what has would only cost time."""
_NAMED = 20


class Records(Protocol):
    """Where relays that serve one port count together."""

    def take(self, ids: Iterable[str]) -> Mapping[str, Record]:
        """Records for these keys, by id; none for those for which there is no room."""
        ...


class Keyring:
    """The keys of the newest routing table, and what each has used of its limits: with `records` in all relays, or
    else in this one."""

    def __init__(self, records: Records | None = None) -> None:
        self._records = records
        self._keys: tuple[Key, ...] = ()
        self._required = False
        self._by_digest: dict[str, Key] = {}
        self._accounts: dict[str, Account] = {}  # by id: a rotated key has two digests, and one account
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
                self._forget(id)
        for key in keys:
            self._accounts.setdefault(key.id, Account()).follow(key)
        self._known.clear()
        if self._records is not None:
            self._share(self._records)

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
        if not account.begin(cost, now):
            raise account.refusal(key, cost, now)

    def end(self, key: Key, cost: float, tokens: int | None, now: float) -> None:
        """A request that `begin` let in with this `cost` has ended, and `tokens` were really used; None: that is not
        known, and the cost stands. What was used beyond it is a debt of the key."""
        account = self._accounts.get(key.id)
        if account is None:
            return
        account.end(cost, tokens, now)
        if not account.running and not account.listed:
            self._forget(key.id)

    def _forget(self, id: str) -> None:
        self._accounts.pop(id).share(None)

    def _share(self, records: Records) -> None:
        """Count together what has limits, and only that."""
        lacking = []
        for id, account in self._accounts.items():
            if not account.limited:
                account.share(None)
            elif account.record is None:
                lacking.append(id)
        for id, record in records.take(lacking).items():
            self._accounts[id].share(record)

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
