"""GET /v1/models, answered from the table."""

from __future__ import annotations

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
    }
    off = {**one, "id": "off", "state": "unloaded", "context_length": None}
    assert answer.json == {"object": "list", "data": [one, off]}
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
