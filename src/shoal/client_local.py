"""The way to a Shoal on this machine that asks for a sign-in: its controller's own socket, for who may open that.

Shoal tells a client on this machine where the socket is when it refuses one that is not signed in. So nothing has to be
found, and nothing that opens anything is sent: whose socket it is says the file system. A socket that is not this
user's, in a folder that others may enter, is left alone, whoever names it; and so is one of another Shoal than the one
that was asked, which may be on another machine behind a forwarded port (`introduction.py`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import httpx2

from shoal.introduction import SOCKET_HEADER, Introduction

_INFERENCE = "/v1/"


class LocalTransport(httpx2.BaseTransport):
    """Asks at the public port; where that refuses for want of a sign-in, at the controller's socket, from then on."""

    def __init__(self, public: httpx2.BaseTransport) -> None:
        self._public = public
        self._own: httpx2.BaseTransport | None = None
        self._socket = Path()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The answer, from wherever it comes."""
        if request.url.path.startswith(_INFERENCE) or "authorization" in request.headers:
            return self._public.handle_request(request)
        if self._own is not None and is_ours(self._socket):
            with contextlib.suppress(httpx2.ConnectError):  # the controller is away; the relay says so
                return self._own.handle_request(_plain(request))
        self._leave()
        response = self._public.handle_request(request)
        told = Introduction.parse(response.headers.get(SOCKET_HEADER, ""))
        if response.status_code != 401 or told is None or not is_ours(told.socket) or not told.is_kept():
            return response
        response.close()
        self._own, self._socket = httpx2.HTTPTransport(uds=str(told.socket), trust_env=False), told.socket
        return self._own.handle_request(_plain(request))

    def close(self) -> None:
        """Close the connections."""
        self._leave()
        self._public.close()

    def _leave(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None


def is_ours(path: Path) -> bool:
    """Whether this is a socket of this user's, where nobody else could have put one."""
    try:
        socket, folder = path.lstat(), path.parent.lstat()
    except (OSError, ValueError):
        return False
    mine = socket.st_uid == folder.st_uid == os.getuid()
    return mine and stat.S_ISSOCK(socket.st_mode) and stat.S_ISDIR(folder.st_mode) and not folder.st_mode & 0o077


def _plain(request: httpx2.Request) -> httpx2.Request:
    """The same request without TLS, which the socket does not speak."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(scheme="http"),
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )
