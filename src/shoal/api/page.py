"""The web page and the API's reference: static files, with headers that allow nothing else."""

from __future__ import annotations

import re

from fastapi import FastAPI, HTTPException, Request, Response

from shoal.api.page_files import PageFile, PageFiles
from shoal.dashboard import STATIC

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Scripts, styles, pictures and connections of this server alone; nothing inline, nothing evaluated, no frames.
Pictures may also be `data:` URLs, which fetch nothing: the playground shows what people add to their prompts."""
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_RELEASED = re.compile(r"([0-9a-f]{16})/(.+)")


def mount(app: FastAPI) -> None:
    """Serve the page at `/`, the API's reference at `/api/docs`, and their files below `/static`, compressed for
    browsers that take them so."""
    files = PageFiles(STATIC)

    @app.api_route("/static/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def static(path: str, request: Request) -> Response:
        released = _RELEASED.fullmatch(path)
        file, lasting = files.released(*released.groups()) if released else (files.get(path), False)
        if file is None:
            raise HTTPException(404)
        return _answer(request, file, lasting=lasting)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(request, files.index())

    @app.api_route("/api/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def reference(request: Request) -> Response:
        file = files.get("reference.html")
        assert file is not None
        return _answer(request, file)


def _answer(request: Request, file: PageFile, *, lasting: bool = False) -> Response:
    headers = {**_HEADERS, "etag": file.etag, "vary": "accept-encoding"}
    if lasting:
        headers["cache-control"] = "max-age=31536000, immutable"
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    body = file.body
    if file.zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["content-encoding"] = file.zipped, "gzip"
    return Response(body, headers={**headers, "content-type": file.type})
