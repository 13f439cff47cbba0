"""Names that clients may use, what they stand for, and how a virtual model changes a request. Pure.

A name is a model, an adapter (LoRA) of one, or a virtual model that stands for one of the two. A virtual model never
stands for another: which settings win would depend on the way. What a model or an adapter is called, no virtual model
can take from it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from urllib.parse import quote, unquote_plus

import msgspec

from shoal.errors import NotFoundError, ShoalError
from shoal.gateway.bodies import fields_of
from shoal.gateway.forms import FormReader, is_form, renamed
from shoal.gateway.routes import NAMES_SHOWN
from shoal.messages import Route, RoutingTable, VirtualModel

Visible = Callable[[str], bool]
"""Whether a name may be known to whom an answer goes."""

CHAT = frozenset({"/v1/chat/completions", "/tokenize"})
MESSAGES = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
SYSTEM_ROLES = frozenset({b'"system"', b'"developer"'})


class Resolved(msgspec.Struct, frozen=True, gc=False):
    """What a name stands for: `model` has the instances that serve it.

    `engine_name` is what has to stand in the request instead of `name`, None if nothing has to change. `virtual` says
    what else does.
    """

    name: str
    model: str
    engine_name: str | None = None
    virtual: VirtualModel | None = None


class Names:
    """Every name in a routing table. Made once for each table; to look one up costs a dictionary's look."""

    def __init__(self, table: RoutingTable) -> None:
        self._routes = {route.model: route for route in table.routes}
        self._found = {name: Resolved(name, name) for name in self._routes}
        self.find: Callable[[str], Resolved | None] = self._found.get
        """What a name stands for, or None."""
        for route in table.routes:
            for name in route.names:
                self._found.setdefault(name, Resolved(name, route.model))
        real = dict(self._found)
        self._virtual = {virtual.name: virtual for virtual in table.virtual if virtual.name not in real}
        for name, virtual in self._virtual.items():
            target = next((real[one] for one in (virtual.model, *virtual.fallback) if one in real), None)
            if target is not None:
                self._found[name] = Resolved(name, target.model, target.name, virtual)

    def resolve(self, name: str, visible: Visible | None = None) -> Resolved:
        """What `name` stands for. Of a virtual model, that is the first of its model and its fallbacks that exists.

        Raises ShoalError 404 `model_not_found` with the names that are `visible`, or with that of what is missing.
        """
        found = self._found.get(name)
        if found is None:
            raise self.missing(name, visible)
        return found

    def candidates(self, resolved: Resolved) -> tuple[str, ...]:
        """Names to ask, in order: the name itself, or what a virtual model stands for and its fallbacks.

        All are real and known; the request goes to it with `rewrite(body, resolved.virtual, candidate, …)`.
        """
        virtual = resolved.virtual
        if virtual is None:
            return (resolved.name,)
        names = dict.fromkeys((virtual.model, *virtual.fallback))
        return tuple(name for name in names if name in self._found and name not in self._virtual)

    def route(self, resolved: Resolved) -> Route:
        """The route of the model that serves a name."""
        return self._routes[resolved.model]

    def known(self, visible: Visible | None = None) -> list[str]:
        """All names, sorted, each once."""
        return sorted(name for name in self._found.keys() | self._virtual if visible is None or visible(name))

    def virtual(self, name: str) -> VirtualModel | None:
        """The virtual model of this name, whether or not what it stands for exists."""
        return self._virtual.get(name)

    def missing(self, name: str, visible: Visible | None = None) -> NotFoundError:
        """The refusal for a name that cannot be resolved, or must not."""
        virtual = self._virtual.get(name)
        if virtual is not None and (visible is None or visible(name)):
            why = "is virtual too" if virtual.model in self._virtual else "does not exist"
            message = (
                f"The model {name!r} stands for {virtual.model!r}, which {why}, and no fallback exists; "
                "let it stand for a model that does."
            )
        else:
            shown = name if len(name) <= 200 else name[:200] + "…"
            message = f"The model {shown!r} does not exist. {_listed(self.known(visible))}"
        return NotFoundError(message, code="model_not_found", param="model")


def rewrite(
    body: bytes | bytearray,
    virtual: VirtualModel | None,
    model: str,
    *,
    path: str = "",
    content_type: str = "",
    content_encoding: str = "",
) -> bytes:
    """A whole request with `model` for its model's name, and changed as `virtual` wants.

    Fields are stripped, then filled in where they are missing, then set. The system text goes to where requests of
    `path` (without query) have such a text, unless this one has it. All other values keep their bytes. Of a form only
    the name can be changed: defaults and system text are left out. No body stays none.

    Raises ShoalError 400: `virtual_not_for_forms` if fields of a form would have to be set or stripped,
    `virtual_not_for_compressed`, or what `fields_of` and `FormReader` raise.
    """
    if not body:
        return b""
    if content_encoding.strip().lower() not in ("", "identity"):
        raise ShoalError(
            "The model's name in this request has to be replaced, which a compressed body does not allow; "
            f"send it uncompressed, or name {model!r}.",
            code="virtual_not_for_compressed",
            param="model",
        )
    if is_form(content_type):
        check_form(virtual)
        reader = FormReader(content_type)
        reader.feed(body)
        reader.end()
        return renamed(body, reader, model)
    fields = fields_of(body)
    if virtual is not None:
        for name in virtual.strip:
            fields.pop(name, None)
        for name, value in virtual.defaults.items():
            if name not in fields:
                fields[name] = _raw(value)
        for name, value in virtual.set.items():
            fields[name] = _raw(value)
        if virtual.system is not None:
            _put_system(fields, path, virtual.system)
    fields["model"] = _raw(model)
    return msgspec.json.encode(fields)


def changes(virtual: VirtualModel | None, model: str, given: Collection[str]) -> dict[str, bytes | None]:
    """What `rewrite` makes of the fields of a request that has those named `given`, but for the system text: values as
    JSON, None for a field that goes."""
    changed: dict[str, bytes | None] = {}
    if virtual is not None:
        changed |= dict.fromkeys(virtual.strip)
        missing = {name: value for name, value in virtual.defaults.items() if name not in given or name in changed}
        changed |= {name: msgspec.json.encode(value) for name, value in (missing | virtual.set).items()}
    return changed | {"model": msgspec.json.encode(model)}


def check_form(virtual: VirtualModel | None) -> None:
    """Raise ShoalError 400 `virtual_not_for_forms` if a virtual model cannot be asked with a form."""
    if virtual is not None and (virtual.set or virtual.strip):
        raise ShoalError(
            f"The model {virtual.name!r} sets or strips fields, which is not possible in a form; name "
            f"{virtual.model!r}, for which it stands.",
            code="virtual_not_for_forms",
            param="model",
        )


def rewrite_target(target: str, model: str) -> str:
    """A request target with `model` for every `model` in its query, as realtime's websockets have it."""
    path, mark, query = target.partition("?")
    if "model" not in query:
        return target
    pairs = [
        f"model={quote(model, safe='')}" if unquote_plus(pair.partition("=")[0]) == "model" else pair
        for pair in query.split("&")
    ]
    return path + mark + "&".join(pairs)


class _Message(msgspec.Struct, gc=False):
    role: msgspec.Raw = msgspec.Raw(b"")


_MESSAGES_OF = msgspec.json.Decoder(list[_Message])


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _put_system(fields: dict[str, msgspec.Raw], path: str, system: str) -> None:
    if path in CHAT:
        messages = fields.get("messages")
        roles = None if messages is None else _roles(messages)
        if messages is not None and roles is not None and not any(role in SYSTEM_ROLES for role in roles):
            first = msgspec.json.encode({"role": "system", "content": system})
            fields["messages"] = msgspec.Raw(b"[" + first + (b"," if roles else b"") + bytes(messages)[1:])
    elif path in MESSAGES:
        if _is_missing(fields, "system"):
            fields["system"] = _raw(system)
    elif path == "/v1/responses":
        said = _roles(fields["input"]) if "input" in fields else None
        if _is_missing(fields, "instructions") and not any(role in SYSTEM_ROLES for role in said or ()):
            fields["instructions"] = _raw(system)


def _roles(messages: msgspec.Raw) -> list[bytes] | None:
    """Who speaks in each message, as JSON; None for what are not messages."""
    try:
        return [bytes(message.role) for message in _MESSAGES_OF.decode(messages)]
    except (ValueError, RecursionError):
        return None


def _is_missing(fields: dict[str, msgspec.Raw], name: str) -> bool:
    return name not in fields or bytes(fields[name]) == b"null"


def _listed(names: list[str]) -> str:
    if not names:
        return "No model exists yet; add one with `shoal models add`."
    more = f" and {len(names) - NAMES_SHOWN} more (see /v1/models)" if len(names) > NAMES_SHOWN else ""
    return f"Known models: {', '.join(names[:NAMES_SHOWN])}{more}."
