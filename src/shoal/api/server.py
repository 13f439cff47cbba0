"""Serving the admin API on the controller's Unix socket; the relay hands it every path that is not inference."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import uvicorn

from shoal.api.app import make_app

if TYPE_CHECKING:
    from shoal.controller import Controller

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield  # the controller handles signals


@contextlib.asynccontextmanager
async def serve_api(controller: Controller) -> AsyncIterator[None]:
    """Serve while the block runs."""
    path = controller.paths.controller_socket
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    try:
        controller.introduction.keep()
    except OSError as error:  # a full disk must not stop the start
        _log.warning("the command line on this machine has to sign in: %s: %s", controller.introduction.file, error)
    config = uvicorn.Config(
        make_app(controller),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task
        controller.introduction.forget()
        path.unlink(missing_ok=True)
