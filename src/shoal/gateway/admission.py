"""Who runs now, who waits, and who is refused: limits and queues of all models. Pure; the clock is passed in.

As many jobs of a model run as its limit allows; the others wait, in the order that `waiting.py` describes. No slot
stays free while a job waits for it. Holding the requests of a model that is not ready is the same with a limit of 0.

A queue has at most `queue_length` jobs a model. When it is full its places are shared equally: a job whose tenant has
at least two fewer waiting than the tenant with the most takes the place of that tenant's newest, and one of a higher
class that of its own tenant's newest in a lower class (`take_evicted`); otherwise it is refused. So a tenant that
floods is refused its own requests, not those of others.

How long a queue takes is estimated from the jobs that ended: with `limit` of them running, one ends every
`mean / limit` seconds, where `mean` is how long they ran, exponentially weighted (J. Little, A proof for the queuing
formula L = λW, Operations Research 1961). Unlike a count of ends a second, it does not sink while there is little to
do. If none has ended for longer than that, it is taken to be that slow.

A job that neither limit nor queue stops costs two dictionary look-ups. Nothing is kept of tenants that have nothing
waiting, nor of models that have no limit and nothing waiting or running.
"""

from __future__ import annotations

import heapq
import math

from shoal.errors import ShoalError

from .waiting import Job, Waiting

__all__ = ["Admission", "Job"]

MEMORY = 16
"""Jobs over which the mean of how long they run is taken, exponentially weighted."""
SMALLEST, LARGEST = 1e-6, 1e9
"""What costs and weights may be."""
RETRY_LONGEST = 600
"""Seconds of the longest `Retry-After`."""
RETRY_UNKNOWN = 10
"""Seconds of `Retry-After` while nothing is known of how fast the queue moves."""


class _Model:
    """The books of one model."""

    __slots__ = ("ended", "full_since", "last", "last_end", "limit", "mean", "running", "waiting")

    def __init__(self) -> None:
        self.limit: float = math.inf
        self.running = 0
        self.waiting: Waiting | None = None  # never empty; then `running` is not below `limit`
        self.last: Job | None = None  # the last to start, if it still runs
        self.full_since = 0.0  # since when jobs have been waiting
        self.ended = 0
        self.last_end = 0.0
        self.mean = 0.0  # seconds that a job runs


class Admission:
    """Limits and queues of all models. Times are seconds of one clock of the caller's, which never goes back."""

    def __init__(self, *, queue_length: int = 1000, age_bound: float = 30.0) -> None:
        """`queue_length`: jobs that may wait for a model. `age_bound`: see `waiting.py`.

        Raises ValueError if the length is negative or the bound not positive.
        """
        if queue_length < 0:
            raise ValueError(f"queue_length has to be 0 or more, not {queue_length}")
        if not age_bound > 0:
            raise ValueError(f"age_bound has to be more than 0, not {age_bound}")
        self._queue_length = queue_length
        self._age_bound = age_bound
        self._models: dict[str, _Model] = {}
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
            model = self._models[job.model] = _Model()
        job.submitted = now
        if model.running < model.limit:
            job.started = now
            job.state = "running"
            model.running += 1
            model.last = job
            return True
        self._wait(job, model, now)
        return False

    def done(self, job: Job, now: float) -> list[Job]:
        """A running job ended: the jobs that run now in its place, in order. No effect on a job that does not run."""
        if job.state != "running":
            return []
        job.state = "ended"
        model = self._models[job.model]
        model.running -= 1
        if model.last is job:
            model.last = None
        model.last_end = now
        if model.ended < MEMORY:
            model.ended += 1
        model.mean += (now - job.started - model.mean) / model.ended
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
            books = self._models[model] = _Model()
        books.limit = math.inf if limit is None else limit
        if books.waiting is None:
            self._tidy(model, books)
            return []
        if limit == 0:
            books.waiting.stop(now)
            return []
        books.waiting.resume(now)
        return self._start(model, books, now)

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
            books.limit = math.inf
            self._tidy(model, books)
            self._sweep()
        return jobs

    def take_evicted(self) -> list[Job]:
        """Jobs that had to give up their places since the last call; they wait no longer (see `refusal`)."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def refusal(self, model: str, now: float) -> ShoalError:
        """What to tell a client whose job found the queue full, or had to leave it."""
        seconds = self.estimate(model, now)
        retry = RETRY_UNKNOWN if seconds is None else max(1, math.ceil(min(seconds, RETRY_LONGEST)))
        count = self.waiting(model)
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
        if books is None or books.running < books.limit:
            return 0.0
        if not books.limit or not books.ended:
            return None
        interval = books.mean / books.limit
        if books.waiting is not None:
            interval = max(interval, now - max(books.last_end, books.full_since))
        return interval * (self.waiting(model) + 1 + books.running - books.limit)

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

    def _wait(self, job: Job, books: _Model, now: float) -> None:
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

    def _start(self, name: str, books: _Model, now: float) -> list[Job]:
        """Start waiting jobs while slots are free."""
        waiting = books.waiting
        assert waiting is not None
        waiting.advance(now)
        started = []
        while books.running < books.limit and waiting:
            job = waiting.pop()
            job.started = now
            job.state = "running"
            books.running += 1
            books.last = job
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

    def _tidy(self, name: str, books: _Model) -> None:
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
