#!/usr/bin/env python3
"""Make the picture of `shoal top` for the documentation: a real `shoal serve` with simulated engines under load.

python tools/top_picture.py [FOLDER]      writes docs/images/top-80x24.svg, or into FOLDER also other sizes
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.system.harness import a_shoal  # noqa: E402
from tools.screenshots import ask, furnish  # noqa: E402

from shoal.cli.top_app import Top  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WATCHED = 30  # seconds: enough for rates of the last minute


async def watch(url: str, size: tuple[int, int]) -> str:
    """Look on for a while; what is seen last, as SVG."""
    app = Top(url)
    async with app.run_test(size=size) as pilot:
        await pilot.pause(WATCHED)
        await pilot.press("down", "down")
        await pilot.pause(1)
        picture = app.export_screenshot(title=f"shoal top, {size[0]}x{size[1]}")
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # they would be fetched from the network


async def pictures(url: str, sizes: list[tuple[int, int]]) -> list[str]:
    """All of them, at the same time."""
    return await asyncio.gather(*(watch(url, size) for size in sizes))


def main() -> None:
    """The command."""
    folder, sizes = IMAGES, [(80, 24)]
    if len(sys.argv) > 1:
        folder, sizes = Path(sys.argv[1]), [(80, 24), (120, 34), (60, 20)]
    ended = threading.Event()
    with a_shoal(simulated_devices=["80GiB", "80GiB", "40GiB"]) as shoal:
        furnish(shoal.start())
        askers = [threading.Thread(target=ask, args=(shoal, ended, turn)) for turn in range(6)]
        for asker in askers:
            asker.start()
        try:
            made = asyncio.run(pictures(shoal.url, sizes))
        finally:
            ended.set()
            for asker in askers:
                asker.join()
        shoal.stop()
    for (width, height), picture in zip(sizes, made, strict=True):
        (folder / f"top-{width}x{height}.svg").write_text(picture)


if __name__ == "__main__":
    main()
