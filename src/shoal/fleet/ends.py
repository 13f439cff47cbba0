"""An engine ends once it is written down that it is to end.

A controller that is killed in between leaves the next one with an engine that has gone and a store which says that it
serves: it would take that for a crash, and start the engine again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class Groups(Protocol):
    """What is asked of `shoal.fleet.processes.Processes`."""

    def group(self, instance: str) -> int | None:
        """The pid of the instance's group, or None if none runs."""


async def end_once_saved(
    groups: Groups, instance: str, end: Callable[[str], bool], flush: Callable[[], Awaitable[bool]]
) -> None:
    """Call `end` for the instance's group as soon as `flush` has returned, whatever it says: a database that is away
    must not keep an engine running. A group that was started in its place meanwhile is another one."""
    group = groups.group(instance)
    await flush()
    if group is not None and groups.group(instance) == group:
        end(instance)
