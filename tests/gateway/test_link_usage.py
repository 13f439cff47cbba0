"""What was used is told to the controller until it is stored: once, and also at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shoal.gateway import link as link_module
from shoal.gateway.link import Link
from shoal.messages import (
    Usage,
    UsageReport,
    UsageStored,
)
from tests.gateway.harness import PATIENCE, table
from tests.gateway.linked import ROUTE, Controller, linked


def usage(tokens: int = 1, model: str = "m") -> Usage:
    return Usage("k", model, "2026-01-31", 1, 10 * tokens, tokens, float(tokens))


def use(link: Link, used: Usage) -> None:
    link.used((used.key, used.model, used.day), used.prompt_tokens, used.completion_tokens, used.last_used)


async def test_usage_is_sent_until_it_is_stored_and_what_comes_meanwhile_is_added_up(
    controller: Controller, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "USAGE_RETRY", 0.05)
    monkeypatch.setattr(link_module, "USAGE_INTERVAL", 0.0)
    async with linked(folder) as link:
        use(link, usage(1))
        await controller.start()
        await controller.accept()
        await controller.send(table(ROUTE))
        first = await controller.until(UsageReport)
        assert first == UsageReport(link.name, 1, (usage(1),))
        use(link, usage(1))
        use(link, usage(2))
        use(link, usage(4, "n"))
        assert await controller.until(UsageReport) == first, "not confirmed, so it is sent again, and nothing else"
        await controller.send(UsageStored(99))
        assert await controller.until(UsageReport) == first
        await controller.stop()
        await controller.start()
        await controller.accept()
        await controller.send(table(ROUTE, epoch="e2"))
        assert await controller.until(UsageReport) == first
        await controller.send(UsageStored(1))
        second = await controller.until(UsageReport)
        while second == first:  # sent once more before the confirmation came
            second = await controller.until(UsageReport)
        assert second == UsageReport(link.name, 2, (Usage("k", "m", "2026-01-31", 2, 30, 3, 2.0), usage(4, "n")))
        assert not await link.flush(0.01)
        await controller.send(UsageStored(2))
        assert await link.flush(PATIENCE)


async def test_at_the_end_usage_is_sent_without_a_pause(
    controller: Controller, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "USAGE_INTERVAL", 10 * PATIENCE)
    async with linked(folder) as link:
        assert await link.flush(0), "there is none"
        await controller.start()
        await controller.accept()
        await controller.send(table(ROUTE))
        use(link, usage(1))
        assert (await controller.until(UsageReport)).items == (usage(1),)
        use(link, usage(2))
        ending = asyncio.create_task(link.flush(PATIENCE))
        await controller.send(UsageStored(1))
        assert (await controller.until(UsageReport)).items == (usage(2),)
        await controller.send(UsageStored(2))
        assert await ending


async def test_at_the_end_a_controller_that_was_there_is_waited_for(controller: Controller, folder: Path) -> None:
    async with linked(folder) as link:
        use(link, usage(1))
        assert not await link.flush(10 * PATIENCE), "there never was one"
        await controller.start()
        await controller.accept()
        await controller.send(table(ROUTE))
        await controller.until(UsageReport)
        await controller.stop()
        ending = asyncio.create_task(link.flush(PATIENCE))
        await controller.start()
        await controller.accept()
        await controller.send(table(ROUTE))
        report = await controller.until(UsageReport)
        assert (report.seq, report.items) == (1, (usage(1),))
        await controller.send(UsageStored(1))
        assert await ending
