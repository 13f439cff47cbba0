"""What an engine is told of a trace."""

from __future__ import annotations

import re

from tests.gateway.harness import Message


def told(message: Message) -> tuple[str, str, bool]:
    """Trace and parent that an engine was told, and whether they are recorded."""
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", message.get("traceparent") or "")
    assert match is not None, message.headers
    return match[1], match[2], bool(int(match[3], 16) & 1)
