"""How a process of Shoal's learns that it is to end."""

from __future__ import annotations

import asyncio
import signal


def asked_to_end() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on, instead of ending the process. For the main thread's loop."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked
