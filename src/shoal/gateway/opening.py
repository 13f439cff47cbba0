"""What a request begins, by its head: an exchange with an engine, with the controller, or with the relay alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.errors import ShoalError, is_anthropics
from shoal.gateway import heads
from shoal.gateway.administration import Administration, Told
from shoal.gateway.comments import Commented
from shoal.gateway.exchange import Exchange
from shoal.gateway.http1 import Kind, Place, RequestHead
from shoal.gateway.inference import Inference
from shoal.gateway.local import model_list, model_named
from shoal.gateway.manner import Manner, manner_of
from shoal.gateway.server import ClientConnection
from shoal.gateway.uploads import Upload

if TYPE_CHECKING:
    from shoal.gateway.relay_native import NativeRelay


def place_of(head: RequestHead) -> Place:
    """Where a request with this head is to go. Raises ShoalError 400 `invalid_target`."""
    given = head.target.decode("latin-1")
    target = heads.origin_form(given)
    path = heads.path_of(target)
    kind: Kind = "other"
    if path == "/v1/models" or heads.model_in_path(path) is not None:
        kind = "models"
    elif heads.is_inference(path):
        kind = "inference"
    straight = target == given and b"host" in head.fields
    place = head.shared.place = Place(target, path, kind, straight, is_anthropics(path))
    return place


def infer(
    relay: NativeRelay, connection: ClientConnection, head: RequestHead, place: Place, manner: Manner
) -> Exchange:
    """Begin one with an engine. Raises ShoalError to refuse it."""
    if manner.origin is not None and (preflight := _for_web_page(relay, connection, head, manner.origin)) is not None:
        return preflight
    if head.upgrade and not manner.websocket:
        head.upgrade = False  # a server may ignore it (RFC 9110, section 7.8)
    make = Upload if manner.form else Commented if manner.comments else Inference
    inference = make(relay, connection, head, place, manner)
    relay.requests[inference.id] = inference
    connection.extra["x-request-id"] = inference.id
    if place.anthropic:
        connection.extra["request-id"] = inference.id
    try:
        inference.identify()
    except ShoalError as error:
        inference.on_refused(error)
        raise
    return inference


def administer(relay: NativeRelay, connection: ClientConnection, head: RequestHead, place: Place) -> Exchange:
    """Begin one with the controller. Raises ShoalError to refuse it."""
    if head.upgrade and head.fields.get(b"upgrade", b"").lower() == b"websocket":
        raise ShoalError(
            "The controller speaks no websockets; use the HTTP endpoints.",
            status=501,
            code="websocket_not_supported",
        )
    errand = Administration(relay, connection, head, place.target, place.path)
    relay.errands.add(errand)
    return errand


def list_models(relay: NativeRelay, connection: ClientConnection, head: RequestHead, place: Place) -> Exchange:
    """Answer what models there are. Raises ShoalError to refuse it."""
    origin = head.fields.get(b"origin")
    if origin is not None and (preflight := _for_web_page(relay, connection, head, origin)) is not None:
        return preflight
    if head.method not in (b"GET", b"HEAD"):
        raise ShoalError(
            f"{head.method.decode('latin-1')} is not possible here; models are changed under /api/v1/models.",
            status=405,
            code="method_not_allowed",
            headers={"Allow": "GET, HEAD"},
        )
    key = relay.keyring.bearer(manner_of(head).token, relay.wall)
    visible = relay.keyring.may_see(key)
    model = heads.model_in_path(place.path)
    body = model_list(relay.routes, visible) if model is None else model_named(relay.routes, model, visible)
    return Told(connection, head, 200, body, connection.extra)


def _for_web_page(relay: NativeRelay, connection: ClientConnection, head: RequestHead, origin: bytes) -> Told | None:
    """Have a web page of this origin read the answer, if it may; what a preflight is told."""
    connection.extra = relay.cors.headers(origin)
    if head.method == b"OPTIONS" and b"access-control-request-method" in head.fields:
        return Told(connection, head, *relay.cors.preflight(origin))
    return None
