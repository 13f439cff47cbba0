"""An admin API over a fleet that is only pretended, with the real engines' estimates."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
from fastapi import FastAPI

from shoal.api.app import make_app
from shoal.engines.environments import Environments
from shoal.engines.simulated.adapter import SimulatedEngine
from shoal.engines.vllm.adapter import VllmEngine
from shoal.settings import Settings
from tests.engines.checkpoints import safetensors
from tests.fleet.fakes import GIB, HOST, World, gpu

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def llama(folder: Path, **changes: Any) -> Path:
    """A folder that looks like Llama-3.1-8B."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    safetensors(folder / "model.safetensors", BF16=15 * GIB)
    return folder


def world(free: int = 60) -> World:
    """Two GPUs, of which the first has so many GiB free, and the host."""
    return World(gpu(0, free * GIB), gpu(1, 2 * GIB), HOST)


def app(fleet: World, folder: Path) -> FastAPI:
    """The admin API; engine environments would be in `folder`."""
    engines = {"simulated": SimulatedEngine(), "vllm": VllmEngine(Environments(folder / "engines"))}
    controller = SimpleNamespace(
        settings=Settings(), store=SimpleNamespace(problem=None), manager=fleet.manager, engines=engines
    )
    return make_app(cast("Any", controller))


class Bridge(httpx2.BaseTransport):
    """Has the blocking client talk to an application in this process."""

    def __init__(self, application: FastAPI) -> None:
        self._application = application

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        async def ask() -> httpx2.Response:
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(self._application)) as client:
                sent = {"content-type": request.headers.get("content-type", "")}
                return await client.request(request.method, str(request.url), content=request.read(), headers=sent)

        found = asyncio.run(ask())
        return httpx2.Response(found.status_code, content=found.content, headers={"content-type": "application/json"})
