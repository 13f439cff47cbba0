"""The relay: `asyncio.Protocol` on both sides, llhttp for heads, and bytes of bodies passed on as they came.

It runs on one thread without a task for a request: connections call exchanges, exchanges call admission, and what
ends calls what may start. All that lasts too long is found by one sweep.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.gateway.admission import Admission, Job
from shoal.gateway.circuits import Circuits
from shoal.gateway.cors import Cors
from shoal.gateway.exchange import Exchange
from shoal.gateway.expiry import expire, expire_stranded
from shoal.gateway.http1 import RequestHead
from shoal.gateway.inference import Inference
from shoal.gateway.keeping import Keeping
from shoal.gateway.keyring import Keyring
from shoal.gateway.link import Link
from shoal.gateway.manner import manner_of
from shoal.gateway.measures import Measures
from shoal.gateway.opening import administer, infer, list_models, place_of
from shoal.gateway.passage import Passage
from shoal.gateway.reaching import Reaching
from shoal.gateway.relay import ERRANDS, RelayConfig
from shoal.gateway.routes import Routes
from shoal.gateway.server import ClientConnection
from shoal.gateway.sharing import joined
from shoal.gateway.stranded import Stranded
from shoal.gateway.telling import report, views
from shoal.gateway.upstream import Pool, Pools
from shoal.gateway.virtual import Names
from shoal.messages import ModelCount, Route, Target
from shoal.net import UnixAddress

if TYPE_CHECKING:
    from shoal.gateway.tracing import Tracing

BACKLOG = 2048
RETRY_HELD = 5
"""Seconds of `Retry-After` where a model comes and nobody knows when."""
SWEEP = 0.1
"""Seconds between two looks at what has lasted too long."""
ENDING = 5.0
"""Seconds for writing the ends of responses that were broken off, and again for sending spans."""
STORING = 15.0
"""Seconds for having stored what was used: long enough for a controller that has just been started anew."""
_log = logging.getLogger(__name__)


class NativeRelay:
    """`shoal.gateway.relay.Relay` by hand."""

    def __init__(self, config: RelayConfig) -> None:
        self.config = config
        self.header_timeout = config.header_timeout
        self.body_timeout = config.body_timeout
        self.idle_timeout = config.idle_timeout
        self.tenant_headers = tuple(name.encode("latin-1") for name in config.tenant_headers)
        self.timed = bool(config.response_timeout or config.request_timeout)
        self.stopping = False
        self.connections: set[ClientConnection] = set()
        self.requests: dict[str, Inference] = {}
        self.errands: set[Passage] = set()
        """Requests to the controller."""
        self.admission = Admission(
            queue_length=config.queue_length, age_bound=config.age_bound, reserve=config.fair_reserve
        )
        self.keyring = Keyring(joined(config))
        self.measures = Measures()
        self.stranded: Stranded[Reaching] = Stranded()
        self.keeping = Keeping()
        self.circuits = Circuits()
        self.tracing: Tracing | None = None
        self.cors = Cors(config.cors_origins)
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def start(self, sock: socket.socket) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.now = loop.time
        self.routes = Routes(changed=self._on_change)
        self.names = Names(self.routes.table)
        self.link = Link(
            self.routes,
            self.config.relay_socket,
            self.config.table,
            on_table=self._on_table,
            report=partial(report, self),
            requests=partial(views, self),
            cancel=self._cancel,
        )
        self.pools = Pools(self.config.connect_timeout)
        self.controller = Pool(str(UnixAddress(self.config.controller)), self.config.connect_timeout)
        self._informed = asyncio.Event()
        self._look_at_the_clock()
        if self.config.otlp_endpoint is not None:
            from shoal.gateway.tracing import to_collector  # its packages need not be there

            self.tracing = to_collector(self.config.otlp_endpoint)
        self.link.restore()
        self._listener = await loop.create_server(lambda: ClientConnection(self, loop), sock=sock, backlog=BACKLOG)
        self._link_task = asyncio.create_task(self.link.run())
        self._sweep_task = asyncio.create_task(self._sweep())

    async def informed(self) -> None:
        await self._informed.wait()

    async def stop(self, grace: float) -> None:
        self.stopping = True
        self._listener.close()
        for connection in list(self.connections):
            if connection.idle:
                connection.close()
        stopping = ShoalError("The relay is stopping; send the request again.", status=503, code="relay_stopping")
        for request in [request for request in self.requests.values() if request.phase == "held"]:
            request.break_off(stopping)  # what may take minutes is not worth the wait
        await self._while(lambda: self.requests, grace)
        await self._while(lambda: self.errands, min(grace, ERRANDS))
        for passage in [*self.requests.values(), *self.errands]:
            passage.break_off(stopping)
        await self._while(lambda: self.connections, ENDING)
        for connection in list(self.connections):
            connection.abort()
        self._sweep_task.cancel()
        await self.link.flush(STORING)
        if self.tracing is not None:
            await self.tracing.stop(ENDING)
        self._link_task.cancel()
        await asyncio.gather(self._sweep_task, self._link_task, return_exceptions=True)
        self.pools.close()
        self.controller.close()

    # -- for connections ----------------------------------------------------------------------------------------------

    def open(self, connection: ClientConnection, head: RequestHead) -> Exchange:
        """Begin an exchange. Raises ShoalError to refuse it."""
        place = head.shared.place or place_of(head)
        if place.kind == "inference":
            return infer(self, connection, head, place, head.shared.manner or manner_of(head))
        return (list_models if place.kind == "models" else administer)(self, connection, head, place)

    def fault(self, error: BaseException) -> None:
        """Log a fault of the relay's own."""
        _log.error("A request failed by a fault of the relay", exc_info=error)

    def full(self) -> bool:
        """Whether there are as many connections as are allowed."""
        return len(self.connections) >= self.config.max_connections

    # -- for exchanges ------------------------------------------------------------------------------------------------

    def request_id(self, given: str | None) -> str:
        """The id of a request: the client's own, if no request has it now, or a new one."""
        if given is not None and given not in self.requests:
            return given
        return f"req-{self._prefix}-{next(self._numbers):x}"

    def cors_fields(self, head: RequestHead) -> bytes:
        """What lets a web page read the answer, if it may: header lines, each with its end."""
        origin = head.fields.get(b"origin")
        if origin is None:
            return b""
        return "".join(f"{name}: {value}\r\n" for name, value in self.cors.headers(origin).items()).encode("latin-1")

    def pick(self, model: str, passed_over: Sequence[str]) -> Target:
        """The instance that a request goes to; those that take no connections are left alone where there are others.

        Raises ShoalError as `Routes.pick`.
        """
        if self.circuits.failing:
            avoided = self.circuits.open(monotonic())
            try:
                return self.routes.pick(model, without=[*passed_over, *avoided])
            except ShoalError:
                pass  # none but those
        return self.routes.pick(model, without=passed_over)

    def set_deadline(self, inference: Reaching) -> None:
        """Start the clocks of a request that runs at an engine."""
        config = self.config
        left = [config.response_timeout] if config.response_timeout and inference.awaits_engine else []
        if config.request_timeout:
            left.append(config.request_timeout - (monotonic() - inference.arrived))
        inference.connection.limit(self.now() + max(min(left), 0.001) if left else 0.0)

    def waits(self, route: Route) -> None:
        """A request has begun to wait for `route`'s model."""
        for job in self.admission.take_evicted():
            job.owner.refuse_waiting(self.admission.refusal(job.model, monotonic()), "refused")
        if not route.targets:
            self.link.want(route.model)
        self._on_change()

    def waits_no_more(self, model: str) -> None:
        """A request for `model` waits no longer."""
        if not self.admission.waiting(model):
            self.link.unwant(model)
        self._on_change()

    def wish(self, model: str) -> None:
        """Have a model made ready for whoever comes later; nobody waits for it now."""
        self.link.want(model)
        self.waits_no_more(model)

    def unready(self, route: Route) -> ShoalError:
        """The refusal of a request that does not wait, or no longer, for a model that may come."""
        error = self.routes.unavailable(route)
        if route.comes:
            error.headers.setdefault("Retry-After", str(RETRY_HELD))
        return error

    def unreachable(self, model: str) -> ShoalError:
        """The refusal of a request none of whose instances takes connections."""
        return ShoalError(
            f"The engine of {model!r} does not take connections; send the request again in a moment.",
            status=503,
            code="engine_connection_failed",
            headers={"Retry-After": str(RETRY_HELD)},
        )

    def free(self, job: Job | None, now: float) -> None:
        """A running request gives up its slot, but goes on."""
        if job is not None:
            job.owner = None
            self._start(self.admission.done(job, now))

    def strand(self, request: Reaching) -> None:
        """Hold a request that no instance takes."""
        self.stranded.add(request)
        self._on_change()

    def resume(self, model: str | None = None) -> None:
        """Requests that were held so, of a model or all, may try again."""
        if self.stranded:
            for request in self.stranded.take(model):
                self.loop.call_soon(request.resume)
            self._on_change()

    def over(self, inference: Inference, job: Job | None, now: float) -> None:
        """A request has ended, wherever it was."""
        self.requests.pop(inference.id, None)
        if job is None:
            return
        job.owner = None  # or the two would keep each other until the garbage collector comes
        if job.state == "waiting":
            self.admission.leave(job)
            self.waits_no_more(job.model)
        elif started := self.admission.done(job, now):
            self._start(started)

    def _start(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self.loop.call_soon(job.owner.start_later)

    # -- the outside --------------------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        self.link.changed()

    def _on_table(self) -> None:
        table = self.routes.table
        known = set(self.names.known())
        self.names = Names(table)
        self.keyring.replace(table.keys, table.keys_required)
        known -= set(self.names.known())
        self.measures.forget(known)
        self.keeping.forget(known)
        targets = [target for route in table.routes for target in route.targets]
        self.pools.keep_only({target.address for target in targets})
        self.circuits.keep_only({target.instance for target in targets})
        now = monotonic()
        for route in table.routes:
            self._start(self.admission.limit(route.model, self._limit(route), now))
        # Who may wait for another model instead does so by limits that are all new.
        for model in known.union(self.admission.waiting_models()):
            if model not in self.routes:
                for job in self.admission.drop(model):
                    job.owner.refuse_gone()
        for route in table.routes:
            if not route.targets:
                if not route.comes:
                    for job in self.admission.drop(route.model):
                        job.owner.refuse_waiting(self.routes.unavailable(route), "unavailable")
                elif self.admission.waiting(route.model):
                    self.link.want(route.model)
        self.resume()
        self._informed.set()

    def _limit(self, route: Route) -> int | None:
        """Requests that may run at once in this relay."""
        if not route.targets:
            return 0
        limit = route.limit
        if limit is None:
            if not all(target.capacity for target in route.targets):
                return None
            limit = sum(target.capacity for target in route.targets)
        return max(1, -(-limit // self.config.relay_workers))

    async def _sweep(self) -> None:
        for sweep in itertools.count():
            await asyncio.sleep(SWEEP)
            try:
                if sweep % 10 == 0:
                    self.measures.fold()
                self._look_at_the_clock()
                now = self.now()
                for connection in [c for c in self.connections if 0 < c.deadline <= now]:
                    connection.on_deadline()
                for connection in [c for c in self.connections if c.hung_up]:
                    connection.drop()
                self.pools.sweep(now)
                self.routes.settle()
                self._expire()
            except Exception as error:  # whatever one request does, the others' clocks go on
                self.fault(error)

    def _look_at_the_clock(self) -> None:
        moment = datetime.now(UTC)
        self.wall = moment.timestamp()
        self.day = moment.date().isoformat()

    def _expire(self) -> None:
        now = monotonic()
        if self.stranded:
            expire_stranded(self, now)
        self._start(self.admission.settle(now))
        expire(self, now)

    # -- what is told -------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> tuple[ModelCount, ...]:
        """Requests that ended, by model, class and outcome."""
        return self.measures.counts()

    def _cancel(self, id: str) -> bool:
        request = self.requests.get(id)
        if request is not None:
            request.cancel()
        return request is not None

    async def _while(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = self.now() + seconds
        while condition() and self.now() < deadline:
            await asyncio.sleep(0.02)
