"""Sessions of those who signed in. Pure; clock and randomness come from outside.

What the browser has is 256 random bits; what is kept is their SHA-256, for the reasons that `keys.py` gives.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

TOKEN_BYTES = 32
IDLE = 12 * 3600.0
"""Seconds without a request after which a session has ended."""
LONGEST = 7 * 86_400.0
"""Seconds after which it has ended in any case."""
AHEAD = 300.0
"""Seconds that its times may lie ahead of the clock, which is set now and then. One whose times lie further ahead began
while the clock was wrong: it has ended, as its end by the right clock is not known."""
NOTED = 60.0
"""Seconds between two notes of its use: not each request is to be written down."""
MOST = 32
"""Sessions of one user; with one more, that which was used longest ago ends."""


@dataclass(frozen=True, slots=True)
class Session:
    """One browser of one user. `id` is the token's digest. Times are Unix seconds."""

    id: str
    user: str
    created_at: float
    seen_at: float

    def over(self, now: float) -> bool:
        """Whether it has ended by time."""
        ages = now - self.created_at, now - self.seen_at
        return ages[0] >= LONGEST or ages[1] >= IDLE or min(ages) < -AHEAD


class SessionBook:
    """The sessions, by id. What ends is returned, to be forgotten in the store too."""

    def __init__(self, records: Iterable[Session] = ()) -> None:
        self.records: dict[str, Session] = {record.id: record for record in records}

    def start(self, token: str, user: str, now: float) -> tuple[Session, list[Session]]:
        """Begin one; and those that end for it."""
        theirs = sorted((one for one in self.records.values() if one.user == user), key=lambda one: one.seen_at)
        ended = [self.records.pop(one.id) for one in theirs[: max(0, len(theirs) + 1 - MOST)]]
        session = Session(digest_of(token), user, now, now)
        self.records[session.id] = session
        return session, ended

    def find(self, token: str, now: float) -> Session | None:
        """The session of a token, if it goes on."""
        session = self.records.get(digest_of(token))
        return None if session is None or session.over(now) else session

    def note(self, session: Session, now: float) -> Session | None:
        """Note that it is used; the record to store, if it is time for that."""
        if now - session.seen_at < NOTED or session.id not in self.records:
            return None
        noted = self.records[session.id] = dataclasses.replace(session, seen_at=now)
        return noted

    def end(self, id: str) -> Session | None:
        """End one."""
        return self.records.pop(id, None)

    def end_of(self, user: str) -> list[Session]:
        """End all of a user's."""
        return [self.records.pop(one.id) for one in list(self.records.values()) if one.user == user]

    def sweep(self, now: float, users: Iterable[str]) -> list[Session]:
        """End those that are over, and those of nobody."""
        known = set(users)
        over = [one for one in self.records.values() if one.over(now) or one.user not in known]
        return [self.records.pop(one.id) for one in over]


def digest_of(token: str) -> str:
    """What is kept of a token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
