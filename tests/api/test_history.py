"""The history by the API: whose it is, its columns, and what is refused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shoal.api.app import make_app
from shoal.bench.dashboard.fleet import Stage
from shoal.bench.dashboard.stage import make_controller
from shoal.fleet.history import DEVICE, MODEL


@pytest.fixture
def client() -> Iterator[TestClient]:
    """Of a controller with two devices and three models, of which 130 seconds are known."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    controller, stage = make_controller(folder), Stage(2, 3)
    fleet = controller.manager.fleet
    stage.furnish(fleet, 0.0)
    for step in range(27):
        stage.step()
        fleet.devices = stage.read()
        fleet.ledger.read(stage.books())
        fleet.relays = {1: stage.report()}
        controller.history.sample(fleet, 1000.0 + 5 * step)
    # A relay that is on this machine says so; without one the controller's own socket is asked.
    yield TestClient(make_app(controller), base_url="http://127.0.0.1")
    shutil.rmtree(folder, ignore_errors=True)


def test_without_names_it_is_all_devices(client: TestClient) -> None:
    found = client.get("/api/v1/history").json()
    assert found["at"] == [1000 + 5 * n for n in range(27)] and found["every"] == 5
    assert found["models"] == {} and list(found["devices"]) == ["cuda:0", "cuda:1"]
    device = found["devices"]["cuda:1"]
    assert tuple(device) == DEVICE
    assert all(len(values) == 27 and None not in values for values in device.values())
    assert found["now"] > 1e9 and found["states"][0] == "unloaded"


def test_models_by_name_and_what_is_not_known_is_null(client: TestClient) -> None:
    asked = {"model": ["model-000", "model-002"], "device": "cuda:0"}
    found = client.get("/api/v1/history", params=asked).json()
    assert list(found["models"]) == ["model-000", "model-002"] and list(found["devices"]) == ["cuda:0"]
    model = found["models"]["model-000"]
    assert tuple(model) == MODEL
    assert model["first_byte_p50"][0] is None and any(model["first_byte_p50"])
    assert sum(model["requests"]) > 0
    assert {found["states"][int(place)] for place in model["state"]} == {"ready"}


def test_a_day_is_by_the_minute(client: TestClient) -> None:
    found = client.get("/api/v1/history", params={"span": "24h", "model": "model-001"}).json()
    assert found["at"] == [1060, 1120] and found["every"] == 60
    assert len(found["models"]["model-001"]["tokens"]) == 2


def test_what_there_is_not_is_refused(client: TestClient) -> None:
    for asked, status, words in (
        ({"model": "none"}, 404, "there is no model none"),
        ({"device": "cuda:9"}, 404, "there are cuda:0, cuda:1"),
        ({"span": "1h"}, 400, "span"),
        ({"model": ["model-000"] * 21}, 400, "model"),
    ):
        answer = client.get("/api/v1/history", params=asked)
        assert answer.status_code == status and words in answer.json()["error"]["message"]


def test_it_is_in_the_openapi_document(client: TestClient) -> None:
    document = client.get("/api/openapi.json").json()
    assert "/api/v1/history" in document["paths"]
    assert set(document["components"]["schemas"]["ModelHistory"]["properties"]) == set(MODEL)
    assert set(document["components"]["schemas"]["DeviceHistory"]["properties"]) == set(DEVICE)
