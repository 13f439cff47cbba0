"""The seam of the relay: what any implementation of it offers, and its settings."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ERRANDS = 0.5
"""Seconds that requests to the controller have in a stop once no others run: streams of events would never end."""


@dataclass(frozen=True)
class RelayConfig:
    """How a relay runs. Times in seconds, sizes in bytes; the defaults are those of `shoal.settings`."""

    controller: Path
    """Unix socket of the controller's HTTP: every path that is not inference goes there."""
    relay_socket: Path
    """Unix socket on which the controller sends routing tables (see `shoal.messages`)."""
    table: Path
    """File of the last table, so that a relay that starts while the controller is away can serve."""
    max_body: int = 64 * 2**20
    header_timeout: float = 15
    body_timeout: float = 60
    connect_timeout: float = 5
    idle_timeout: float = 75
    """How long a client's connection may stay open between two requests."""
    response_timeout: float = 0
    """How long an engine may be silent while it answers; 0 for ever."""
    request_timeout: float = 0
    """How long a request may take from its arrival to its end; 0 for ever."""
    hold_timeout: float = 600
    """How long a request may wait for a model that does not serve yet."""
    queue_timeout: float = 600
    """How long a request may wait for its turn at a model that serves."""
    queue_length: int = 1000
    """Requests that may wait for one model."""
    age_bound: float = 30
    """How long a request waits in its priority class before it goes up one."""
    fair_reserve: float = 0.125
    """The part of a model's slots that is kept for tenants which run less than their share; 0: none."""
    max_connections: int = 10_000
    tenant_headers: tuple[str, ...] = ("x-openwebui-user-id",)
    """Headers, in lower case, that name the tenant of a request without a key."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the inference paths; `*` for all."""
    otlp_endpoint: str | None = None
    """URL of an OpenTelemetry collector that gets spans; None: there are none."""
    relay_workers: int = 1
    """Relays that share the port; limits of concurrency are divided among them."""
    worker: int = 0
    """Which of them this is, from 0."""
    limits_fd: int | None = None
    """Inherited memory in which they count together what keys use (`sharing.py`); None: each for itself."""


class Relay(Protocol):
    """A running data plane. It is used once: start, stop."""

    async def start(self, sock: socket.socket) -> None:
        """Serve on the TCP socket `sock`, which is bound and belongs to the relay from now on."""
        ...

    async def informed(self) -> None:
        """Return once a routing table is known; until then every model is unknown."""
        ...

    async def stop(self, grace: float) -> None:
        """Accept nothing more, let running requests end for up to `grace` seconds, then end them; have what they used
        stored. One that was cancelled over this may be followed by another, with less grace."""
        ...
