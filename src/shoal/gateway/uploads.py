"""Forms that go to the engine while they still come: audio and images of any size, of which little is held here.

A form waits until its model is known. Then it is a request like others, but for its body: what came is sent on when its
turn comes, and each further part as it comes. Until then, and whenever the engine reads more slowly than the client
sends, the client is not read from. What comes before the model has to be held, in a file if it is much.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from shoal.errors import ShoalError
from shoal.gateway.forms import FormReader
from shoal.gateway.framing import Framing, chunk
from shoal.gateway.http1 import Place, RequestHead, ResponseHead
from shoal.gateway.inference import Inference
from shoal.gateway.inspect import read_form
from shoal.gateway.manner import Manner
from shoal.gateway.server import ClientConnection
from shoal.gateway.spool import Spool
from shoal.gateway.upstream import EngineConnection, Parts, Pool
from shoal.gateway.virtual import Resolved, check_form, rewrite_target

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay

HELD = 256 * 1024
"""Bytes of a form whose model is known that are held until its turn comes."""
PIECE = 64 * 1024
"""Bytes of what was held that are sent at once."""
PIECES = 16
"""Pieces after which others are served first."""


class Upload(Inference):
    """A request with a form. One that is there in one piece is carried out as others are."""

    whole = False  # an engine may answer before all has been sent

    def __init__(
        self, relay: NativeRelay, connection: ClientConnection, head: RequestHead, place: Place, manner: Manner
    ) -> None:
        super().__init__(relay, connection, head, place, manner)
        self._form: FormReader | None = None  # of a form that comes in several pieces
        self._spool = Spool()
        self._came = 0
        self._renames = False
        self._spans = 0  # places where the model's name stands, when it was replaced
        self._whole = False  # it has come from the client
        self._flows = False  # it goes to the engine
        self._sent = False  # it has gone there
        self._unwanted = False  # the engine has refused it and need not see the rest
        self._full = False  # the engine does not read
        self._waits = False  # the client is not read from

    # -- from the client ----------------------------------------------------------------------------------------------

    def on_part(self, content: bytes) -> bool:
        form = self._form
        if form is None:
            form = self._form = FormReader(self._manner.content_type)
        self._came += len(content)
        if self._unwanted:
            return False
        form.feed(content)
        if self._renames and len(form.model_spans) > self._spans:
            raise ShoalError(
                "The form names its model again after the engine was sent the first name; name it once.",
                code="invalid_model",
                param="model",
            )
        if self._flows and not self._spool.left:
            self._send(content)
        else:
            self._spool.add(content)
        if self._named is None and form.model is not None:
            self._ask(form)
        self._steer()
        return False

    def on_request(self, body: bytes | bytearray | None, trailers: list[bytes]) -> None:
        form = self._form
        if form is None:
            super().on_request(body, trailers)
            return
        self._whole = True
        self._trailers = trailers
        self._steer()
        if self._unwanted:
            return
        form.end()
        if self._named is None:
            self._ask(form)
        elif self._flows:
            self._pour()

    def _ask(self, form: FormReader) -> None:
        """Go on as a request whose body was read."""
        self._named = read_form(self.target, form, model_header=self._manner.model)
        super().on_request(None, list(self._trailers))

    def _steer(self) -> None:
        """Read on, or do not; and have the time kept of whose turn it is."""
        if self.ended or self._form is None:
            return
        if self._whole or self._unwanted or self._named is None:
            waits = False
        elif self._flows:
            waits = self._full or self._spool.left > 0
        else:
            waits = self._spool.left > HELD
        self.connection.expect(self._whole or not (waits or self._unwanted))
        if waits != self._waits:
            self._waits = waits
            self.connection.pause(waits)
        if self._flows and self._relay.timed:
            self._relay.set_deadline(self)

    # -- to the engine ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        job, named, resolved, form = self._job, self._named, self._resolved, self._form
        if form is None:
            super().start()
            return
        assert job is not None
        assert named is not None
        assert resolved is not None
        self._waited += job.started - job.submitted
        if self._message:  # it was on its way before
            self._go()
            return
        if resolved.virtual is not None or resolved.name != named.model:
            self._rename(resolved, form)
        if self._relay.tracing is not None:
            self._pass_trace(self._relay.tracing)
        self._message = self.message(None, [])
        self._go()

    def _rename(self, resolved: Resolved, form: FormReader) -> None:
        """Have another name stand in the form: in what is held of it, which is all that names the model so far."""
        check_form(resolved.virtual)
        self.target = rewrite_target(self.target, resolved.name)
        before = self._spool.left
        self._spool.replace(form.model_spans, resolved.name.encode())
        self._renames = True
        self._spans = len(form.model_spans)
        length = self.head.length
        if length is not None:
            self.head = copy(self.head)  # heads of its kind are known by the one that came
            self.head.length = length + self._spool.left - before

    def own_fields(self) -> bytes:
        chunked = self._form is not None and self.head.chunked
        return super().own_fields() + (b"Transfer-Encoding: chunked\r\n" if chunked else b"")

    def forward(self, pool: Pool, data: Parts, *, keep: bool = True) -> None:
        """Over a connection of its own: one that idled may close just as a request comes that cannot be repeated."""
        if self._form is None:
            super().forward(pool, data, keep=keep)
            return

        def connected(result: EngineConnection | OSError) -> None:
            self._give_up = None
            if isinstance(result, OSError):
                self.unreachable(result)
                return
            self.upstream = result
            self._flows = True
            result.send(self, data, keep=False)
            self.reached()
            self._pour()

        self._give_up = pool.connect(connected)

    def _send(self, content: bytes) -> None:
        assert self.upstream is not None
        self.upstream.write(chunk(content) if self.head.chunked else content)

    def _pour(self) -> None:
        """Send what is held, as far as the engine reads it, and the end if that has come."""
        if self.ended or self._unwanted:
            return
        try:
            pieces = 0
            while self._spool.left and not self._full:
                if pieces == PIECES:
                    self._relay.loop.call_soon(self._pour)
                    break
                pieces += 1
                self._send(self._spool.take(PIECE))
        except ShoalError as error:
            self.connection.refuse(error)
            return
        if self._whole and not self._sent and not self._spool.left:
            self._sent = True
            if self.head.chunked and self.upstream is not None:
                self.upstream.write(b"\r\n".join((b"0", *self._trailers, b"", b"")))
        self._steer()

    def on_upstream_full(self, full: bool) -> None:
        if self._form is None:
            super().on_upstream_full(full)
            return
        self._full = full
        if full:
            self._steer()
        else:
            self._pour()

    @property
    def awaits_engine(self) -> bool:
        return self._form is None or self._sent or self._full or self.response is not None

    # -- and back -----------------------------------------------------------------------------------------------------

    @property
    def closes(self) -> bool:
        """An answer that comes before the end of the form is the connection's last: where the next request begins
        may never be known."""
        return (self._form is not None and not self._whole) or super().closes

    def on_head(self, head: ResponseHead, framing: Framing) -> None:
        if self._form is not None and not self._sent and head.status >= 300:
            self._unwanted = True
            self._spool.close()
        super().on_head(head, framing)
        self._steer()

    def on_complete(self) -> None:
        if self._form is not None and not self._sent and self.upstream is not None:
            self.upstream.abandon()  # nobody waits for it to read the rest
        super().on_complete()

    def on_refused(self, error: ShoalError) -> bool:
        if error.status == 507 and not self.ended:  # no engine is to blame
            self.outcome = "unavailable"
        return super().on_refused(error)

    def end(self, status: int | None) -> None:
        if self._form is not None:
            self._bytes_in = self._came
        self._spool.close()
        super().end(status)
