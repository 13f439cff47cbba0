"""The process: bind, start, listen, serve, and end when asked."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from shoal.engines.simulated.api import Api, log
from shoal.engines.simulated.http import Connection
from shoal.engines.simulated.options import Options
from shoal.engines.simulated.start import StartError, join, report, say, start

if TYPE_CHECKING:
    from shoal.memory.elastic import ElasticTerms

_BACKLOG = 2048
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(900)"
)


def run(options: Options, elastic: ElasticTerms | None = None) -> int:
    """Serve until a signal; the process's exit code. `elastic`: what the engine was told of its memory."""
    try:
        listener = _bind(options)
    except OSError as error:
        # vLLM ends with this line when its port or socket is taken.
        sys.stderr.write(f"OSError: [Errno {error.errno}] {error.strerror or error}\n")
        return 1
    try:
        return asyncio.run(_main(options, listener, elastic))
    finally:
        listener.close()
        if options.uds is not None:
            with suppress(FileNotFoundError):
                os.unlink(options.uds)  # noqa: PTH108 - pathlib would cost the start


async def _main(options: Options, listener: socket.socket, elastic: ElasticTerms | None) -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    ignore = "ignore-sigterm" in options.fail
    loop.add_signal_handler(signal.SIGTERM, (lambda: log("SIGTERM is ignored")) if ignore else asked.set)
    loop.add_signal_handler(signal.SIGINT, asked.set)
    if options.spawn_child:
        _spawn_child()
    work = loop.create_task(_serve(options, listener, elastic))
    stop = loop.create_task(asked.wait())
    await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await asyncio.sleep(options.slow_shutdown)
        return 0
    stop.cancel()
    try:
        work.result()
    except StartError as error:
        report(error)
    return 1


async def _serve(options: Options, listener: socket.socket, elastic: ElasticTerms | None) -> None:
    """Start, then answer until cancelled. Raises StartError."""
    api = Api(options, _crash, elastic)
    try:
        await start(options)
        if api.elastic is not None:
            await join(api.elastic)
        await _answer(api, options, listener)
    finally:
        if api.elastic is not None:
            api.elastic.close()


async def _answer(api: Api, options: Options, listener: socket.socket) -> None:
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    say("APIServer", "entry.py", f"Starting vLLM server on {_where(options, listener)}")
    create = loop.create_unix_server if options.uds is not None else loop.create_server
    server = await create(lambda: Connection(api.handle, connections), sock=listener, backlog=_BACKLOG)
    say("APIServer", "launcher.py", "Application startup complete.")
    if options.crash_seconds is not None:
        loop.call_later(options.crash_seconds, _crash)
    try:
        await loop.create_future()
    finally:
        server.close()
        for connection in list(connections):
            connection.abort()


def _bind(options: Options) -> socket.socket:
    """The socket, bound but deaf until the start is over, as vLLM's is."""
    if options.uds is None:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        return listener
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(options.uds)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or _answers(options.uds):
            raise
        os.unlink(options.uds)  # noqa: PTH108 - left by a process that is gone
        listener.bind(options.uds)
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True


def _where(options: Options, listener: socket.socket) -> str:
    if options.uds is not None:
        return f"unix:{options.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _spawn_child() -> None:
    child = subprocess.Popen([sys.executable, "-c", _STUBBORN], start_new_session=True, stdout=subprocess.PIPE)
    if child.stdout is not None:
        child.stdout.readline()  # it ignores SIGTERM from here on
        child.stdout.close()
    log(f"child pid={child.pid}")


def _crash() -> None:
    sys.stderr.write('Traceback (most recent call last):\n  File "<simulated>", line 1, in run_engine_core\n')
    sys.stderr.write("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\n")
    sys.stderr.flush()
    os._exit(1)
