"""For tests of what only the native relay does: a scripted controller, an engine with a gate, named requests."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any

import msgspec

from shoal.gateway.link import save_table
from shoal.gateway.relay_native import NativeRelay
from shoal.messages import (
    Cancelled,
    CancelRequest,
    DistributionName,
    Key,
    ListRequests,
    RelayReport,
    RequestList,
    RequestView,
    Route,
    RoutingTable,
    Target,
    ToController,
    Traffic,
    Usage,
    UsageReport,
    UsageStored,
    Wanted,
)
from tests.gateway.harness import Client, Engine, Message, World, eventually, post, reply


def serves(model: str, *engines: Engine, capacity: int = 0, **options: Any) -> Route:
    """A model with an instance on each of these engines, which run `capacity` requests at once."""
    targets = tuple(Target(f"{model}-{i}", engine.address, capacity) for i, engine in enumerate(engines))
    return Route(model, "ready", 1, targets, comes=True, **options)


def sleeps(model: str, **options: Any) -> Route:
    """A model that does not serve and will if somebody asks."""
    return Route(model, "unloaded", 1, comes=True, **options)


def failed(model: str, detail: str) -> Route:
    """A model that will not come, and why."""
    return Route(model, "failed", 1, detail=detail)


def secret_of(name: str) -> str:
    """What the bearer of the key `name` sends."""
    return f"sk-shoal-{name}-0123456789"


def key(name: str, **options: Any) -> Key:
    """A key as it is in a table."""
    return Key(f"id-{name}", name, hashlib.sha256(secret_of(name).encode()).hexdigest(), **options)


def bearer(name: str) -> bytes:
    """The header line with which a key is sent."""
    return f"Authorization: Bearer {secret_of(name)}\r\n".encode()


def chat(model: str = "m", name: str = "", extra: bytes = b"", **fields: object) -> bytes:
    """A chat request; the engine gets to see `name`."""
    body = msgspec.json.encode({"model": model, **fields})
    return post(body=body, extra=extra + (b"X-Name: " + name.encode() + b"\r\n" if name else b""))


@dataclasses.dataclass
class Gate:
    """An engine's script that answers a request only once it is let go."""

    begun: list[str] = dataclasses.field(default_factory=list)
    """Names of the requests that have reached the engine, in order."""
    _open: dict[str, asyncio.Event] = dataclasses.field(default_factory=dict)

    async def __call__(self, message: Message, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = message.get("x-name") or ""
        self.begun.append(name)
        await self._event(name).wait()
        await reply(writer, body=b'{"name":"%s"}' % name.encode())

    def let_go(self, *names: str) -> None:
        """Answer these requests, whether they have come yet or not."""
        for name in names:
            self._event(name).set()

    def _event(self, name: str) -> asyncio.Event:
        return self._open.setdefault(name, asyncio.Event())


class Controls:
    """The controller's end of the relay socket: sends tables, and keeps what the relay says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._versions = itertools.count(2)
        self._asks = itertools.count(1)
        self._answers: dict[int, RequestList | Cancelled] = {}
        self.table = RoutingTable("e1", 1)
        self.wanted: list[str] = []
        """Every wish, in order."""
        self.usage: list[Usage] = []
        self.report = RelayReport("", "", 0, {})
        """The newest one."""

    async def start(self) -> None:
        """Listen, and wait for the relay."""
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=2**24)
        await eventually(lambda: self._writer is not None)

    async def stop(self) -> None:
        """Go away."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._send(self.table)
        while line := await reader.readline():
            message = msgspec.json.decode(line, type=ToController)
            match message:
                case RelayReport():
                    self.report = message
                case Wanted():
                    self.wanted.append(message.model)
                case UsageReport():
                    self.usage += message.items
                    self._send(UsageStored(message.seq))
                case RequestList() | Cancelled():
                    self._answers[message.ask] = message
        writer.close()

    def _send(self, message: msgspec.Struct) -> None:
        assert self._writer is not None
        self._writer.write(msgspec.json.encode(message) + b"\n")

    async def tell(self, *routes: Route, **options: Any) -> None:
        """Send a new table, and wait until the relay goes by it."""
        table = self.table = RoutingTable("e1", next(self._versions), routes, **options)
        self._send(table)
        await eventually(lambda: self.report.version == table.version)

    async def requests(self) -> dict[str, RequestView]:
        """What waits or runs, by id."""
        answer = await self._ask(ListRequests(next(self._asks)))
        assert isinstance(answer, RequestList)
        return {view.id: view for view in answer.requests}

    async def cancel(self, id: str) -> bool:
        """End a request; whether there was one."""
        answer = await self._ask(CancelRequest(next(self._asks), id))
        assert isinstance(answer, Cancelled)
        return answer.found

    async def settled(self) -> None:
        """Wait until everything that the relay has said by now has come."""
        await self.requests()

    async def _ask(self, question: ListRequests | CancelRequest) -> RequestList | Cancelled:
        self._send(question)
        await eventually(lambda: question.ask in self._answers)
        return self._answers.pop(question.ask)


class NativeWorld(World):
    """A native relay with engines and a controller's end of its socket."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "native")
        self.controls = Controls(self.config.relay_socket)

    def configure(self, **settings: Any) -> None:
        """Change the relay's settings, before it starts."""
        self.config = dataclasses.replace(self.config, **settings)

    async def begin(self, *routes: Route, **options: Any) -> None:
        """Start the relay and tell it a table."""
        await self.start()
        await self.controls.start()
        await self.controls.tell(*routes, **options)

    def save(self, *routes: Route, **options: Any) -> None:
        """Leave a table behind, as a relay before this one."""
        save_table(self.config.table, RoutingTable("e0", 1, routes, **options))

    async def send(self, data: bytes) -> Client:
        """Send a request without waiting for the answer."""
        client = await self.client()
        await client.send(data)
        return client

    async def sent(self, *requests: bytes) -> list[Client]:
        """Send requests one after the other, each by a client of its own, so that the relay gets them in this order."""
        clients = []
        for request in requests:
            before = self.taken
            clients.append(await self.send(request))
            await eventually(lambda before=before: self.taken == before + 1)  # type: ignore[misc]
        return clients

    @property
    def native_relay(self) -> NativeRelay:
        assert isinstance(self.relay, NativeRelay)
        return self.relay

    @property
    def taken(self) -> int:
        """Requests that wait or run, or have ended."""
        return len(self.native_relay.requests) + sum(self.counts.values())

    def observed(self, name: DistributionName, model: str = "m") -> int:
        """How many values a distribution of a model has."""
        found = self.native_relay.measures.distributions()
        return sum(sum(one.counts) for one in found if (one.name, one.model) == (name, model))

    def traffic(self, model: str = "m") -> Traffic:
        """What went through for a model."""
        return next((one for one in self.native_relay.measures.traffic() if one.model == model), Traffic(model))

    async def end(self) -> None:
        await super().end()
        await self.controls.stop()


async def refused(client: Client) -> tuple[int, object, Message]:
    """Status, code and all of an error that a client gets."""
    answer = await client.response()
    return answer.status, answer.error["code"], answer


async def answered(client: Client) -> str:
    """The name of the request that a client gets the answer to."""
    answer = await client.response()
    assert answer.status == 200, answer
    return str(answer.json["name"])
