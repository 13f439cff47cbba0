"""The engines that Shoal knows."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.engines.base import Engine
from shoal.settings import Settings


def engines(settings: Settings) -> Mapping[str, Engine]:
    """Every engine by its kind. Imported here, so that commands that run none start fast."""
    from shoal.engines.environments import Environments
    from shoal.engines.simulated.adapter import SimulatedEngine
    from shoal.engines.vllm.adapter import VllmEngine
    from shoal.paths import find_paths

    vllm = VllmEngine(Environments(settings.engines_dir), find_paths(settings).python_path)
    known: tuple[Engine, ...] = (vllm, SimulatedEngine())
    return {engine.kind: engine for engine in known}
