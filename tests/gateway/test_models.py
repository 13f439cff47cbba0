"""GET /v1/models, answered from the table."""

from __future__ import annotations

import pytest

from shoal.errors import ShoalError
from shoal.gateway.local import model_list, model_named
from shoal.gateway.routes import Routes
from shoal.messages import Route, RoutingTable, VirtualModel
from tests.gateway.harness import World, get, post, route


async def test_list_and_single_model(world: World) -> None:
    engine = await world.engine()
    await world.start(route("org/m ü", engine), route("off"))
    answer = await world.ask(get("/v1/models?limit=5"))
    one = {
        "id": "org/m ü",
        "object": "model",
        "created": 1700000000,
        "owned_by": "shoal",
        "state": "ready",
        "context_length": 4096,
        "max_model_len": 4096,
    }
    off = {**one, "id": "off", "state": "unloaded", "context_length": None, "max_model_len": None}
    assert answer.json == {"object": "list", "data": [off, one]}
    assert (await world.ask(get("/v1/models/org/m%20%C3%BC"))).json == one
    assert (await world.ask(get("/v1/models/org%2Fm%20%C3%BC"))).json == one
    assert engine.received == []
    assert world.counts == {}


async def test_what_is_refused(world: World) -> None:
    await world.start(route("off"))
    missing = await world.ask(get("/v1/models/none"))
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    for request in (get("/v1/models/off", method=b"DELETE"), post("/v1/models")):
        answer = await world.ask(request)
        assert (answer.status, answer.error["code"], answer.get("allow")) == (405, "method_not_allowed", "GET, HEAD")


async def test_head(world: World) -> None:
    await world.start()
    client = await world.client()
    answer = await client.ask(get("/v1/models", method=b"HEAD"), head_only=True)
    assert (answer.status, answer.get("content-length")) == (200, "27")
    assert (await client.ask(get("/v1/models"))).json == {"object": "list", "data": []}


def everything() -> Routes:
    routes = Routes()
    routes.replace(
        RoutingTable(
            "e",
            1,
            (
                Route("z", "ready", 7, context_length=100, names=("sql", "b")),
                Route("b", "unloaded", 8, context_length=200, names=("sql", "fr")),
            ),
            virtual=(
                VirtualModel("fast", "b", created=5),
                VirtualModel("query", "sql"),
                VirtualModel("spare", "gone", fallback=("gone too", "z")),
                VirtualModel("lost", "gone", created=9),
                VirtualModel("fr", "z"),
            ),
        )
    )
    return routes


def test_every_name_once_with_what_it_stands_for() -> None:
    data = model_list(everything())["data"]
    assert [(m["id"], m.get("root"), m.get("parent"), m["state"], m["context_length"], m["created"]) for m in data] == [
        ("b", None, None, "unloaded", 200, 8),
        ("fast", "b", "b", "unloaded", 200, 5),
        ("fr", "fr", "b", "unloaded", 200, 8),
        ("lost", "gone", "gone", "unavailable", None, 9),
        ("query", "sql", "sql", "ready", 100, 7),
        ("spare", "z", "z", "ready", 100, 7),
        ("sql", "sql", "z", "ready", 100, 7),
        ("z", None, None, "ready", 100, 7),
    ]
    assert all(m["max_model_len"] == m["context_length"] and m["object"] == "model" for m in data)
    assert [model_named(everything(), m["id"]) for m in data] == data


def test_only_what_a_key_may_see() -> None:
    routes = everything()
    visible = {"fast", "lost", "z"}.__contains__
    assert [m["id"] for m in model_list(routes, visible)["data"]] == ["fast", "lost", "z"]
    assert model_named(routes, "lost", visible)["state"] == "unavailable"
    for name in ("b", "query", "none"):
        with pytest.raises(ShoalError, match=r"Known models: fast, lost, z\.") as caught:
            model_named(routes, name, visible)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
