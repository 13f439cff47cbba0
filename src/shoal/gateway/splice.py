"""Changing a large JSON body by what was seen of it while it came, without reading it again. Pure.

The rest of the body is copied as it is, which takes a fraction of a millisecond for each megabyte; to read it in one go
takes some, and everybody else waits for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from shoal.gateway.skim import MAX_KEY, Member, Skimmer
from shoal.gateway.virtual import CHAT, MESSAGES, SYSTEM_ROLES, changes
from shoal.messages import VirtualModel

LISTED = frozenset({"messages", "input"})
"""The lists of which a `Skimmer` has to tell where objects begin."""
_ROLE = re.compile(rb'\{[ \t\r\n]*"role"[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')
_EMPTY = re.compile(rb"\[[ \t\r\n]*\]")


def splice(
    body: bytes | bytearray,
    seen: Skimmer,
    changed: Mapping[str, bytes | None],
    inserted: tuple[int, bytes] | None = None,
) -> bytearray:
    """A JSON object with some fields `changed`: to another value, or taken out (None). The others stay as they came,
    and in this order; what is changed or new comes after them. `inserted`: bytes that go before another one, within a
    value that stays. `seen` has read all of the body."""
    view = memoryview(body)
    parts: list[bytes | memoryview] = []
    runs: list[tuple[int, int]] = []  # of fields that stay
    unbroken = False
    for member in seen.members:
        if member.name in changed:
            unbroken = False
            continue
        if unbroken:
            runs[-1] = runs[-1][0], member.end
        else:
            runs.append((member.begin, member.end))
        unbroken = True
    for begin, end in runs:
        parts.append(b"," if parts else b"{")
        if inserted is not None and begin <= inserted[0] < end:
            parts += (view[begin : inserted[0]], inserted[1])
            begin = inserted[0]
        parts.append(view[begin:end])
    for name, value in changed.items():
        if value is not None:
            parts += (b"," if parts else b"{", msgspec.json.encode(name), b":", value)
    return bytearray().join((*(parts or [b"{"]), b"}"))


def rewrite_large(
    body: bytes | bytearray, seen: Skimmer, virtual: VirtualModel | None, model: str, path: str
) -> bytearray | None:
    """`virtual.rewrite` of a large body. None if what was seen is not enough for that."""
    last = {member.name: member for member in seen.members}
    changed = changes(virtual, model, [name for name in last if name is not None])
    if None in last and any(len(name) > MAX_KEY // 6 for name in changed):  # a character takes 6 bytes at most
        return None
    inserted = None
    if virtual is not None and virtual.system is not None:
        text = msgspec.json.encode(virtual.system)
        if any(name in changed for name in (*LISTED, "system", "instructions")):
            return None
        if path in CHAT:
            messages = last.get("messages")
            if messages is not None and body[messages.value : messages.value + 1] == b"[":
                roles = _roles(body, seen, "messages")
                if roles is None:
                    return None
                if not roles & SYSTEM_ROLES:
                    comma = b"" if _EMPTY.match(body, messages.value) else b","
                    inserted = messages.value + 1, b'{"role":"system","content":%b}%b' % (text, comma)
        elif path in MESSAGES:
            if _is_missing(body, last.get("system")):
                changed["system"] = text
        elif path == "/v1/responses" and _is_missing(body, last.get("instructions")):
            roles = _roles(body, seen, "input")
            if roles is None:
                return None
            if not roles & SYSTEM_ROLES:
                changed["instructions"] = text
    return splice(body, seen, changed, inserted)


def _roles(body: bytes | bytearray, seen: Skimmer, name: str) -> set[bytes] | None:
    """Who speaks in the messages of a list, as JSON; None if one does not begin with that, or may say it again
    further on, where the last counts."""
    found = [_ROLE.match(body, at) for at in seen.objects.get(name, ())]
    if None in found or seen.roles.get(name, 0) > len(found):
        return None
    return {match[1] for match in found if match is not None}


def _is_missing(body: bytes | bytearray, member: Member | None) -> bool:
    return member is None or bytes(body[member.value : member.end]).strip() == b"null"
