"""Who runs now, who waits, and who is refused: limits and queues of all models. Pure; the clock is passed in.

As many jobs of a model run as its limit allows; the others wait, in the order that `waiting.py` describes. Holding the
requests of a model that is not ready is the same with a limit of 0.

The order alone does not help a tenant that sends little beside one that floods: its job is the next, but the slots are
full, and the next end of a job may be seconds away. So the last slots are for tenants that run less than an equal
share, counted as if one more tenant came; how many, `reserve.py` says. Such a job starts at once; the others have to
leave the reserve free, and once it is taken they start no job until it is free again. It is kept only while tenants
share the model, which is for `KEPT` seconds after a job followed one of another tenant, or found no open slot while
one of another ran: who is alone has all slots. A class goes before the next also here: while a job waits, none of a
lower class starts. One that is overdue takes any slot. But for that no slot stays free while a job waits for it; where
time alone, or a job that leaves, makes a slot free for a job, `settle` starts it.

A queue has at most `queue_length` jobs a model. When it is full its places are shared equally: a job whose tenant has
at least two fewer waiting than the tenant with the most takes the place of that tenant's newest, and one of a higher
class that of its own tenant's newest in a lower class (`take_evicted`); otherwise it is refused. So a tenant that
floods is refused its own requests, not those of others.

How long a queue takes is estimated from the jobs that ended: with `limit` of them running, one ends every
`mean / limit` seconds, where `mean` is how long they ran, exponentially weighted (J. Little, A proof for the queuing
formula L = λW, Operations Research 1961). Unlike a count of ends a second, it does not sink while there is little to
do. If none has ended for longer than that, it is taken to be that slow.

A job that neither limit nor queue stops costs a few dictionary look-ups. Nothing is kept of tenants that have nothing
waiting or running, but for one name a model, nor of models that have no limit and nothing waiting or running.
"""

from __future__ import annotations

import heapq
import math

from shoal.errors import ShoalError

from .slots import KEPT, Slots
from .waiting import Job, Waiting

__all__ = ["Admission", "Job"]

SMALLEST, LARGEST = 1e-6, 1e9
"""What costs and weights may be."""
RETRY_LONGEST = 600
"""Seconds of the longest `Retry-After`."""
RETRY_UNKNOWN = 10
"""Seconds of `Retry-After` while nothing is known of how fast the queue moves."""


class Admission:
    """Limits and queues of all models. Times are seconds of one clock of the caller's, which never goes back."""

    def __init__(self, *, queue_length: int = 1000, age_bound: float = 30.0, reserve: float = 0.0) -> None:
        """`queue_length`: jobs that may wait for a model. `age_bound`: see `waiting.py`. `reserve`: the part of the
        slots that is kept at least for tenants below their share, and at least one of four or more slots;
        0: none.

        Raises ValueError if the length is negative, the bound not positive, or the part not between 0 and 0.5.
        """
        if queue_length < 0:
            raise ValueError(f"queue_length has to be 0 or more, not {queue_length}")
        if not age_bound > 0:
            raise ValueError(f"age_bound has to be more than 0, not {age_bound}")
        if not 0 <= reserve <= 0.5:
            raise ValueError(f"reserve has to be 0 to 0.5, not {reserve}")
        self._queue_length = queue_length
        self._age_bound = age_bound
        self._reserve = reserve
        self._models: dict[str, Slots] = {}
        self._waiting = 0
        self._tickets = 0
        self._deadlines: list[tuple[float, int, Job]] = []  # a heap; has jobs that wait no more, too
        self._evicted: list[Job] = []

    def submit(self, job: Job, now: float) -> bool:
        """True: `job` runs now. False: it waits, and another call will return it when it runs.

        Look at `take_evicted` after a False. Raises ShoalError 429 `queue_full` with `Retry-After`; ValueError for a
        job that waits or runs already, or whose cost or weight is not between `SMALLEST` and `LARGEST`.
        """
        if job.state == "running" or job.state == "waiting":
            raise ValueError(f"the job is {job.state} already")
        if not (SMALLEST <= job.cost <= LARGEST and SMALLEST <= job.weight <= LARGEST):
            raise ValueError(f"a cost of {job.cost} and a weight of {job.weight} are out of range")
        model = self._models.get(job.model)
        if model is None:
            model = self._models[job.model] = Slots()
        job.submitted = now
        if job.tenant != model.tenant:
            if model.tenant is not None:
                model.kept_until = now + KEPT
            model.tenant = job.tenant
        if model.running < model.open:
            model.begin(job, now)
            return True
        model.weigh(job.tenant, now)
        if model.running < model.limit and self._takes_reserve(job, model, now):
            model.begin(job, now)
            return True
        self._wait(job, model, now)
        return False

    def done(self, job: Job, now: float) -> list[Job]:
        """A running job ended: the jobs that run now in its place, in order. No effect on a job that does not run."""
        if job.state != "running":
            return []
        model = self._models[job.model]
        model.end(job, now)
        if model.waiting is not None:
            return self._start(job.model, model, now)
        if not model.running and model.limit == math.inf:
            del self._models[job.model]
        return []

    def leave(self, job: Job) -> None:
        """A waiting job's client has gone: its place is free at once. No effect on a job that does not wait."""
        if job.state == "waiting":
            self._take_out(job)

    def limit(self, model: str, limit: int | None, now: float) -> list[Job]:
        """How many jobs of `model` may run at once; None: no limit, 0: none. Returns those that run now, in order.

        A limit below what runs stops nobody. Raises ValueError for a negative limit.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"a limit has to be 0 or more, or None, not {limit}")
        books = self._models.get(model)
        if books is None:
            if limit is None:
                return []
            books = self._models[model] = Slots()
        books.limit = math.inf if limit is None else limit
        books.reserve.resize(books.limit, self._reserve)
        books.open = books.limit - books.reserve.kept
        if books.waiting is None:
            self._tidy(model, books)
            return []
        if limit == 0:
            books.waiting.stop(now)
            return []
        books.waiting.resume(now)
        return self._start(model, books, now)

    def settle(self, now: float) -> list[Job]:
        """To be called now and then: the jobs that run now because time has passed, or because others left."""
        started = []
        for name, books in list(self._models.items()):
            if books.waiting is not None and books.running < books.limit:
                started += self._start(name, books, now)
        return started

    def expired(self, now: float) -> list[Job]:
        """Waiting jobs whose deadline has come, the earliest first; they wait no longer."""
        result = []
        heap = self._deadlines
        while heap and heap[0][0] <= now:
            _, ticket, job = heapq.heappop(heap)
            if job.ticket == ticket and job.state == "waiting":
                self._take_out(job)
                result.append(job)
        return result

    def drop(self, model: str) -> list[Job]:
        """`model` is gone: its waiting jobs, taken out, in order. Its limit is forgotten; what runs goes on."""
        jobs = self.order(model)
        books = self._models.get(model)
        if books is not None:
            for job in jobs:
                job.state = "ended"
            self._waiting -= len(jobs)
            books.waiting = None
            books.limit = books.open = math.inf
            books.reserve.resize(math.inf, 0)
            self._tidy(model, books)
            self._sweep()
        return jobs

    def take_evicted(self) -> list[Job]:
        """Jobs that had to give up their places since the last call; they wait no longer (see `refusal`)."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def refusal(self, model: str, now: float, *, others: int = 0) -> ShoalError:
        """What to tell a client whose job found the queue full, or had to leave it. `others` wait elsewhere."""
        seconds = self.estimate(model, now)
        retry = RETRY_UNKNOWN if seconds is None else max(1, math.ceil(min(seconds, RETRY_LONGEST)))
        count = self.waiting(model) + others
        return ShoalError(
            f"Too many requests wait for the model {model!r} ({count}). Try again in {retry} seconds.",
            status=429,
            code="queue_full",
            headers={"Retry-After": str(retry)},
        )

    def order(self, model: str) -> list[Job]:
        """The waiting jobs in the order in which they would start if no other came. O(n log n), for listings."""
        books = self._models.get(model)
        return [] if books is None or books.waiting is None else list(books.waiting.order())

    def position(self, job: Job) -> int:
        """The place of a waiting job in `order`, from 1; 0 if it does not wait. For many jobs ask for `order`."""
        return self.order(job.model).index(job) + 1 if job.state == "waiting" else 0

    def estimate(self, model: str, now: float) -> float | None:
        """Seconds until a job that is submitted now and goes last would run; None if that is unknown."""
        books = self._models.get(model)
        if books is None:
            return 0.0
        slots = books.startable(now)
        if books.waiting is None and books.running < slots:
            return 0.0
        if not slots or not books.ended:
            return None
        interval = books.mean / slots
        if books.waiting is not None:
            interval = max(interval, now - max(books.last_end, books.full_since))
        return interval * max(1, self.waiting(model) + 1 + books.running - slots)

    def waiting(self, model: str) -> int:
        """How many jobs wait for `model`."""
        books = self._models.get(model)
        return 0 if books is None or books.waiting is None else len(books.waiting)

    def running(self, model: str) -> int:
        """How many jobs of `model` run."""
        books = self._models.get(model)
        return 0 if books is None else books.running

    def waiting_models(self) -> list[str]:
        """The models that jobs wait for."""
        return [name for name, books in self._models.items() if books.waiting is not None]

    def _takes_reserve(self, job: Job, books: Slots, now: float) -> bool:
        """Whether `job` may start in a slot that is free but not open to all; it is charged for it if others wait."""
        if books.running >= books.startable(now) and not books.below_share(job.tenant):
            return False
        waiting = books.waiting
        if waiting is None:
            return True
        waiting.advance(now)
        waiting.push(job)
        if waiting.is_next(job, books.below_share):
            waiting.pop_of(books.below_share)
            return True
        waiting.remove(job)
        return False

    def _wait(self, job: Job, books: Slots, now: float) -> None:
        waiting = books.waiting
        if waiting is not None:
            waiting.advance(now)
            if len(waiting) >= self._queue_length:
                other = waiting.gives_way(job)
                if other is None:
                    raise self.refusal(job.model, now)
                waiting.push(job)
                self._take_out(other)
                self._evicted.append(other)
            else:
                waiting.push(job)
        else:
            if not self._queue_length:
                raise self.refusal(job.model, now)
            waiting = Waiting(self._age_bound, now)
            if books.last is not None:
                waiting.follows(books.last)
            waiting.push(job)
            if not books.limit:
                waiting.stop(now)
            books.waiting = waiting
            books.full_since = now
        job.state = "waiting"
        self._waiting += 1
        self._tickets += 1
        job.ticket = self._tickets
        if job.deadline < math.inf:
            heapq.heappush(self._deadlines, (job.deadline, job.ticket, job))
            self._sweep()

    def _start(self, name: str, books: Slots, now: float) -> list[Job]:
        """Start waiting jobs while slots are free for them."""
        waiting = books.waiting
        assert waiting is not None
        waiting.advance(now)
        started = []
        slots = books.startable(now)
        while books.running < books.limit and waiting:
            job = waiting.pop() if books.running < slots else waiting.pop_of(books.below_share)
            if job is None:
                break
            books.begin(job, now)
            started.append(job)
        self._waiting -= len(started)
        if not waiting:
            books.waiting = None
            self._tidy(name, books)
        self._sweep()
        return started

    def _take_out(self, job: Job) -> None:
        """`job` waits no longer."""
        books = self._models[job.model]
        waiting = books.waiting
        assert waiting is not None
        waiting.remove(job)
        job.state = "ended"
        self._waiting -= 1
        if not waiting:
            books.waiting = None
            self._tidy(job.model, books)
        self._sweep()

    def _tidy(self, name: str, books: Slots) -> None:
        """Forget a model that nothing has to be kept of."""
        if not books.running and books.waiting is None and books.limit == math.inf:
            del self._models[name]

    def _sweep(self) -> None:
        """Keep the heap of deadlines, and what hangs on it, no larger than the jobs that wait call for."""
        heap = self._deadlines
        if not self._waiting:
            heap.clear()
        elif len(heap) > 2 * self._waiting + 64:
            heap[:] = [entry for entry in heap if entry[2].ticket == entry[1] and entry[2].state == "waiting"]
            heapq.heapify(heap)
