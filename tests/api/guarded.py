"""An admin API with users, clients of it, and listeners to its events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2

from shoal.api.app import make_app
from shoal.fleet.hub import Hub
from shoal.fleet.records import Event
from shoal.fleet.users import Cost
from shoal.introduction import Introduction
from shoal.settings import Settings
from shoal.sign_in import SignIn
from shoal.store import Saved

CHEAP = Cost(2, 1, 1)
HERE, ELSEWHERE = {"x-shoal-peer": "127.0.0.1"}, {"x-shoal-peer": "10.0.0.9"}
PAGE = {"x-shoal-page": "1"}
GOOD, BAD = "correct horse", "battery staple"


class Stored:
    """What would be in the database."""

    problem = None

    def __init__(self) -> None:
        self.users: dict[str, Any] = {}
        self.sessions: dict[str, Any] = {}
        self.events: list[Event] = []

    def save_user(self, user: Any) -> None:
        self.users[user.name] = user

    def delete_user(self, name: str) -> None:
        self.users.pop(name, None)

    def save_session(self, session: Any) -> None:
        self.sessions[session.id] = session

    def delete_session(self, id: str) -> None:
        self.sessions.pop(id, None)

    def saved(self) -> Saved:
        return Saved(users=list(self.users.values()), sessions=list(self.sessions.values()))


class Admin:
    """A controller that has users and an event stream, and no more."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.store = Stored()
        self.introduction = Introduction(Path("/run/shoal/controller.sock"), "token")
        self.hub = Hub(dict)
        self.now = 1e9
        self.clock = 1000.0
        effects = SimpleNamespace(now=lambda: self.now, add_event=self.store.events.append, publish=self.hub.publish)
        self.sign_in = SignIn(
            cast("Any", self.store), cast("Any", effects), "fleet", cost=CHEAP, clock=lambda: self.clock
        )
        self.app = make_app(cast("Any", self))

    async def do(self, command: Callable[[], Any]) -> Any:
        return command()

    async def user(self, name: str = "ann", role: Any = "admin", password: str = GOOD) -> None:
        self.sign_in.set_user(name, role, await self.sign_in.hash(password))

    def client(self, *headers: dict[str, str], **options: Any) -> httpx2.AsyncClient:
        merged = {key: value for part in headers for key, value in part.items()}
        transport = httpx2.ASGITransport(self.app)
        return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=merged, **options)

    async def signed_in(self, *headers: dict[str, str], name: str = "ann") -> httpx2.AsyncClient:
        client = self.client(*(headers or (HERE,)), PAGE)
        answer = await client.post("/api/v1/session", json={"name": name, "password": GOOD})
        assert answer.status_code == 200, answer.text
        return client


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else ""


async def asked(client: httpx2.AsyncClient, method: str = "GET", path: str = "/api/v1/users") -> tuple[int, str]:
    return code(await client.request(method, path))


class Listener:
    """A request for the event stream, as a server would make it: httpx's own transport waits for the end."""

    def __init__(self, admin: Admin, headers: dict[str, str]) -> None:
        fields = [(key.encode(), value.encode()) for key, value in {"host": "127.0.0.1", **headers}.items()]
        scope = {"type": "http", "method": "GET", "path": "/api/v1/events", "raw_path": b"/api/v1/events",
                 "query_string": b"", "headers": fields, "http_version": "1.1", "scheme": "http",
                 "asgi": {"version": "3.0", "spec_version": "2.3"}, "root_path": "", "client": None,
                 "server": None}  # fmt: skip
        self.messages: list[Any] = []
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(admin.app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        self.messages.append(message)
        if message["type"] == "http.response.body":
            self.begun.set()

    async def ended(self) -> bool:
        """Wait for the end, which has to be that of a whole answer."""
        async with asyncio.timeout(20):
            await self.task
        return bool(self.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False})


async def listening(admin: Admin, client: httpx2.AsyncClient | None = None, **headers: str) -> Listener:
    cookies = "; ".join(f"{name}={value}" for name, value in (client.cookies.items() if client else ()))
    listener = Listener(admin, {"x-shoal-peer": "127.0.0.1", **({"cookie": cookies} if cookies else {}), **headers})
    async with asyncio.timeout(20):
        await listener.begun.wait()
    assert listener.messages[0]["status"] == 200
    return listener
