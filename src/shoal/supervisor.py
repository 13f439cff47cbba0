"""`shoal serve`: owns the public port, and keeps one controller, the relays and one memory broker running.

The supervisor holds the listening sockets, one for each relay, so a relay that dies loses no connection that waits to
be accepted, and it is the parent that orphaned engines fall to and are reaped by. If it is killed, its children die
with it, engines live on, and the next `shoal serve` takes them back.

The broker is no exception: engines that live on without a relay get no requests, so they need no more memory than they
have, and they tell the next broker on the same socket what that is. A second one beside an old one, with books of its
own, is what must never be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from shoal.children import Child, libc, popen
from shoal.config import Handover
from shoal.errors import ShoalError
from shoal.fleet.devices import Devices
from shoal.gateway import sharing
from shoal.gateway.relay import RelayConfig
from shoal.paths import Paths, find_paths, hold, make_runtime
from shoal.settings import Settings

PR_SET_CHILD_SUBREAPER = 36
BACKLOG = 2048
RELAY_END = 30.0
"""Seconds that relays may take to stop beyond `drain_timeout`: for the ends of requests, usage and traces."""
BROKER_GRACE = 5.0
CONTROLLER_GRACE = 30.0
"""Seconds that the controller may take to stop beyond what draining and ending engines takes."""
HELD_BACK = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Signals that wait until the controller can handle them: they would end one that has just been started."""

_log = logging.getLogger("shoal.supervisor")


class StartError(ShoalError):
    """`shoal serve` cannot start; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=409, code="cannot_start")


def listen(settings: Settings) -> list[socket.socket]:
    """The public sockets, one for each relay, all on one address: the kernel spreads connections over them.

    Raises StartError if the port is taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"host: {settings.host} is not an address of this machine: {error.strerror}") from None
    listeners: list[socket.socket] = []
    try:
        for number in range(settings.relay_workers):
            listener = socket.socket(family, kind, proto)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            if not number and settings.relay_workers > 1:
                # The first has the port for itself by now, and so no other Shoal has it; only then may others join.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                address = listener.getsockname()
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise StartError(
            f"port {settings.port} on {settings.host} cannot be used: {(error.strerror or '').lower()}; "
            "does another Shoal run there? take another with --port"
        ) from None
    return listeners


class Supervisor:
    """Runs until SIGTERM or SIGINT; a second one does not wait for running requests."""

    def __init__(
        self,
        handover: Handover,
        listeners: Sequence[socket.socket],
        paths: Paths,
        on_ready: Callable[[str], None],
        memory_limits: Mapping[str, str],
    ) -> None:
        self._handover = handover
        self._settings = handover.settings
        self._listeners = listeners
        self._address = listeners[0].getsockname()
        self._paths = paths
        self._on_ready = on_ready
        self._controller = Child("controller", self._start_controller)
        several = len(listeners) > 1
        self._limits = sharing.create() if several else None
        self._relays = tuple(
            Child(f"relay {number + 1}" if several else "relay", partial(self._start_relay, number, listener))
            for number, listener in enumerate(listeners)
        )
        self._needed = (self._controller, *self._relays)
        own = self._settings.memory_socket is None
        self._broker = Child("memory broker", self._start_broker) if own else None
        self._children = self._needed if self._broker is None else (self._broker, *self._needed)
        self._memory_limits = memory_limits
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._told = False
        self._ending: set[Child] = set()
        """Those that are not started again."""

    @property
    def url(self) -> str:
        """Where clients reach it."""
        host, port = self._address[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until told to stop; on return no process is left, engines included unless they are to be kept."""
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wake_r, wake_w = os.pipe()
        for fd in (wake_r, wake_w):
            os.set_blocking(fd, False)
        self._selector.register(wake_r, selectors.EVENT_READ)
        old_wakeup = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        old = {number: signal.signal(number, self._note_signal) for number in numbers}
        try:
            for child in self._children:
                self._launch(child)
            while not self._stop_asked():
                self._tend(wake_r)
            self._stop_relays(wake_r)
            self._stop_controller(wake_r)
            if self._broker is not None:  # last: engines that end give back what they have
                self._stop((self._broker,), wake_r, BROKER_GRACE)
        finally:
            for child in self._children:
                child.signal(signal.SIGKILL)
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in old.items():
                signal.signal(number, handler)
            os.close(wake_r)
            os.close(wake_w)
            if self._limits is not None:
                os.close(self._limits)
            self._selector.close()

    def _note_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)

    def _stop_asked(self) -> bool:
        asked = False
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                asked = True
            elif number == signal.SIGHUP:
                self._controller.signal(signal.SIGHUP)
        return asked

    def _stop_relays(self, wake: int) -> None:
        """Relays end before all others: the engines that their requests run at are there until then, and so is the
        controller, which stores what was used to the last request."""
        for listener in self._listeners:
            listener.close()  # the relays have theirs; once those are closed too, clients are refused and wait for none
        if self._controller.process is None:
            self._launch(self._controller)
        self._stop(self._relays, wake, self._settings.drain_timeout + RELAY_END)

    def _stop_controller(self, wake: int) -> None:
        """The controller ends the engines. One that is down just now, or dies over it, gets a successor for that."""
        grace = self._settings.drain_timeout + self._settings.stop_timeout + CONTROLLER_GRACE
        for _ in range(2):
            if self._controller.process is None:
                self._launch(self._controller)
            process = self._controller.process
            self._stop((self._controller,), wake, grace)
            if process is not None and process.returncode == 0:
                return
        _log.error("the controller could not end in order; engines may still run, the next `shoal serve` finds them")

    def _stop(self, children: Sequence[Child], wake: int, grace: float) -> None:
        """End them, all at once; the others are kept running."""
        self._ending.update(children)
        for child in children:
            child.due = None
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while running := [child for child in children if child.process is not None]:
            if time.monotonic() >= deadline:
                for child in running:
                    child.signal(signal.SIGKILL)
            self._tend(wake, limit=0.5)
            if self._stop_asked():  # again: more urgent
                for child in running:
                    child.signal(signal.SIGTERM)

    def _tend(self, wake: int, limit: float | None = None) -> None:
        """Wait for something to happen, at most `limit` seconds, and start again what has ended."""
        self._wait(wake, limit)
        self._reap()
        for child in self._children:
            if child.due is not None and child.due <= time.monotonic():
                self._launch(child)

    def _wait(self, wake: int, limit: float | None = None) -> None:
        dues = [child.due - time.monotonic() for child in self._children if child.due is not None]
        timeout = max(0.0, min(dues)) if dues and limit is None else limit
        for key, _ in self._selector.select(timeout):
            if key.fd == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            else:
                child: Child = key.data
                child.ready = os.read(key.fd, 64).startswith(b"ready")
                child.served = child.served or child.ready
                self._unwatch(child)
        if not self._told and all(child.ready for child in self._needed):
            self._told = True
            self._on_ready(self.url)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    self._unwatch(child)
                    code = child.ended(status)
                    if self._limits is not None and child in self._relays:
                        sharing.forget(self._limits, self._relays.index(child), len(self._relays))
                    if child not in self._ending:
                        child.restart(code)

    def _launch(self, child: Child) -> None:
        again = child is self._controller and child.served
        if again and self._broker is not None and not self._paths.memory_socket.exists():
            # The runtime folder was removed, which is why the controller starts anew. Nobody can reach that broker.
            self._broker.signal(signal.SIGTERM)
        if child.start():
            self._selector.register(child.notify, selectors.EVENT_READ, child)

    def _unwatch(self, child: Child) -> None:
        if child.notify >= 0:
            self._selector.unregister(child.notify)
            os.close(child.notify)
            child.notify = -1

    def _start_controller(self, notify: int, again: bool) -> subprocess.Popen[bytes]:
        # Not an environment variable: the kernel takes no longer ones than 128 KiB, which 300 models fill.
        settings = os.memfd_create("shoal-settings")
        try:
            with os.fdopen(os.dup(settings), "w", encoding="utf-8") as file:
                file.write(self._handover.dump())
            os.lseek(settings, 0, os.SEEK_SET)
            argv = [sys.executable, "-m", "shoal.controller"]
            argv += ["--settings-fd", str(settings), "--notify-fd", str(notify)]
            if again:
                argv.append("--again")
            return popen(argv, (settings, notify), HELD_BACK)
        finally:
            os.close(settings)

    def _start_relay(self, number: int, listener: socket.socket, notify: int, _again: bool) -> subprocess.Popen[bytes]:
        fd = listener.fileno()
        settings = self._settings
        inherited: tuple[int, ...] = (fd, notify)
        given = relay_settings(settings)
        if self._limits is not None:
            inherited += (self._limits,)
            given |= {"worker": number, "limits_fd": self._limits}
        argv = [
            *(sys.executable, "-m", "shoal.gateway", "--fd", str(fd), "--notify-fd", str(notify)),
            *("--controller", str(self._paths.controller_socket)),
            *("--relay-socket", str(self._paths.relay_socket)),
            *("--table", str(self._paths.routing_table)),
            *("--settings", json.dumps(given)),
            *("--relay", settings.relay, "--grace", str(settings.drain_timeout)),
        ]
        return popen(argv, inherited)

    def _start_broker(self, _notify: int, _again: bool) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "shoal.cli", "memory", "broker", "--socket", str(self._paths.memory_socket)]
        argv += ["--headroom", self._settings.memory_headroom]
        for key, amount in self._memory_limits.items():
            argv += ["--limit", f"{key}={amount}"]
        return popen(argv, ())


def relay_settings(settings: Settings) -> dict[str, object]:
    """The part of the settings that relays take, by the names that `RelayConfig` has for them."""
    shared = {field.name for field in dataclasses.fields(RelayConfig)} & Settings.model_fields.keys()
    return settings.model_dump(mode="json", include=shared)


def find_limits(settings: Settings) -> dict[str, str]:
    """`memory_limits` by the names that devices have at the broker. Raises StartError for one that is not there."""
    if not settings.memory_limits:
        return {}
    reader = Devices(settings.simulated_devices)
    try:
        devices = reader.read()
    finally:
        reader.close()
    names = {name: device.key for device in devices for name in (device.id, device.key)}
    for name in settings.memory_limits:
        if name not in names:
            known = ", ".join(device.id for device in devices)
            raise StartError(f"memory_limits: there is no device {name}; this machine has {known}")
    return {names[name]: amount for name, amount in settings.memory_limits.items()}


def require_tracing(settings: Settings) -> None:
    """Raise StartError if traces are wanted and what sends them is not installed."""
    if settings.otlp_endpoint is None:
        return
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        found = found and importlib.util.find_spec("opentelemetry.sdk.trace.export")
    except ImportError:  # a package that these are in
        found = None
    if found is None:
        raise StartError(
            "otlp_endpoint: the packages that send traces are not installed; install them with "
            f"`{sys.executable} -m pip install 'shoal[tracing]'`, or leave the setting out"
        )


def refuse_unguarded(handover: Handover, paths: Paths) -> None:
    """Raise StartError if other machines could connect and no key could be asked of them. Changes nothing."""
    settings = handover.settings
    if not settings.exposed:
        return
    from shoal.fleet.keys import any_living
    from shoal.store.peek import peek_keys

    if any_living(peek_keys(settings.database_url, paths.database), time.time()):
        return
    where = f" --config {handover.config_file}" if handover.config_file is not None else ""
    if handover.flags.get("state_dir") is not None:
        where += f" --state-dir {handover.flags['state_dir']}"
    raise StartError(
        f"host: {settings.host} can be reached from other machines, and there is no API key to ask them for; "
        f"make one first with `shoal keys create NAME{where}`, listen on 127.0.0.1, or say --insecure"
    )


def serve(handover: Handover, on_ready: Callable[[str], None]) -> None:
    """Run `shoal serve` in this process. Raises ShoalError if it cannot start, touching nothing."""
    paths = find_paths(handover.settings)
    refuse_unguarded(handover, paths)
    require_tracing(handover.settings)
    limits = find_limits(handover.settings)
    make_runtime(paths)
    with hold(paths), contextlib.ExitStack() as sockets:
        listeners = [sockets.enter_context(listener) for listener in listen(handover.settings)]
        settings = handover.settings.model_copy(update={"port": listeners[0].getsockname()[1]})
        # A table left by an earlier run would name engines that may be gone.
        paths.routing_table.unlink(missing_ok=True)
        Supervisor(dataclasses.replace(handover, settings=settings), listeners, paths, on_ready, limits).run()
