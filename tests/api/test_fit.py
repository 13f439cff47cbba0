"""`POST /api/v1/fit`: files, settings and devices in, sums and chances out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shoal.fleet import facts
from shoal.fleet.memory import Terms
from shoal.fleet.profiles import Profile, settings_hash
from shoal.fleet.spec import ModelSpec
from shoal.fleet.state import InstanceState as S
from shoal.fleet.state import Rest
from tests.api.fitting import app, llama, world
from tests.fleet.fakes import GIB, HOST, World, books, gpu

Json = dict[str, Any]


async def ask(fleet: World, folder: Path, status: int = 200, **body: Any) -> Json:
    transport = httpx2.ASGITransport(app(fleet, folder))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        response = await client.post("/api/v1/fit", json=body)
    assert response.status_code == status, response.text
    found: Json = response.json()
    return found if status == 200 else found["error"]


async def test_a_folder_that_is_not_declared(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama-8b")
    found = await ask(world(), tmp_path, models=[str(folder)])
    (model,) = found["models"]
    assert (model["name"], model["verdict"], model["on"]) == ("llama-8b", "fits", ["cuda:0"])
    needs = model["needs"]
    assert needs["weights"] == 15 * GIB
    assert needs["kv_per_token"] == 131072
    assert needs["longest"] == 131072
    assert needs["kv_of_longest"] == 16 * GIB
    assert needs["concurrency"] == 1024
    assert not needs["measured"]
    assert 2 * GIB < needs["overhead"] < 4 * GIB
    assert [one["verdict"] for one in model["devices"]] == ["fits", "does_not_fit"]
    parts = {part["what"]: part["bytes"] for part in model["devices"][0]["parts"]}
    assert parts["others hold"] == 20 * GIB
    (collision,) = found["collisions"]
    assert (collision["device"], collision["peaks"], collision["unknown"]) == ("cuda:0", None, ["llama-8b"])


async def test_the_chance_of_a_collision_from_declared_loads(tmp_path: Path) -> None:
    folder = str(llama(tmp_path / "llama-8b"))
    models = [{"source": folder, "name": name} for name in ("one", "two")]
    load = {"one": {"concurrency": 20, "tokens": 4000}, "*": {"concurrency": 10, "tokens": 6000, "spread": 0.5}}
    found = await ask(world(), tmp_path, models=models, load=load)
    (collision,) = found["collisions"]
    assert collision["peaks"]["expected"] == pytest.approx((20 * 4000 + 10 * 6000) * 131072, rel=0.01)
    assert 0.001 < collision["peaks"]["probability"] < 0.5
    assert set(collision["peaks"]["peaks"]) == {"one", "two"}
    calm = await ask(world(), tmp_path, models=models, load={"*": {"concurrency": 1, "tokens": 100}})
    assert calm["collisions"][0]["peaks"]["probability"] < 1e-9


async def test_who_has_to_give_way(tmp_path: Path) -> None:
    fleet = World(gpu(0, 70 * GIB), HOST)
    id = fleet.ready("old", needs=65 * GIB)
    fleet.tell(facts.BooksRead(books(fleet, {id: Terms()}, backed=0)))
    fleet.tell(facts.DevicesRead((gpu(0, 5 * GIB), HOST), {}))
    found = await ask(fleet, tmp_path, models=[str(llama(tmp_path / "new"))])
    (model,) = found["models"]
    assert model["verdict"] == "fits_if_others_give_way"
    assert model["devices"][0]["sleep"] == ["old"]
    assert "it fits if old sleeps" in model["message"]


async def test_a_model_that_is_loaded(tmp_path: Path) -> None:
    fleet = world()
    fleet.ready("old", needs=10 * GIB)
    found = await ask(fleet, tmp_path, models=["old"], load={"old": {"concurrency": 2, "tokens": 100}})
    (model,) = found["models"]
    assert (model["verdict"], model["on"], model["devices"]) == ("loaded", ["cuda:0"], [])
    assert found["collisions"][0]["peaks"]["peaks"].keys() == {"old"}


async def test_a_model_that_sleeps_needs_what_its_sleep_gave_back(tmp_path: Path) -> None:
    fleet = world()
    id = fleet.ready("old", needs=20 * GIB)
    asleep = dataclasses.replace(fleet.get(id), state=S.SLEEPING, rest=Rest(level=1, freed=17 * GIB))
    fleet.manager.fleet.instances[id] = asleep
    (model,) = (await ask(fleet, tmp_path, models=["old"]))["models"]
    assert (model["verdict"], model["on"], model["needs"]["total"]) == ("fits", ["cuda:0"], 17 * GIB)
    assert [one["device"] for one in model["devices"]] == ["cuda:0"], "it cannot wake elsewhere"
    fleet.tell(facts.DevicesRead((gpu(0, 9 * GIB), gpu(1), HOST), {}))
    (full,) = (await ask(fleet, tmp_path, models=["old"]))["models"]
    assert full["verdict"] == "does_not_fit"


async def test_a_load_that_was_observed_counts_unless_another_is_given(tmp_path: Path) -> None:
    fleet = world()
    id = fleet.ready("old", needs=10 * GIB)
    token = 2 * 2**20 // 16  # as the simulated engine has it
    fleet.tell(facts.BooksRead(books(fleet, {id: Terms()}, used=6 * 500 * token)))
    fleet.report({id: 6})
    for _ in range(40):
        fleet.effects.clock += 2
        fleet.tell(facts.DevicesRead(fleet.manager.fleet.devices, {}))
    observed = await ask(fleet, tmp_path, models=["old"])
    assert observed["models"][0]["load"] == {
        "concurrency": pytest.approx(6), "tokens": pytest.approx(500), "spread": 1.0, "observed": True,
    }  # fmt: skip
    assert observed["collisions"][0]["peaks"]["expected"] == pytest.approx(6 * 508 * token, rel=0.01)
    given = await ask(fleet, tmp_path, models=["old"], load={"old": {"concurrency": 1, "tokens": 16}})
    assert given["models"][0]["load"]["observed"] is False


async def test_what_was_measured_goes_before_the_estimate(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama")
    fleet = world()
    spec = ModelSpec(name="m", source=str(folder))
    known = Profile("m", settings_hash(spec), "GPU", 15 * GIB, 1.0, overheads=(2 * GIB,), kv_token=140_000.0)
    fleet.manager.fleet.profiles[known.id] = known
    found = await ask(fleet, tmp_path, models=[{"name": "m", "source": str(folder)}])
    (model,) = found["models"]
    assert (model["needs"]["measured"], model["needs"]["overhead"]) == (True, 2 * GIB)
    assert model["needs"]["kv_per_token"] == pytest.approx(140_000, rel=0.001)
    assert model["devices"][0]["measured"]
    assert "measured at a load on GPU" in model["needs"]["notes"][0]


async def test_a_hub_id_that_is_not_here_is_unknown_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    found = await ask(world(), tmp_path, models=["org/name"], devices=["cuda:0"])
    (model,) = found["models"]
    assert (model["name"], model["verdict"], model["needs"]["weights"]) == ("org/name", "unknown", None)
    assert any("org/name is not on this machine" in note for note in model["needs"]["notes"])
    assert not (tmp_path / "hub").exists()
    full = await ask(world(free=1), tmp_path, models=["org/name"], devices=["cuda:0"])
    assert full["models"][0]["verdict"] == "does_not_fit", "what it surely needs is too much already"


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"models": ["nobody"]}, 404, "model_not_found", "shoal models ls"),
        ({"models": [{"name": "m"}]}, 400, "invalid_settings", "source"),
        ({"models": [{"name": "m", "source": "x", "flor": 1}]}, 400, "invalid_settings", "did you mean floor"),
        ({"models": ["org/a", "org/a"]}, 400, "invalid_request", "named twice"),
        ({"models": []}, 400, "invalid_request", "models"),
        ({"models": ["org/a"] * 65}, 400, "invalid_request", "models"),
        ({"models": ["org/a"], "devices": ["cuda:9"]}, 404, "no_such_device", "this machine has cuda:0, cuda:1, host"),
        ({"models": ["org/a"], "devices": []}, 400, "invalid_request", "devices"),
        ({"models": ["org/a"], "load": {"b": {"concurrency": 1, "tokens": 1}}}, 404, "not_found", "b is none of"),
        ({"models": ["org/a"], "load": {"*": {"concurrency": -1, "tokens": 1}}}, 400, "invalid_request", "concurrency"),
        ({"models": ["org/a"], "load": {"*": {"concurrency": 1, "tokens": 0}}}, 400, "invalid_request", "tokens"),
        ({"models": ["/no/such/folder"]}, 400, "source_not_found", "there is no folder"),
    ],
)
async def test_what_cannot_be_answered(body: Json, status: int, code: str, says: str, tmp_path: Path) -> None:
    error = await ask(world(), tmp_path, status, **body)
    assert error["code"] == code
    assert says in error["message"]


async def test_files_that_no_engine_could_load(tmp_path: Path) -> None:
    folder = llama(tmp_path / "cut")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    error = await ask(world(), tmp_path, 400, models=[str(folder)])
    assert error["code"] == "weights_unreadable"
    assert "is cut short" in error["message"]
    absurd = llama(tmp_path / "absurd", num_hidden_layers=10**9)
    assert (await ask(world(), tmp_path, 400, models=[str(absurd)]))["code"] == "bad_config"
    (absurd / "config.json").unlink()
    assert (await ask(world(), tmp_path, 400, models=[str(absurd)]))["code"] == "source_not_found"
