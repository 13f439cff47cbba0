"""`shoal presets`, against a real Shoal with the simulated engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run
from tests.system.harness import Shoal, a_shoal, until


@pytest.fixture(scope="module")
def served() -> Iterator[Shoal]:
    """A Shoal with one model that is loaded."""
    with a_shoal() as there:
        there.start()
        there.add("m")
        there.load("m")
        yield there


@pytest.fixture
def at(served: Shoal, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `shoal …` for that Shoal, and leaves it without presets."""
    monkeypatch.setenv("SHOAL_URL", served.url)
    yield run
    with served.client as client:
        for one in client.presets():
            client.remove_preset(one["name"])


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_preset_from_its_first_day_to_its_last(at: Run, served: Shoal, tmp_path: Path) -> None:
    assert "No presets yet" in at("presets", "ls").stdout
    assert at("presets", "save", "day", "-d", "by day").stdout == "Saved day: m.\n"
    listed = at("presets", "ls").stdout
    assert "day" in listed
    assert "by day" in listed
    assert "1 awake" in at("presets", "show", "day").stdout
    done = at("presets", "apply", "day")
    assert done.exit_code == 0
    assert "in place; there is nothing to do" in one_line(done.stdout)
    with served.client as client:
        client.unload("m")
        until(lambda: not client.model("m")["instances"], "the end")
    dry = at("presets", "apply", "day", "--dry-run")
    assert dry.exit_code == 0
    assert "start" in dry.stdout
    assert served.model("m")["state"] == "unloaded", "nothing was done"
    refused = at("presets", "apply", "day")
    assert refused.exit_code == 5
    assert "nothing was changed" in refused.stderr
    assert served.model("m")["state"] == "unloaded"
    done = at("presets", "apply", "day", "--yes")
    assert done.exit_code == 0, done.stderr
    assert "done start m" in one_line(done.stdout)
    assert "day is in place." in done.stdout
    assert "day is in place" in at("presets", "status").stdout
    assert at("presets", "cancel").exit_code == 5
    file = tmp_path / "day.yaml"
    assert at("presets", "export", "day", "-o", str(file)).exit_code == 0
    assert at("presets", "export", "day").stdout == file.read_text()
    assert at("presets", "import", str(file)).exit_code == 0, "the same again"
    assert at("presets", "import", "-", "--name", "copy", input=file.read_text()).stdout == "Saved copy: m.\n"
    assert at("presets", "rm", "copy").stdout == "Removed copy.\n"


def test_json_alone_on_standard_output(at: Run) -> None:
    view: dict[str, Any] = json.loads(at("presets", "save", "p", "--json").stdout)
    assert view["name"] == "p"
    assert json.loads(at("presets", "ls", "--json").stdout)["presets"][0]["models"][0]["spec"]["name"] == "m"
    assert json.loads(at("presets", "apply", "p", "--dry-run", "--json").stdout)["in_place"]
    assert json.loads(at("presets", "rm", "p", "--json").stdout) == {"removed": "p"}


def test_what_cannot_be_had_has_an_exit_code_of_its_own(at: Run, tmp_path: Path) -> None:
    spec = {"name": "nowhere", "source": "x", "engine": "simulated", "devices": ["cuda:77"]}
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump({"shoal_preset": 1, "name": "p", "models": [{"spec": spec}]}))
    assert at("presets", "import", str(file)).exit_code == 0
    done = at("presets", "apply", "p", "--dry-run", "--keep-others")
    assert done.exit_code == 5
    assert "cannot be had: nowhere: its settings name cuda:77" in one_line(done.stdout)
    assert "left running beside it: m" in one_line(done.stdout)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("shoal_preset: 1\nname: p\nmodels: 3", "models"), ("shoal_preset: 9\nname: p", "format 9"), ("{", "not YAML")],
)
def test_a_file_at_fault_is_named_with_the_place(at: Run, tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    done = at("presets", "import", str(file))
    assert done.exit_code == 1
    shown = "".join(done.stderr.split())
    assert "".join(f"{file}:".split()) in shown
    assert "".join(fault.split()) in shown


@pytest.mark.parametrize(
    ("args", "code"),
    [(("show", "nobody"), 4), (("apply", "nobody"), 4), (("rm", "nobody"), 4), (("export", "nobody"), 4),
     (("import", "/nowhere.yaml"), 1), (("save", "a/b"), 1), (("save",), 2), (("apply", "x", "--often"), 2)],
)  # fmt: skip
def test_what_is_refused(at: Run, args: tuple[str, ...], code: int) -> None:
    assert at("presets", *args).exit_code == code


def test_bytes_that_are_no_text_are_refused(at: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in at("presets", "import", str(file)).stderr


def test_a_schedule_from_its_first_day_to_its_last(at: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No preset is scheduled" in one_line(at("presets", "schedules").stdout)
    at("presets", "save", "day")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    made = at("presets", "schedule", "day", "0 8 29 2 1-5", "--keep-others")
    assert made.exit_code == 0, made.stderr
    assert "day is applied" in one_line(made.stdout)
    assert "Europe/Berlin" in one_line(made.stdout)
    assert "others are kept" in one_line(at("presets", "schedules").stdout)
    assert "0 8 29 2 1-5" in at("presets", "show", "day").stdout
    (listed,) = json.loads(at("presets", "schedules", "--json").stdout)["schedules"]
    assert (listed["zone"], listed["exclusive"]) == ("Europe/Berlin", False)
    bad = at("presets", "schedule", "day", "0 8 * *")
    assert bad.exit_code == 1
    assert "5 fields" in bad.stderr
    assert "no schedules left" in at("presets", "unschedule", "day", "0 8 29 2 1-5").stdout
    assert at("presets", "unschedule", "day").exit_code == 4
