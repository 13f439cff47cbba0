"""Relays that share memory, and what requests are told by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from shoal.errors import ShoalError
from shoal.gateway.keyring import Keyring
from shoal.gateway.sharing import Records
from shoal.messages import Key

WORKERS = 3


class Refusal(NamedTuple):
    """What a request is told that may not begin."""

    status: int
    code: str
    param: str | None
    headers: dict[str, str]
    message: str


def a_key(id: str, **limits: Any) -> Key:
    return Key(id=id, name=id, digest=id, **limits)


def refusal(ring: Keyring, key: Key, cost: float, now: float) -> Refusal | None:
    """Of a request that is begun now; None: it began."""
    try:
        ring.begin(key, cost, now)
    except ShoalError as error:
        return Refusal(error.status, error.code, error.param, error.headers, error.message)
    return None


def refused(ring: Keyring, key: Key, cost: float, now: float) -> Refusal:
    """The same of one that may not."""
    told = refusal(ring, key, cost, now)
    assert told is not None, "it began"
    return told


def records(fd: int, workers: int = WORKERS) -> list[Records]:
    """The memory as each of so many relays sees it."""
    return [Records(fd, worker, workers) for worker in range(workers)]


def rings(shared: Sequence[Records], *keys: Key) -> list[Keyring]:
    """The keys of each relay."""
    made = [Keyring(one) for one in shared]
    for ring in made:
        ring.replace(keys, True)
    return made
