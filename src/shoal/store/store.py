"""The store as the control plane sees it: saving never blocks and never raises, and says what could not be saved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shoal.fleet.keys import KeyRecord
from shoal.fleet.moves import Move
from shoal.fleet.presets import PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.sessions import Session
from shoal.fleet.state import Instance, Model
from shoal.fleet.users import User
from shoal.fleet.virtual import Virtual
from shoal.messages import UsageReport
from shoal.store.errors import StoreError
from shoal.store.pending import Batch, Change, Key, Pending
from shoal.store.saved import Saved
from shoal.store.usage import Query, UsageSum
from shoal.store.worker import Worker

if TYPE_CHECKING:
    from shoal.store.database import Database

log = logging.getLogger(__name__)

RETRY_FIRST = 1.0
RETRY_MOST = 30.0
PENDING_MOST = 10_000

T = TypeVar("T")
OnProblem = Callable[[str | None], None]


class Store:
    """One database: SQLite at the file `path`, or the one that `url` names.

    Every call belongs to the event loop that `open` ran in; the database is used in one thread of its own. Saving
    returns at once; what cannot be written stays in memory and is tried again after 1 s, 2 s, … 30 s. At most
    `history` ended instances, about `events_kept` events and usage of `usage_kept` days are kept. `on_problem` hears
    each new `problem`.
    """

    def __init__(
        self,
        url: str | None,
        path: Path,
        *,
        history: int,
        events_kept: int,
        usage_kept: int,
        on_problem: OnProblem | None = None,
    ) -> None:
        self._url = url
        self._path = path
        self._history = history
        self._events_kept = events_kept
        self._usage_kept = usage_kept
        self.on_problem = on_problem
        self._problem: str | None = None
        self._pending = Pending(PENDING_MOST)
        self._writing: Batch | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: Worker | None = None
        self._database: Database | None = None
        self._next: asyncio.Handle | None = None  # the write that is due, now or after a failure
        self._delay = RETRY_FIRST
        self._lost = 0
        self._waiting: list[asyncio.Future[bool]] = []  # for what is pending
        self._written_for: list[asyncio.Future[bool]] = []  # for what is being written

    @property
    def problem(self) -> str | None:
        """What could not be saved and why, in a sentence or two; None while all is well."""
        return self._problem

    @property
    def unsaved(self) -> int:
        """Changes that are not in the database yet."""
        return len(self._pending) + (0 if self._writing is None else len(self._writing))

    @property
    def dropped(self) -> int:
        """Changes given up since the start: too many waited, or the database refused them for good."""
        return self._pending.dropped + self._lost

    async def open(self) -> None:
        """Make or open the database and bring its schema up to date.

        A SQLite file that cannot be written is opened for reading, or left alone; `problem` says so, and saving is
        tried again. Raises StoreError if a newer Shoal or another program made the database, if `url` cannot
        be used, or if its server does not answer.
        """
        self._loop = asyncio.get_running_loop()
        self._worker = Worker("shoal-store", self._loop)
        try:
            self._database, problem = await self._worker.call(self._open_database)
        except BaseException:
            self._stop_worker()
            raise
        self._set_problem(problem)
        if problem is not None:
            self._next = self._loop.call_later(self._delay, self._write)
        elif self._pending:
            self._write_soon()

    async def load(self) -> Saved:
        """What the database holds, for a start. Raises StoreError if it cannot be read."""
        return await self._call(lambda database: database.load())

    async def events(
        self,
        limit: int = 100,
        before: int | None = None,
        model: str | None = None,
        *,
        kinds: Collection[str] = (),
        since: float | None = None,
    ) -> list[Event]:
        """The newest `limit` events, newest last; only those with an id below `before`, of `model`, of one of `kinds`
        and from `since` (Unix seconds) on, as far as these are given.

        Events that are not saved yet are among them, with no id, unless `before` is given. Raises StoreError.
        """

        def fits(event: Event) -> bool:
            late = since is None or event.at >= since
            return late and model in (None, event.model) and (not kinds or event.kind in kinds)

        def with_unsaved(saved: list[Event]) -> list[Event]:
            unsaved = self._unsaved().events if before is None else []
            return _last(limit, saved, [event for event in unsaved if fits(event)])

        return await self._call(
            lambda database: database.events(limit, before, model, kinds, since), finish=with_unsaved
        )

    async def loads(self, model: str | None = None, limit: int = 100) -> list[LoadRecord]:
        """The newest `limit` loads, of `model` if given, newest last; those not saved yet too. Raises StoreError."""

        def with_unsaved(saved: list[LoadRecord]) -> list[LoadRecord]:
            return _last(limit, saved, [load for load in self._unsaved().loads if model in (None, load.model)])

        return await self._call(lambda database: database.loads(limit, model), finish=with_unsaved)

    def save_model(self, model: Model) -> None:
        """Keep a model's newest version."""
        self._put(("model", model.spec.name), model)

    def delete_model(self, name: str) -> None:
        """Forget a model. Its instances, loads and events stay."""
        self._put(("model", name), None)

    def save_instance(self, instance: Instance) -> None:
        """Keep an instance's newest version."""
        self._put(("instance", instance.id), instance)

    def delete_instance(self, id: str) -> None:
        """Forget an instance."""
        self._put(("instance", id), None)

    def save_key(self, key: KeyRecord) -> None:
        """Keep an API key's newest version."""
        self._put(("key", key.id), key)

    def save_virtual(self, virtual: Virtual) -> None:
        """Keep a virtual model's newest version."""
        self._put(("virtual", virtual.spec.name), virtual)

    def delete_virtual(self, name: str) -> None:
        """Forget a virtual model."""
        self._put(("virtual", name), None)

    def save_profile(self, profile: Profile) -> None:
        """Keep a profile's newest version."""
        self._put(("profile", profile.id), profile)

    def save_preset(self, record: PresetRecord) -> None:
        """Keep a preset's newest version."""
        self._put(("preset", record.preset.name), record)

    def delete_preset(self, name: str) -> None:
        """Forget a preset."""
        self._put(("preset", name), None)

    def save_move(self, move: Move) -> None:
        """Keep a move's newest version."""
        self._put(("move", move.id), move)

    def delete_move(self, id: str) -> None:
        """Forget a move."""
        self._put(("move", id), None)

    def save_user(self, user: User) -> None:
        """Keep a user's newest version."""
        self._put(("user", user.name), user)

    def delete_user(self, name: str) -> None:
        """Forget a user."""
        self._put(("user", name), None)

    def save_session(self, session: Session) -> None:
        """Keep a session's newest version."""
        self._put(("session", session.id), session)

    def delete_session(self, id: str) -> None:
        """Forget a session."""
        self._put(("session", id), None)

    async def add_usage(self, report: UsageReport, now: float) -> None:
        """Count a relay's report of usage, and return once it is safe; one that was counted before changes nothing.

        Unlike all that is saved above it does not wait here: the relay keeps it until then. Raises StoreError if it
        cannot be saved now.
        """
        await self._call(lambda database: database.add_usage(report, now), "written")

    async def usage(self, query: Query) -> list[UsageSum]:
        """What was used, as `query` asks. Raises StoreError."""
        return await self._call(lambda database: database.usage(query), "read")

    def add_event(self, event: Event) -> None:
        """Append an event."""
        self._pending.add_event(event)
        self._write_soon()

    def add_load(self, load: LoadRecord) -> None:
        """Append a load."""
        self._pending.add_load(load)
        self._write_soon()

    async def flush(self, timeout: float) -> bool:
        """Try to save everything that is pending now. True once it is saved, False if that failed or took too long."""
        if self._worker is None:
            return not self.unsaved
        if self._pending:
            waiters = self._waiting
            self._cancel_next()
            if self._writing is None:
                waiters = self._written_for
                self._write()
        elif self._writing is not None:
            waiters = self._written_for
        else:
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiters.append(future)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            return False

    async def close(self, timeout: float = 5.0) -> None:
        """Save what can be saved within `timeout` seconds and let go of the database. What comes later is not saved."""
        worker, database = self._worker, self._database
        if worker is None or database is None:
            return
        if not await self.flush(timeout):
            log.error("%d changes are lost: %s", self.unsaved, self._problem or "the database did not answer in time")
        self._cancel_next()
        self._database = None
        try:
            async with asyncio.timeout(timeout):
                await worker.call(database.close)
        except TimeoutError:
            log.warning("the database did not close in time; its next start repairs what is open")
        self._stop_worker()

    def _open_database(self) -> tuple[Database, str | None]:
        from shoal.store.connect import find_target
        from shoal.store.database import Database

        target = find_target(self._url, self._path)
        database = Database(target, history=self._history, events_kept=self._events_kept, usage_kept=self._usage_kept)
        return database, database.open()

    def _put(self, key: Key, change: Change) -> None:
        self._pending.put(key, change)
        self._write_soon()

    def _write_soon(self) -> None:
        """Write in this loop's next turn, so that what is saved together is written together."""
        if self._loop is not None and self._database is not None and self._next is None and self._writing is None:
            self._next = self._loop.call_soon(self._write)

    def _write(self) -> None:
        self._next = None
        worker, database = self._worker, self._database
        if worker is None or database is None or self._writing is not None:
            return
        self._writing = self._pending.take()
        self._written_for += self._waiting
        self._waiting = []
        worker.submit(partial(database.write, self._writing), self._written)

    def _written(self, refused: list[str] | None, error: Exception | None) -> None:
        batch, waiters = self._writing, self._written_for
        assert batch is not None
        self._writing, self._written_for = None, []
        if error is not None:
            waiters += self._waiting
            self._waiting = []
            self._failed(batch, error)
        else:
            self._delay = RETRY_FIRST
            self._lost += len(refused or ())
            self._set_problem(f"The database refused {'; '.join(refused)}." if refused else None)
            if self._pending:
                self._write()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(error is None and not refused)

    def _failed(self, batch: Batch, error: Exception) -> None:
        from shoal.store.faults import why

        self._pending.put_back(batch)
        kinds = self._pending.peek().kinds()
        if kinds and self._database is not None:
            what = " and ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]])).capitalize()
            target = self._database.target
            because = why(error, target.file)
            self._set_problem(
                f"{what} could not be saved in {target.label}: {because}. Shoal goes on and keeps trying."
            )
        if self._loop is not None and self._database is not None:
            self._next = self._loop.call_later(self._delay, self._write)
            self._delay = min(RETRY_MOST, self._delay * 2)

    def _set_problem(self, problem: str | None) -> None:
        if problem == self._problem:
            return
        self._problem = problem
        if problem is None:
            log.info("everything is saved again")
        else:
            log.warning(problem)
        if self.on_problem is not None and self._loop is not None:
            self._loop.call_soon(self.on_problem, problem)

    def _unsaved(self) -> Batch:
        batch = self._pending.peek()
        if self._writing is None:
            return batch
        return Batch(events=self._writing.events + batch.events, loads=self._writing.loads + batch.loads)

    async def _call(
        self, call: Callable[[Database], T], done: str = "read", finish: Callable[[T], T] | None = None
    ) -> T:
        from sqlalchemy.exc import SQLAlchemyError

        from shoal.store.faults import why

        worker, database = self._worker, self._database
        if worker is None or database is None:
            raise StoreError("the store is not open; this is a fault of Shoal, please report it")
        try:
            return await worker.call(partial(call, database), finish)
        except (OSError, SQLAlchemyError) as error:
            because = why(error, database.target.file)
            raise StoreError(f"{database.target.label} cannot be {done}: {because}") from None

    def _cancel_next(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def _last(limit: int, saved: list[T], unsaved: list[T]) -> list[T]:
    both = saved + unsaved
    return both[len(both) - limit :] if len(both) > limit else both
