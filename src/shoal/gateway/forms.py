"""Reading the small fields of multipart/form-data (RFC 7578, RFC 2046) while it passes. Pure.

Audio comes as a form, with the model's name somewhere among files of any size. The reader is fed the body as it
arrives, keeps no file, and knows the model as soon as its field is whole; then the body can flow on to an engine.

It has to see the form as the engine does, or a client could name one model to the relay and another to the engine. So
what parsers are known to read differently is refused, never guessed at: two different `model` fields, a header or
parameter given twice, `name*`, backslashes in a name, folded or broken header lines, a line that begins with the
boundary and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from shoal.errors import ShoalError
from shoal.messages import PRIORITIES, Priority

MAX_FIELD = 64 * 1024
"""Bytes of a field that is read; others and files may be of any size."""
MAX_HEAD = 16 * 1024
"""Bytes of a part's head."""
MAX_PARTS = 1000
MAX_USER = 512
"""Characters of a name for a tenant; a longer one is no name."""
_MAX_BOUNDARY = 200  # RFC 2046 allows 70
_MAX_PADDING = 1024  # blanks after a boundary
_FIELDS = frozenset({"model", "stream", "user", "priority", "keep_alive"})
_TRUE = frozenset({"true", "1", "on", "yes", "t", "y"})
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(
    rb';[ \t]*(?:(%s)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;"\s]*)[ \t]*)?' % _TOKEN,
    re.DOTALL,
)
_HEADER = re.compile(rb"(%s):([^\r\n]*)" % _TOKEN)


def is_form(content_type: str) -> bool:
    """Whether a Content-Type is multipart/form-data."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


class FormReader:
    """Finds `model`, `stream`, `user`, `priority` and `keep_alive` in a form that comes in pieces of any size.

    Where it is cut makes no difference. It holds a boundary, a part's head or a small field at most. What `feed` and
    `end` raise is ShoalError 400, `invalid_body` or `invalid_model`; after that the reader is of no more use.
    """

    def __init__(self, content_type: str) -> None:
        """Raises ShoalError 400 `invalid_body` if `content_type` has no usable boundary."""
        self.model: str | None = None
        """The value of the field `model`, once that is whole. The same name again changes nothing."""
        self.model_spans: list[tuple[int, int]] = []
        """Where in the body it stands: first byte, and the one after the last."""
        self.stream = False
        self.user: str | None = None
        self.priority: Priority | None = None
        self.keep_alive: str | None = None
        self.parts_seen = 0
        """Parts that have begun."""
        self.complete = False
        """Whether the closing boundary has come. What follows it is ignored."""
        self._mark = b"\r\n--" + _boundary(content_type)
        # The first boundary needs no line before it: this one is lent to it, so `_held[0]` lies before the body.
        self._held = bytearray(b"\r\n")
        self._base = -2
        self._lead = 2
        """How many of the bytes held belong to the line end before the data."""
        self._name: str | None = None
        self._value = bytearray()
        self._value_at = 0
        self._step: Callable[[], bool] = self._read_data

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Read on."""
        if self.complete:
            return
        self._held += data
        while self._step():
            pass

    def end(self) -> None:
        """The body is over: raise if the form is not."""
        if self.complete:
            return
        if not self.parts_seen:
            raise _broken("The multipart body does not hold its boundary")
        raise _broken("The multipart body does not end with its boundary")

    # Each step reads one thing from the front of `_held` and says whether there is a next one to take.

    def _read_data(self) -> bool:
        """The preamble, or a part's data, up to the boundary."""
        at = self._held.find(self._mark)
        if at < 0:
            self._release(len(self._held) - len(self._mark) + 1)
            return False
        if at == 0 and self._lead and self.parts_seen:
            # An empty part by RFC 2046, data that looks like a boundary to other parsers.
            raise _broken("A part of the multipart body has a boundary where its data should begin")
        self._release(at)
        self._keep_field()
        self._step = self._read_boundary
        return True

    def _read_boundary(self) -> bool:
        """The boundary and the rest of its line."""
        end = len(self._mark)
        if len(self._held) < end + 2:
            return False
        if self._held.startswith(b"--", end):
            self.complete = True
            self._held.clear()
            return False
        limit = end + _MAX_PADDING + 2
        line_end = self._held.find(b"\r\n", end, limit)
        if line_end < 0 and len(self._held) < limit:
            return False
        if line_end < 0 or self._held[end:line_end].strip(b" \t"):
            raise _broken("A line of the multipart body begins with the boundary and goes on")
        self.parts_seen += 1
        if self.parts_seen > MAX_PARTS:
            raise _broken(f"The multipart body has more than {MAX_PARTS} parts")
        self._drop(line_end + 2)
        self._step = self._read_head
        return True

    def _read_head(self) -> bool:
        """A part's headers. The line end after them stays: it may be the one before a boundary."""
        if self._held.startswith(b"\r\n"):
            head_end = 0
            self._name = None
        else:
            limit = MAX_HEAD + 4
            at = self._held.find(b"\r\n\r\n", 0, limit)
            if at < 0:
                if len(self._held) >= limit:
                    raise _broken(f"The head of a part of the multipart body is longer than {MAX_HEAD} bytes")
                return False
            self._name = _field_name(bytes(self._held[:at]))
            head_end = at + 2
        self._drop(head_end)
        self._lead = 2
        self._value_at = self._base + 2
        self._step = self._read_data
        return True

    def _drop(self, count: int) -> None:
        del self._held[:count]
        self._base += count

    def _release(self, count: int) -> None:
        """Let go of data, but for that of a field."""
        if count <= 0:
            return
        if self._name is not None:
            self._value += self._held[self._lead : count]
            if len(self._value) > MAX_FIELD:
                raise ShoalError(
                    f"The form's field `{self._name}` is longer than {MAX_FIELD} bytes; send less.",
                    code="invalid_body",
                    param=self._name,
                )
        self._lead = max(0, self._lead - count)
        self._drop(count)

    def _keep_field(self) -> None:
        name, value = self._name, bytes(self._value)
        self._name = None
        self._value.clear()
        if name is None:
            return
        try:
            text = value.decode()
        except UnicodeDecodeError:
            if name == "model":
                raise ShoalError("`model` has to be UTF-8 text.", code="invalid_model", param="model") from None
            return
        if name == "model":
            if self.model is not None and self.model != text:
                raise ShoalError("The form names two different models; send one.", code="invalid_model", param="model")
            self.model = text
            self.model_spans.append((self._value_at, self._value_at + len(value)))
        elif name == "stream":
            self.stream = text.strip().lower() in _TRUE
        elif name == "user":
            self.user = text if len(text) <= MAX_USER else None
        elif name == "keep_alive":
            self.keep_alive = text if len(text) <= MAX_USER else None
        else:
            self.priority = next((word for word in PRIORITIES if word == text), None)


def renamed(body: bytes | bytearray, reader: FormReader, model: str) -> bytes:
    """The form with `model` for its model's name, or the beginning of a form with the fields that were read so far.

    `body` is what `reader` was fed from the start.
    """
    pieces, at = [], 0
    for start, end in reader.model_spans:
        pieces += [body[at:start], model.encode()]
        at = end
    return b"".join([*pieces, body[at:]])


def _broken(what: str) -> ShoalError:
    return ShoalError(f"{what}; build the form with an HTTP library.", code="invalid_body")


def _boundary(content_type: str) -> bytes:
    try:
        parameters = _parameters(content_type.encode("ascii"))
    except UnicodeEncodeError:
        raise _broken("The Content-Type of the multipart body is not ASCII") from None
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise _broken("The multipart body has no boundary in its Content-Type")
    if len(boundary) > _MAX_BOUNDARY or b"\r" in boundary or b"\n" in boundary:
        raise _broken("The boundary in the Content-Type is not one")
    if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise _broken("The multipart body is not declared as UTF-8")
    return boundary


def _field_name(head: bytes) -> str | None:
    """The name of a field that is read, by its part's head; None for files and all other parts."""
    disposition = None
    for line in head.split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _broken("A part of the multipart body has a header that is none")
        if header[1].lower() == b"content-disposition":
            if disposition is not None:
                raise _broken("A part of the multipart body has two Content-Dispositions")
            disposition = header[2]
    if disposition is None:
        return None
    parameters = _parameters(disposition)
    name = parameters.get(b"name", b"")
    if b"name*" in parameters or b"\\" in name:
        raise _broken("A part of the multipart body has a name that is not plain text")
    if b"filename" in parameters:
        return None
    text = name.decode("utf-8", "replace")
    return text if text in _FIELDS else None


def _parameters(value: bytes) -> dict[bytes, bytes]:
    """The parameters after the first `;`, quotes taken off and what is escaped in them left so; names in lower case."""
    found: dict[bytes, bytes] = {}
    at = value.find(b";")
    while 0 <= at < len(value):
        match = _PARAMETER.match(value, at)
        if match is None:
            raise _broken("A parameter in a header of the multipart body cannot be read")
        name = match[1]
        if name is not None:
            name = name.lower()
            if name in found:
                raise _broken("A header of the multipart body has a parameter twice")
            found[name] = match[2][1:-1] if match[2].startswith(b'"') else match[2]
        at = match.end()
    return found
