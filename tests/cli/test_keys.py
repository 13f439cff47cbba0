"""Keys, usage and virtual models on the command line: what is refused before anything is asked, and keys that are made
where no Shoal runs. `tests/system/test_keys.py` has the commands against a real one."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shoal.config import Handover, load_settings
from shoal.errors import ShoalError
from shoal.fleet.keys import digest_of
from shoal.paths import find_paths, hold, make_runtime
from shoal.store.peek import peek_keys
from shoal.supervisor import StartError, refuse_unguarded
from tests.cli.conftest import Run

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    for name in os.environ:
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def config() -> Iterator[Path]:
    """Settings of a Shoal that would listen for other machines; in a short folder, for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="shoal-", dir="/tmp") as folder:
        file = Path(folder, "shoal.yaml")
        folders = {"state_dir": f"{folder}/state", "runtime_dir": f"{folder}/run"}
        file.write_text(yaml.safe_dump({"host": "0.0.0.0", **folders}))
        yield file


def start(config: Path) -> None:
    """What `shoal serve` looks at first."""
    settings = load_settings(file=config)
    refuse_unguarded(Handover(settings, config), find_paths(settings))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["keys", "create"], "NAME"),
        (["keys", "create", "me", "--rpm", "0"], "--rpm"),
        (["keys", "create", "me", "--tpm", "many"], "--tpm"),
        (["keys", "create", "me", "--concurrent", "-1"], "--concurrent"),
        (["keys", "create", "me", "--expires", "soon"], "30d"),
        (["keys", "create", "me", "--url", NOWHERE, "--state-dir", "x"], "--state-dir"),
        (["keys", "edit", "me"], "say what to change"),
        (["keys", "edit", "me", "--model", "a", "--all-models"], "--all-models"),
        (["keys", "rotate", "me", "--grace", "a while"], "--grace"),
        (["usage", "--by", "week"], "day, key and model"),
        (["usage", "--from", "yesterday"], "2026-01-31"),
        (["virtual", "set", "v"], "--model"),
        (["virtual", "set", "v", "--model", "m", "--set", "temperature"], "NAME=VALUE"),
        (["virtual", "set", "v", "--model", "m", "--default", "=1"], "NAME=VALUE"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_right(run: Run, args: list[str], words: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert words in re.sub(r"[│\s]+", " ", result.stderr)


def test_where_a_shoal_was_named_and_is_not_there_no_key_is_made(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("keys", "create", "me", "--url", NOWHERE).exit_code == 3
    monkeypatch.setenv("SHOAL_URL", NOWHERE)
    assert run("keys", "create", "me").exit_code == 3


def test_a_key_can_be_made_before_the_first_start_which_then_may_be_open(run: Run, config: Path) -> None:
    with pytest.raises(StartError) as caught:
        start(config)
    assert f"`shoal keys create NAME --config {config}`" in caught.value.message
    assert "say --insecure" in caught.value.message
    assert [file.name for file in config.parent.iterdir()] == [config.name], "nothing was touched"

    result = run("keys", "create", "me", "--model", "a", "--rpm", "60", "--expires", "30d", "--config", str(config))
    assert result.exit_code == 0, result.stderr
    key = result.stdout.strip()
    assert result.stdout == f"{key}\n"
    assert f"stored in {config.parent}/state/shoal.db" in re.sub(r"\n", "", result.stderr)
    assert "shown this once" in result.stderr
    (record,) = peek_keys(None, config.parent / "state" / "shoal.db")
    assert record.digest == digest_of(key)
    assert record.settings.models == ("a",)
    assert record.settings.requests_per_minute == 60
    assert all(key.encode() not in file.read_bytes() for file in (config.parent / "state").iterdir())
    start(config)


def test_a_key_that_has_expired_opens_no_port(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("keys", "create", "me", "--expires", "1h", "--config", str(config)).exit_code == 0
    start(config)
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(StartError):
        start(config)


def test_insecure_and_loopback_need_no_key(config: Path) -> None:
    for flags in ({"insecure": True}, {"host": "127.0.0.1"}):
        settings = load_settings(flags, file=config)
        refuse_unguarded(Handover(settings, config, flags=flags), find_paths(settings))


def test_the_remedy_names_the_state_folder_that_was_given(tmp_path: Path) -> None:
    flags = {"host": "0.0.0.0", "state_dir": tmp_path / "state"}
    settings = load_settings(flags)
    with pytest.raises(StartError, match=rf"shoal keys create NAME --state-dir {tmp_path}/state`"):
        refuse_unguarded(Handover(settings, flags=flags), find_paths(settings))


def test_a_database_whose_keys_cannot_be_read_opens_no_port(config: Path) -> None:
    (config.parent / "state").mkdir()
    (config.parent / "state" / "shoal.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ShoalError, match=r"API keys in .* cannot be read"):
        start(config)


def test_keys_made_apart_know_each_other(run: Run, config: Path) -> None:
    assert run("keys", "create", "me", "--config", str(config)).exit_code == 0
    again = run("keys", "create", "me", "--config", str(config), "--json")
    assert again.exit_code == 5
    assert json.loads(again.stderr)["error"]["code"] == "key_exists"
    other = run("keys", "create", "you", "--config", str(config), "--json")
    made = json.loads(other.stdout)
    assert made["key"].startswith(made["prefix"] + "-")
    assert "digest" not in other.stdout
    assert len(peek_keys(None, config.parent / "state" / "shoal.db")) == 2


def test_bad_settings_make_nothing(run: Run, config: Path) -> None:
    result = run("keys", "create", "x" * 101, "--config", str(config))
    assert result.exit_code == 1
    assert "1 to 100 characters" in result.stderr
    assert not (config.parent / "state" / "shoal.db").exists()


def test_beside_a_shoal_that_runs_no_key_is_made(run: Run, config: Path) -> None:
    paths = find_paths(load_settings(file=config))
    make_runtime(paths)
    with hold(paths):
        result = run("keys", "create", "me", "--config", str(config))
    assert result.exit_code == 1
    assert "--url" in result.stderr
    assert not paths.database.exists()


def test_a_key_that_cannot_be_saved_is_not_shown(run: Run, config: Path) -> None:
    (config.parent / "state").mkdir()
    (config.parent / "state" / "shoal.db").mkdir()
    result = run("keys", "create", "me", "--config", str(config))
    assert result.exit_code == 1
    assert "sk-shoal" not in result.stdout
    assert "no key was made" in result.stderr
