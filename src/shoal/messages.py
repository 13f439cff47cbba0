"""Everything that crosses between controller and relay.

The controller listens on a Unix socket; the relay connects and both write one JSON object a line. The controller
sends a whole `RoutingTable` on connection and at every change, the relay answers with a `RelayReport` at once and
whenever its numbers change. The relay keeps its last table while the controller is away.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL = 1
MAX_LINE = 16 * 1024 * 1024
"""Bytes that one message may have; a longer one closes the connection."""


class Target(msgspec.Struct, frozen=True):
    """One instance that takes requests."""

    instance: str
    address: str


class Route(msgspec.Struct, frozen=True):
    """Where requests for a model go. No targets: `detail` says why and what to do, in a sentence for the client.

    `state` is the model's state for `/v1/models`: that of its instance nearest to serving, or `unloaded`.
    """

    model: str
    state: str
    created: int
    targets: tuple[Target, ...] = ()
    detail: str = ""
    retry_after: int | None = None
    context_length: int | None = None


class RoutingTable(msgspec.Struct, frozen=True, tag="table"):
    """Every model that clients may name. A higher version replaces a lower one of the same `epoch`.

    A controller that starts makes a new epoch.
    """

    epoch: str
    version: int
    routes: tuple[Route, ...] = ()
    protocol: int = PROTOCOL


class ModelCount(msgspec.Struct, frozen=True):
    """Requests that ended, since the relay started. `outcome`: `ok`, `client_error`, `engine_error`,
    `unavailable` or `cancelled`."""

    model: str
    outcome: Literal["ok", "client_error", "engine_error", "unavailable", "cancelled"]
    requests: int


class RelayReport(msgspec.Struct, frozen=True, tag="report"):
    """What the relay carries now. `outstanding` is by instance, zeros left out."""

    relay: str
    epoch: str
    version: int
    outstanding: dict[str, int]
    counts: tuple[ModelCount, ...] = ()
    protocol: int = PROTOCOL
