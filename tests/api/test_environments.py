"""`GET /api/v1/environments`: what `shoal engines ls` has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2

from shoal.api.app import make_app
from shoal.engines.environments import RECORD
from shoal.settings import Settings
from tests.api.fitting import world


async def ask(folder: Path) -> Any:
    controller = SimpleNamespace(
        settings=Settings(engines_dir=folder), store=SimpleNamespace(problem=None), manager=world().manager, engines={},
        sign_in=SimpleNamespace(needed=False),
    )  # fmt: skip
    transport = httpx2.ASGITransport(make_app(cast("Any", controller)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/api/v1/environments")
    assert answer.status_code == 200, answer.text
    return answer.json()["environments"]


async def test_none_are_installed(tmp_path: Path) -> None:
    assert await ask(tmp_path / "not made yet") == []


async def test_what_is_installed_is_listed_and_what_is_half_done_is_not(tmp_path: Path) -> None:
    record = {"name": "vllm-cpu", "kind": "vllm", "variant": "cpu", "python": "/x/bin/python", "version": "0.32",
              "managed": True}  # fmt: skip
    for name in ("vllm-cpu", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "vllm-cpu" / RECORD).write_text(json.dumps(record))
    (only,) = await ask(tmp_path)
    assert only == {"name": "vllm-cpu", "kind": "vllm", "variant": "cpu", "version": "0.32", "managed": True}
