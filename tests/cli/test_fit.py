"""`shoal fit`, with the real admin API in this process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import shoal.client
from shoal.client import Client
from tests.api.fitting import Bridge, app, llama, world
from tests.cli.conftest import Run
from tests.fleet.fakes import GIB, World


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    there = world()
    monkeypatch.setattr(shoal.client, "Client", partial(Client, transport=Bridge(app(there, tmp_path))))
    return there


def test_a_table_and_the_sums(fleet: World, run: Run, tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama")
    done = run("fit", str(folder), "--load", "8x2000")
    assert done.exit_code == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for words in ("MODEL DEVICE WEIGHTS OVERHEAD", "15.0 GiB", "llama needs", "it fits",
                  "weights are BF16 in 1 safetensors file", "cuda:0: ", "for KV caches", "want more together is",
                  "load: 8 requests of 2,000 tokens on average, as given"):  # fmt: skip
        assert words in shown
    assert not fleet.effects.prepared, "nothing is loaded"


def test_json_and_loads_by_model(fleet: World, run: Run, tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama")
    done = run("fit", str(folder), "--devices", "cuda:0", "--load", "llama=4x1000~0", "--load", "9x9", "--json")
    found = json.loads(done.stdout)
    assert found["models"][0]["on"] == ["cuda:0"]
    peaks = found["collisions"][0]["peaks"]
    assert peaks["expected"] == pytest.approx(4 * 1008 * 131072, rel=0.01), "in whole blocks of 16 tokens"


def test_what_does_not_fit_has_an_exit_code_of_its_own(fleet: World, run: Run, tmp_path: Path) -> None:
    done = run("fit", str(llama(tmp_path / "llama")), "--devices", "cuda:1")
    assert done.exit_code == 5
    assert "does not fit" in " ".join(done.stdout.split())


def test_models_that_are_loaded_have_a_row_too(fleet: World, run: Run) -> None:
    fleet.ready("old", needs=10 * GIB)
    done = run("fit", "old")
    assert done.exit_code == 0
    assert "old is loaded on cuda:0" in done.stdout


@pytest.mark.parametrize(
    ("args", "code"),
    [(("nobody",), 4), (("org/a", "--devices", "cuda:9"), 4), (("org/a", "--devices", ","), 2),
     (("org/a", "--load", "many"), 2), (("org/a", "--load", "8x0"), 2), ((), 2)],
)  # fmt: skip
def test_what_is_refused(fleet: World, run: Run, args: tuple[str, ...], code: int) -> None:
    assert run("fit", *args).exit_code == code
