"""Everything that crosses between controller and relay.

The controller listens on a Unix socket; the relay connects and both write one JSON object a line, told apart by its
`type`. The controller sends a whole `RoutingTable` on connection and at every change, the relay answers with a
`RelayReport` at once and whenever its numbers change. The relay keeps its last table while the controller is away.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

PROTOCOL = 2
MAX_LINE = 16 * 1024 * 1024
"""Bytes that one message may have; a longer one closes the connection."""

MAX_DEMAND = 1024
"""Models of which a report says how long they are to stay."""

Priority = Literal["high", "normal", "low"]
"""Priority class of a request. A class goes before the next, but nobody waits for ever (see `gateway/admission.py`)."""
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
Outcome = Literal["ok", "client_error", "engine_error", "unavailable", "cancelled", "refused"]
"""How a request ended. `refused`: by a key's limits or a full queue (401, 403, 429)."""
Phase = Literal["queued", "held", "waiting", "answering"]
"""Where a request is: in the queue of a model that serves, held until its model serves, at an engine that has not
answered yet, or being answered."""

DistributionName = Literal["queue", "first_byte", "inter_chunk", "duration", "overhead"]
"""What of a request is measured: its time in the queue, until the first byte of the answer, between two chunks of it,
altogether; and what the relay itself added."""


# -- controller to relay -----------------------------------------------------------------------------------------------


class Target(msgspec.Struct, frozen=True):
    """One instance that takes requests. `capacity`: how many it runs at once; 0 if that is not known."""

    instance: str
    address: str
    capacity: int = 0


class Route(msgspec.Struct, frozen=True):
    """Where requests for a model go. No targets: `detail` says why and what to do, in a sentence for the client.

    `state` is the model's state for `/v1/models`: that of its instance nearest to serving, or `unloaded`. `comes`:
    whether it will serve by itself or when asked for (`Wanted`), so that requests may be held. `limit`: requests
    that may run at once over all instances; None for what the instances can. `names`: other names that its engines
    answer to (LoRA adapters); they are models of their own to clients.
    """

    model: str
    state: str
    created: int
    targets: tuple[Target, ...] = ()
    detail: str = ""
    retry_after: int | None = None
    context_length: int | None = None
    comes: bool = False
    limit: int | None = None
    names: tuple[str, ...] = ()


class Key(msgspec.Struct, frozen=True):
    """An API key as a relay needs it. `digest` is the SHA-256 of the whole key in hex; the key itself is nowhere.

    Limits are None where there is none. `models` empty: every model; a virtual model is allowed by its own name.
    `weight` is its share among tenants of its class. `expires_at` in Unix seconds.
    """

    id: str
    name: str
    digest: str
    models: tuple[str, ...] = ()
    priority: Priority = "normal"
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    expires_at: float | None = None


class VirtualModel(msgspec.Struct, frozen=True):
    """A name that stands for another model, with its parameters changed on the way.

    `set` replaces fields of a JSON request, `defaults` fills in those that are missing, `strip` takes them out,
    `system` is put before the messages where there is no system message. `fallback` names models that are asked,
    in order, where `model` cannot serve.
    """

    name: str
    model: str
    set: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    strip: tuple[str, ...] = ()
    system: str | None = None
    fallback: tuple[str, ...] = ()
    created: int = 0


class RoutingTable(msgspec.Struct, frozen=True, tag="table"):
    """Every model that clients may name, and who may. A higher version replaces a lower one of the same `epoch`.

    A controller that starts makes a new epoch. `keys_required`: a request without a valid key is refused; so it is
    as soon as one key exists, and where others than this machine can connect.
    """

    epoch: str
    version: int
    routes: tuple[Route, ...] = ()
    keys: tuple[Key, ...] = ()
    virtual: tuple[VirtualModel, ...] = ()
    keys_required: bool = False
    protocol: int = PROTOCOL


class ListRequests(msgspec.Struct, frozen=True, tag="list"):
    """Asks for the requests that wait or run; `ask` comes back in the `RequestList`."""

    ask: int


class CancelRequest(msgspec.Struct, frozen=True, tag="cancel"):
    """Ends a request; `ask` comes back in `Cancelled`."""

    ask: int
    id: str


class UsageStored(msgspec.Struct, frozen=True, tag="stored"):
    """`UsageReport` number `seq` is safe; the relay may forget it."""

    seq: int


ToRelay = RoutingTable | ListRequests | CancelRequest | UsageStored


# -- relay to controller -----------------------------------------------------------------------------------------------


class ModelCount(msgspec.Struct, frozen=True):
    """Requests that ended, since the relay started, by model, priority class and outcome."""

    model: str
    outcome: Outcome
    requests: int
    priority: Priority = "normal"


class Distribution(msgspec.Struct, frozen=True):
    """A histogram since the relay started. `counts`: values within each of `gateway.measures.BOUNDS[name]` that were
    beyond the bound before, and one more count, of those beyond them all; `total`: their sum, in seconds.

    `queue`, `first_byte` and `duration` have bounds from 1 ms to 600 s, `inter_chunk` from 1 ms to 10 s, `overhead`
    from 10 µs to 100 ms.
    """

    model: str
    priority: Priority
    name: DistributionName
    counts: tuple[int, ...]
    total: float


class Traffic(msgspec.Struct, frozen=True):
    """What went through for a model since the relay started."""

    model: str
    bytes_in: int = 0
    bytes_out: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Waiting(msgspec.Struct, frozen=True):
    """Requests that wait for a model now: in its queue while it serves (`queued`), or until it does (`held`)."""

    model: str
    queued: int = 0
    held: int = 0


class Demand(msgspec.Struct, frozen=True):
    """What the last request for a model said of how long the model is to stay. `last_use`: when it ended, in Unix
    seconds; `keep_alive`: seconds, negative for ever."""

    model: str
    last_use: float
    keep_alive: float


class RelayReport(msgspec.Struct, frozen=True, tag="report"):
    """What the relay carries now. `outstanding` is by instance, zeros left out. `demand`: of models whose last request
    here said something of it, the most lately used first, at most `MAX_DEMAND`."""

    relay: str
    epoch: str
    version: int
    outstanding: dict[str, int]
    counts: tuple[ModelCount, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    demand: tuple[Demand, ...] = ()
    protocol: int = PROTOCOL


class Wanted(msgspec.Struct, frozen=True, tag="wanted"):
    """Requests are held for a model that does not serve: make it ready. Sent once, and again with the next table that
    still has no target for it."""

    model: str


class RequestView(msgspec.Struct, frozen=True):
    """A request that waits or runs. `age` in seconds; `position` in its queue from 1, None once it runs."""

    id: str
    model: str
    tenant: str
    key: str | None
    priority: Priority
    phase: Phase
    age: float
    tokens: int = 0
    instance: str | None = None
    position: int | None = None
    path: str = ""


class RequestList(msgspec.Struct, frozen=True, tag="requests"):
    """Answers `ListRequests`: at most 10,000, the oldest first."""

    ask: int
    requests: tuple[RequestView, ...]


class Cancelled(msgspec.Struct, frozen=True, tag="cancelled"):
    """Answers `CancelRequest`: whether this relay had such a request."""

    ask: int
    found: bool


class Usage(msgspec.Struct, frozen=True):
    """What a key used of a model on a day (UTC, `2026-01-31`) since the last report. `key` "": without any."""

    key: str
    model: str
    day: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    last_used: float


class UsageReport(msgspec.Struct, frozen=True, tag="usage"):
    """Usage since report `seq` - 1 of this relay; sent until `UsageStored`. The same one twice counts once."""

    relay: str
    seq: int
    items: tuple[Usage, ...]


ToController = RelayReport | Wanted | RequestList | Cancelled | UsageReport
