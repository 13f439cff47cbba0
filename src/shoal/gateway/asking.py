"""An inference request on its way to an engine: whom it is from, what it names, and when its turn is."""

from __future__ import annotations

import contextlib
from time import monotonic

from shoal.errors import ShoalError
from shoal.gateway.admission import LARGEST, Job
from shoal.gateway.inspect import FIELDS, Named, read_request
from shoal.gateway.manner import DROPPED
from shoal.gateway.reaching import Reaching
from shoal.gateway.skim import SkimError, Skimmer
from shoal.gateway.splice import LISTED, rewrite_large, splice
from shoal.gateway.usage import ask_for_usage, options_with_usage, with_usage
from shoal.gateway.virtual import Resolved, rewrite, rewrite_target
from shoal.messages import PRIORITIES, Outcome, Priority, Route

LARGE_BODY = 1024 * 1024
"""Bytes of a JSON body from which on it is read while it comes, because to read it in one go would keep others waiting
(some milliseconds for each megabyte)."""


class Asking(Reaching):
    """A request to an engine, until its turn comes. `Inference` is the rest of it."""

    __slots__ = ()

    def identify(self) -> None:
        """Find out whose request it is. Raises ShoalError 401."""
        relay, manner = self._relay, self._manner
        key = relay.keyring.bearer(manner.token, relay.wall)
        self.dropped = DROPPED[key is not None or manner.secret][manner.has_id and self.id != manner.id]
        if key is not None:
            self.key = key
            self.tenant = key.id
            self.priority = key.priority
            return
        for name in relay.tenant_headers:
            if (value := self.head.fields.get(name)) is not None:
                self.tenant = value[:200].decode("utf-8", "replace")
                return
        self.tenant = self.connection.peer

    # -- what it asks for ---------------------------------------------------------------------------------------------

    def on_part(self, content: bytes) -> bool:
        skimmer = self._skimmer
        if skimmer is None:
            before = self.connection.collected
            if len(before) + len(content) < LARGE_BODY and (self.head.length or 0) < LARGE_BODY:
                return True
            if not self._manner.readable:
                return True
            skimmer = self._skimmer = Skimmer(FIELDS, LISTED)
            content = bytes(before) + content
        try:
            skimmer.feed(content)
        except SkimError as error:
            raise _broken(error) from None
        self.connection.breathe()
        return True

    def _readable(self, body: bytes | bytearray) -> bytes | bytearray:
        """The body, or one of what was found in a large one."""
        skimmer = self._skimmer
        if skimmer is None:
            return body
        try:
            skimmer.end()
        except SkimError as error:
            raise _broken(error) from None
        if skimmer.gave_up:
            return body
        return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), value) for name, value in skimmer.fields.items())

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        relay, manner = self._relay, self._manner
        now = self._received = monotonic()
        self._bytes_in = 0 if body is None else len(body)
        named = self._named
        if named is None:
            named = self._named = read_request(
                self.target,
                self._readable(body or b""),
                content_type=manner.content_type if manner.form else "",
                content_encoding=manner.content_encoding,
                model_header=manner.model,
                size=self._bytes_in,
            )
        self._body = body
        self._trailers = trailers
        key = self.key
        if manner.priority is not None or named.priority is not None:
            self.priority = self._class(manner.priority or named.priority or "normal")
        resolved = self._resolved = relay.names.find(named.model)
        if resolved is None:
            raise relay.names.missing(named.model, None if key is None else relay.keyring.may_see(key))
        self.model = resolved.model
        if key is not None:
            if key.models:
                relay.keyring.allow(key, resolved.name)
            try:
                relay.keyring.begin(key, named.cost, now)
            except ShoalError:
                self.outcome = "refused"
                raise
            self._charged = True
        if resolved.virtual is None:
            route = relay.names.route(resolved)
            if route.targets:  # as nearly all are
                self._enter(resolved, route, now)
                return
            self._candidates = (resolved.name,)
        else:
            self._candidates = relay.names.candidates(resolved)
        self._submit()

    def _class(self, wanted: Priority) -> Priority:
        """The priority class: as the request says, but none above that of its key."""
        return wanted if self.key is None else max(wanted, self.key.priority, key=PRIORITIES.index)

    def _submit(self, refusal: ShoalError | None = None) -> None:
        relay = self._relay
        patient = self._manner.patient
        while self._candidates:
            name, *rest = self._candidates
            self._candidates = tuple(rest)
            try:
                resolved = relay.names.resolve(name)
            except ShoalError as error:  # it has left the table since the request came
                refusal = refusal or error
                continue
            route = relay.names.route(resolved)
            if route.targets or (route.comes and patient):
                self._enter(resolved, route, monotonic())
                return
            if refusal is None:
                self.model = route.model
                refusal = relay.unready(route)
            if route.comes:
                relay.wish(route.model)
        assert refusal is not None
        self.outcome = "unavailable"
        raise refusal

    def _enter(self, resolved: Resolved, route: Route, now: float) -> None:
        relay, named = self._relay, self._named
        assert named is not None
        self.model = route.model
        if self._resolved is not resolved:
            virtual = None if self._resolved is None else self._resolved.virtual
            self._resolved = Resolved(resolved.name, resolved.model, virtual=virtual)
        if route.targets:
            patience = relay.config.queue_timeout
        else:
            self._held = True
            patience = self.held_until - now if self.held_until else relay.config.hold_timeout
        job = self._job = Job(
            route.model,
            self.tenant,
            self.priority,
            1.0 if self.key is None else self.key.weight,
            named.cost if 1.0 <= named.cost <= LARGEST else min(max(1.0, named.cost), LARGEST),
            now + patience,
            self,
        )
        try:
            runs = relay.admission.submit(job, now)
        except ShoalError:
            self.outcome = "refused"
            raise
        if runs:
            self.start()
            return
        relay.waits(route)

    def start(self) -> None:
        """Its turn has come. Raises ShoalError."""
        job, named, resolved = self._job, self._named, self._resolved
        assert job is not None
        assert named is not None
        assert resolved is not None
        self._waited += job.started - job.submitted
        if self._message:  # it was on its way before
            self._go()
            return
        body, rewritten = self._body, False
        if resolved.virtual is not None or resolved.name != named.model:
            body = self._renamed(resolved, body)
            rewritten = body is not self._body
        if self.key is not None and named.streams_usage and not named.include_usage and body:
            asking = self._with_usage(body, named)
            if self._strips:
                self.whole = False  # something will be taken out
            rewritten, body = rewritten or self._strips, asking
        if self._relay.tracing is not None:
            self._pass_trace(self._relay.tracing)
        self._message = self.message(body, self._trailers, rewritten=rewritten)
        self._body = None
        self._go()

    def _with_usage(self, body: bytes | bytearray, named: Named) -> bytes | bytearray:
        """The body, which asks for usage if it can."""
        seen, options = self._skimmer, None
        virtual = None if self._resolved is None else self._resolved.virtual
        given = virtual is not None and ("stream_options" in virtual.set or "stream_options" in virtual.defaults)
        if len(body) >= LARGE_BODY:
            if not (named.options or given):
                self._strips = True
                return ask_for_usage(body)
            options = None if seen is None else seen.fields.get("stream_options")
        asking = body
        if seen is None or options is None:  # it was changed before, or can only be read as a whole
            asking = with_usage(body)
        else:
            with contextlib.suppress(ShoalError):
                asking = splice(body, seen, {"stream_options": options_with_usage(options)})
        self._strips = asking is not body
        return asking

    def _renamed(self, resolved: Resolved, body: bytes | bytearray | None) -> bytes | bytearray | None:
        self.target = rewrite_target(self.target, resolved.name)
        if not body:
            return body
        seen, self._skimmer = self._skimmer, None
        if seen is not None and not seen.gave_up:
            changed = rewrite_large(body, seen, resolved.virtual, resolved.name, self._path)
            if changed is not None:
                return changed
        fields = self.head.fields
        return rewrite(
            body,
            resolved.virtual,
            resolved.name,
            path=self._path,
            content_type=fields.get(b"content-type", b"").decode("latin-1"),
            content_encoding=fields.get(b"content-encoding", b"").decode("latin-1"),
        )

    def start_later(self) -> None:
        """Its turn has come while something else was going on."""
        if self.ended:
            return
        try:
            self.start()
        except ShoalError as error:
            self.connection.refuse(error)

    def refuse_waiting(self, error: ShoalError, outcome: Outcome) -> None:
        """It waits no longer: another model may stand in, or it is refused."""
        if self.ended:
            return
        job, self._job = self._job, None
        if job is not None:
            self._waited += monotonic() - job.submitted
            self._relay.waits_no_more(job.model)
        if self._candidates and outcome != "refused":
            try:
                self._submit(error)
            except ShoalError as refusal:
                self.connection.refuse(refusal)
            return
        self.outcome = outcome
        self.connection.refuse(error)

    def refuse_gone(self) -> None:
        """The model that it waits for is not there any more."""
        relay, key = self._relay, self.key
        visible = None if key is None else relay.keyring.may_see(key)
        self.refuse_waiting(relay.names.missing(self.model, visible), "client_error")


def _broken(error: SkimError) -> ShoalError:
    return ShoalError(f"The body is not valid JSON: {error}.", code="invalid_json")
