"""Signing in to the admin side of a running Shoal: users changed by commands, passwords checked, sessions kept."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from shoal.access import new_store
from shoal.errors import ConflictError, ShoalError
from shoal.fleet.attempts import Attempts
from shoal.fleet.effects import Effects
from shoal.fleet.records import Event
from shoal.fleet.sessions import TOKEN_BYTES, Session, SessionBook
from shoal.fleet.users import (
    SALT,
    Cost,
    PasswordHash,
    Role,
    User,
    UserBook,
    check_password,
    check_user_name,
    hash_password,
    normal_name,
    too_long,
)
from shoal.paths import Paths, hold, make_runtime
from shoal.settings import Settings
from shoal.store import Saved, Store, StoreError

LOST = (
    "there may have been users that could not be read, so the admin side asks everybody to sign in; restore the "
    "database, or make users with `shoal users set NAME --role admin` on the machine that Shoal runs on"
)
THREADS = 2
"""Passwords that are checked at once; each takes 32 MiB and a core for a fraction of a second."""
WAITING = 16
"""Passwords that may wait to be checked; beyond that attempts are refused, whoever makes them."""
SWEEP = 15.0
"""Seconds between two looks for sessions that are over."""
REMEMBERED = 300.0
"""Seconds after its last use for which a password that HTTP Basic brought need not be checked by scrypt again."""
MOST_REMEMBERED = 64
TOLD = 60.0
"""Seconds between two events about attempts that were refused."""
SAVING = 30.0
"""Seconds that saving a user may take where no Shoal runs."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who is let in, and by what: `session` is None for a password that came with the request."""

    user: User
    session: Session | None = None


@dataclass(eq=False, slots=True)
class Stream:
    """An answer without end, and who listens: `user` None was not asked who they are. `ended`: they no longer may."""

    task: asyncio.Task[Any]
    user: str | None
    session: str | None
    ended: bool = False


class SignIn:
    """Users and sessions. Commands (`set_user`, `remove_user`, `start`, `end`) are called through `Controller.do`."""

    def __init__(
        self,
        store: Store,
        effects: Effects,
        fleet: str,
        *,
        cost: Cost | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fleet`: what tells this Shoal from others at the same host name, to which browsers send its cookies too.
        `cost`: of passwords that are set from now on; `clock`: seconds, for what must not follow the wall's."""
        self._cost = cost or Cost()
        self._clock = clock
        self.cookie = f"shoal_session_{hashlib.sha256(fleet.encode()).hexdigest()[:8]}"
        self.users = UserBook()
        self.sessions = SessionBook()
        self._store = store
        self._effects = effects
        self._attempts = Attempts()
        self._refused = 0
        self._told_at = -math.inf
        self._lost = False
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="shoal-scrypt")
        self._checking = 0
        self._decoy = PasswordHash("00" * SALT, "00" * 32, self._cost)
        self._secret = os.urandom(32)
        self._remembered: dict[bytes, tuple[User, float]] = {}
        self._streams: set[Stream] = set()

    @property
    def needed(self) -> bool:
        """Whether one has to sign in: there are users, or there may have been."""
        return bool(self.users.records) or self._lost

    @property
    def faults(self) -> list[str]:
        """What is not as it should be, in a sentence each."""
        return [LOST] if self._lost and not self.users.records else []

    def restore(self, saved: Saved) -> None:
        """At start: know again who may sign in, and who has."""
        self.users = UserBook(saved.users)
        self.sessions = SessionBook(saved.sessions)
        self._lost = saved.users_lost
        self._forget(self.sessions.sweep(self._effects.now(), self.users.records))

    async def run(self) -> None:
        """End sessions that are over, for ever."""
        while True:
            await asyncio.sleep(SWEEP)
            self._forget(self.sessions.sweep(self._effects.now(), self.users.records))

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- users --------------------------------------------------------------------------------------------------------

    async def hash(self, password: str) -> PasswordHash:
        """What to keep of a new password. Raises ShoalError if it cannot be one. Never refused for those that are being
        checked: who sets passwords has signed in or runs Shoal, and must get through when others flood it."""
        work = partial(hash_password, check_password(password), os.urandom(SALT), self._cost)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def set_user(self, name: str, role: Role | None, password: PasswordHash | None) -> tuple[User, bool]:
        """Make a user, or change one, whose sessions end if the password or the role is another; whether it is new."""
        before = self.users.records.get(check_user_name(name))
        first = not self.needed
        user, new = self.users.put(name, role, password, self._effects.now())
        self._store.save_user(user)
        if before is not None and (before.password, before.role) != (user.password, user.role):
            self._end_of(user.name)
        if first:  # streams that began when nobody was asked
            self._cancel(lambda stream: stream.user is None)
        self._tell(changed_event(user, "made" if new else "changed", self._effects.now()))
        return user, new

    def remove_user(self, name: str) -> User:
        """Forget a user, and end what they have open."""
        user = self.users.remove(name)
        self._store.delete_user(user.name)
        self._end_of(user.name)
        self._tell(changed_event(user, "removed", self._effects.now()))
        return user

    # -- signing in ---------------------------------------------------------------------------------------------------

    async def check(self, name: str, password: str, address: str) -> User:
        """The user with this name and password. Raises ShoalError 401, or 429 for too many attempts.

        A name that nobody has costs the same time as a wrong password. What is too long to be anybody's costs none:
        that tells nothing of who there is.
        """
        if too_long(name, password):
            raise _wrong()
        if self._checking >= THREADS + WAITING:  # before the attempt counts: it is a flood's fault, not theirs
            raise ShoalError(
                "too many passwords are being checked; try again in a moment",
                status=429,
                code="too_many_attempts",
                headers={"Retry-After": "2"},
            )
        name = normal_name(name)
        wait = self._attempts.begin(name, address, self._clock())
        if wait > 0:
            self._note_refused(name, address)
            raise ShoalError(
                f"too many attempts to sign in; try again in {math.ceil(wait)} s",
                status=429,
                code="too_many_attempts",
                headers={"Retry-After": str(math.ceil(wait))},
            )
        user = self.users.records.get(name)
        kept = self._decoy if user is None else user.password
        self._checking += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(self._threads, kept.matches, password)
        finally:
            self._checking -= 1
        if user is None or not right or self.users.records.get(user.name) is not user:
            raise _wrong()
        self._attempts.succeeded(name, address, self._clock())
        return user

    async def check_again(self, name: str, password: str, address: str) -> User:
        """As `check`, for a password that comes with every request: one that was right is remembered for a while after
        each use, by a keyed hash that nothing outside this process can compare."""
        if too_long(name, password):
            raise _wrong()
        now = self._clock()
        key = hmac.digest(self._secret, f"{name}\0{password}".encode("utf-8", "replace"), hashlib.sha256)
        user, until = self._remembered.pop(key, (None, 0.0))
        if user is None or now >= until or self.users.records.get(user.name) is not user:
            user = await self.check(name, password, address)
        while len(self._remembered) >= MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]  # that whose last use is longest ago
        self._remembered[key] = user, now + REMEMBERED
        return user

    def start(self, user: User) -> str:
        """Begin a session of a user who was just checked; its token."""
        if self.users.records.get(user.name) is not user:
            raise ConflictError(f"{user.name} was changed meanwhile; sign in again", code="user_changed")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        session, ended = self.sessions.start(token, user.name, self._effects.now())
        self._forget(ended)
        self._store.save_session(session)
        return token

    def find(self, tokens: Iterable[str]) -> Admitted | None:
        """Whose session one of these tokens is, if any; its use is noted."""
        now = self._effects.now()
        for token in tokens:
            session = self.sessions.find(token, now)
            if session is not None and (user := self.users.records.get(session.user)) is not None:
                if (noted := self.sessions.note(session, now)) is not None:
                    self._store.save_session(noted)
                return Admitted(user, session)
        return None

    def end(self, session: Session) -> None:
        """Sign out."""
        if (ended := self.sessions.end(session.id)) is not None:
            self._forget([ended])

    def open_stream(self, task: asyncio.Task[Any], admitted: Admitted | None) -> Stream:
        """`task` answers without end: it is cancelled when they may no longer listen. None: nobody was asked who they
        are. If that is so already, as something was changed since they were let in, it is cancelled at once. To be
        followed by `close_stream`."""
        user, session = (None, None) if admitted is None else (admitted.user.name, admitted.session)
        stream = Stream(task, user, None if session is None else session.id)
        self._streams.add(stream)
        if not self._still(admitted):
            self._cancel(lambda one: one is stream)
        return stream

    def close_stream(self, stream: Stream) -> None:
        """It has ended."""
        self._streams.discard(stream)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _still(self, admitted: Admitted | None) -> bool:
        """Whether who was let in would be now. None: nobody was asked who they are."""
        if admitted is None:
            return not self.needed
        session = admitted.session
        known = self.users.records.get(admitted.user.name) is admitted.user
        return known and (session is None or session.id in self.sessions.records)

    def _end_of(self, name: str) -> None:
        self._forget(self.sessions.end_of(name))
        self._cancel(lambda stream: stream.user == name)

    def _forget(self, ended: Iterable[Session]) -> None:
        ids = {session.id for session in ended}
        for id in ids:
            self._store.delete_session(id)
        self._cancel(lambda stream: stream.session in ids)

    def _cancel(self, whom: Callable[[Stream], bool]) -> None:
        for stream in [stream for stream in self._streams if whom(stream)]:
            self._streams.discard(stream)
            stream.ended = True
            stream.task.cancel()

    def _note_refused(self, name: str, address: str) -> None:
        self._refused += 1
        now = self._clock()
        if now - self._told_at < TOLD:
            return
        times = "an attempt" if self._refused == 1 else f"{self._refused} attempts"
        words = f"{times} to sign in refused, as there were too many; the last as {name[:100]!r} from {address}"
        self._refused, self._told_at = 0, now
        self._tell(Event(self._effects.now(), "warning", "sign_in_refused", words))

    def _tell(self, event: Event) -> None:
        self._effects.add_event(event)
        self._effects.publish("message", event)


def _wrong() -> ShoalError:
    return ShoalError("the name or the password is wrong", status=401, code="wrong_password")


def changed_event(user: User, what: Literal["made", "changed", "removed"], now: float) -> Event:
    """What is remembered of a change to a user: never the password."""
    return Event(now, "info", f"user_{what}", f"the user {user.name} ({user.role}) was {what}")


async def set_stored_user(
    settings: Settings, paths: Paths, name: str, role: Role | None, password: str | None
) -> tuple[User, bool]:
    """Make or change a user where no Shoal runs: in its store, for its next start; whether it is new.

    Raises ShoalError: `already_running` if one runs with these folders after all, StoreError if nothing can be saved,
    and what `UserBook.put` raises.
    """
    kept = None if password is None else hash_password(check_password(password), os.urandom(SALT))
    make_runtime(paths)
    with hold(paths):
        store = new_store(settings, paths)
        await store.open()
        try:
            saved = await store.load()
            user, new = UserBook(saved.users).put(name, role, kept, time.time())
            store.save_user(user)
            if not new:
                for session in SessionBook(saved.sessions).end_of(user.name):
                    store.delete_session(session.id)
            store.add_event(changed_event(user, "made" if new else "changed", user.changed_at))
            if not await store.flush(SAVING):
                raise StoreError(f"nothing was changed. {store.problem or 'The database did not answer in time.'}")
        finally:
            await store.close()
    return user, new
