"""The FastAPI application: its routes, its guard and its one error shape."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shoal import __version__
from shoal.api import (
    environments,
    events,
    fit,
    folders,
    history,
    instances,
    keys,
    models,
    moves,
    orphans,
    page,
    presets,
    profiles,
    requests,
    session,
    system,
    traffic,
    usage,
    virtual_models,
)
from shoal.api.guard import Guard
from shoal.api.threads import Threads
from shoal.errors import ShoalError, error_body

if TYPE_CHECKING:
    from shoal.controller import Controller

_log = logging.getLogger(__name__)


def make_app(controller: Controller) -> FastAPI:
    """The application for one controller."""
    app = FastAPI(
        title="Shoal",
        version=__version__,
        description="Load, unload and watch the models of a Shoal. Inference is at /v1, in OpenAI's shape.",
        docs_url=None,  # a page of our own: that of FastAPI runs a script of another server beside an admin's cookie
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.controller = controller
    app.state.folder_threads = Threads(folders.THREADS, folders.PATIENCE)
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
        session,
        usage,
        requests,
        traffic,
        history,
        system,
        environments,
        events,
    ):
        app.include_router(module.router)
    page.mount(app)
    app.add_exception_handler(ShoalError, _shoal_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    app.add_middleware(Guard, controller=controller)
    return app


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
    code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status_code, "http_error")
    return JSONResponse(
        error_body(message, status=error.status_code, code=code), error.status_code, headers=error.headers
    )


def _fault(request: Request, error: Exception) -> JSONResponse:
    _log.error("while answering %s %s", request.method, request.url.path, exc_info=error)
    message = "Shoal has met a fault of its own; its log has the details. Please report it."
    return JSONResponse(error_body(message, status=500, code="internal_error"), 500)
