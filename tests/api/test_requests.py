"""`/api/v1/requests`, with a relay on a real socket behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx2

from shoal.api.app import make_app
from shoal.settings import Settings
from tests.fleet.relay import Switchboard, switchboard, view

HELD = view("r-1", key="team", priority="high", phase="held", age=3.5, position=1, path="/v1/chat/completions")
RUNNING = view("r-2", "other", tokens=7, instance="other-0")


@asynccontextmanager
async def api(**options: Any) -> AsyncIterator[tuple[Switchboard, httpx2.AsyncClient]]:
    """The admin API of a controller that has nothing but relays."""
    async with switchboard(**options) as board:
        controller = SimpleNamespace(settings=Settings(), store=SimpleNamespace(problem=None), relays=board.relays)
        transport = httpx2.ASGITransport(make_app(cast("Any", controller)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield board, client


async def test_requests_are_listed_and_chosen_by_model_and_phase() -> None:
    async with api() as (board, client):
        await board.connect("a", [RUNNING, HELD])
        everything = (await client.get("/api/v1/requests")).json()
        assert everything == {
            "requests": [
                {
                    "id": "r-1", "model": "m", "tenant": "127.0.0.1", "key": "team", "priority": "high",
                    "phase": "held", "age": 3.5, "tokens": 0, "instance": None, "position": 1,
                    "path": "/v1/chat/completions",
                },
                {
                    "id": "r-2", "model": "other", "tenant": "127.0.0.1", "key": None, "priority": "normal",
                    "phase": "answering", "age": 1.0, "tokens": 7, "instance": "other-0", "position": None, "path": "",
                },
            ],
            "silent": [],
        }  # fmt: skip
        for query, ids in ((("model", "other"), ["r-2"]), (("phase", "held"), ["r-1"]), (("model", "none"), [])):
            chosen = (await client.get("/api/v1/requests", params=dict([query]))).json()["requests"]
            assert [one["id"] for one in chosen] == ids
        wrong = await client.get("/api/v1/requests", params={"phase": "gone"})
        assert wrong.status_code == 400
        assert "phase" in wrong.json()["error"]["message"]


async def test_a_request_is_cancelled_whatever_its_id_is() -> None:
    strange = "a/b?c d%2F"
    async with api() as (board, client):
        relay = await board.connect("a", [view(strange), view("r")])
        path = "/api/v1/requests/a%2Fb%3Fc%20d%252F"
        assert (await client.delete(path)).status_code == 204
        assert [request.id for request in relay.requests] == ["r"]
        again = await client.delete(path)
        assert again.status_code == 404
        assert again.json()["error"]["code"] == "request_not_found"


async def test_a_relay_that_does_not_answer_is_told_of() -> None:
    async with api(patience=0.2) as (board, client):
        await board.connect("mute", silent=True)
        assert (await client.get("/api/v1/requests")).json() == {"requests": [], "silent": ["mute"]}
        refused = await client.delete("/api/v1/requests/r")
        assert refused.status_code == 504
        assert refused.json()["error"]["code"] == "relay_silent"
