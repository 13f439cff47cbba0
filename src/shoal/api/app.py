"""The FastAPI application: its routes, its one error shape, and what it refuses from browsers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal import __version__
from shoal.api import (
    events,
    fit,
    folders,
    instances,
    keys,
    models,
    moves,
    orphans,
    page,
    presets,
    profiles,
    requests,
    system,
    traffic,
    usage,
    virtual_models,
)
from shoal.errors import ShoalError, error_body
from shoal.settings import is_loopback

if TYPE_CHECKING:
    from shoal.controller import Controller

_log = logging.getLogger(__name__)


def make_app(controller: Controller) -> FastAPI:
    """The application for one controller."""
    app = FastAPI(
        title="Shoal",
        version=__version__,
        description="Load, unload and watch the models of a Shoal. Inference is at /v1, in OpenAI's shape.",
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.controller = controller
    for module in (
        models,
        moves,
        fit,
        folders,
        orphans,
        presets,
        profiles,
        virtual_models,
        instances,
        keys,
        usage,
        requests,
        traffic,
        system,
        events,
    ):
        app.include_router(module.router)
    page.mount(app)
    app.add_exception_handler(ShoalError, _shoal_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    app.add_middleware(_Guard, controller=controller)
    return app


class _Guard:
    """Keeps other web pages out, and says what could not be saved.

    A page on another origin must not act through the browser of somebody who runs Shoal, and a name that was made to
    point at this machine (DNS rebinding) must not be a way in. Plain ASGI: it touches every event of a stream.
    """

    def __init__(self, app: ASGIApp, controller: Controller) -> None:
        self._app = app
        self._controller = controller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        reading = scope["method"] in ("GET", "HEAD", "OPTIONS")
        name = _host_of(host)
        if is_loopback(self._controller.settings.host) and name and not is_loopback(name):
            await _refuse(f"this Shoal answers on loopback only, not as {name}", "wrong_host", scope, receive, send)
            return
        if not reading and origin and origin.partition("://")[2] != host:
            await _refuse(f"{origin} may not change this Shoal", "wrong_origin", scope, receive, send)
            return

        async def send_with_warning(message: Any) -> None:
            if message["type"] == "http.response.start" and not reading:
                problem = self._controller.store.problem
                if problem is not None:
                    message["headers"] = [
                        *message["headers"],
                        (b"x-shoal-warning", f"not saved: {' '.join(problem.split())}".encode("latin-1", "replace")),
                    ]
            await send(message)

        await self._app(scope, receive, send_with_warning)


def _host_of(header: str) -> str:
    """The name in a Host header; what cannot be read is given back as it is, and so counts as no loopback."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header


async def _refuse(message: str, code: str, scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse(error_body(message, status=403, code=code), 403)
    await response(scope, receive, send)


def _shoal_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ShoalError)
    return JSONResponse(error.body(), error.status, headers=error.headers)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = []
    sent = request.headers.get("content-type", "")
    if request.method in ("POST", "PATCH") and "json" not in sent:
        faults.append(f"the body has to be JSON, with content-type: application/json{f', not {sent}' if sent else ''}")
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"] if part not in ("body", "query", "path"))
        text = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{where}: {text}" if where else text)
    return JSONResponse(error_body("; ".join(faults), status=400, code="invalid_request"), 400)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}; /api/docs lists the admin API, /v1/models the models"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return JSONResponse(
        error_body(message, status=error.status_code, code=code), error.status_code, headers=error.headers
    )


def _fault(request: Request, error: Exception) -> JSONResponse:
    _log.error("while answering %s %s", request.method, request.url.path, exc_info=error)
    message = "Shoal has met a fault of its own; its log has the details. Please report it."
    return JSONResponse(error_body(message, status=500, code="internal_error"), 500)
