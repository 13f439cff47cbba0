"""`shoal serve`: owns the public port, and keeps one controller, one relay and one memory broker running.

The supervisor holds the listening socket, so a relay that dies loses no connection that waits to be accepted, and it is
the parent that orphaned engines fall to and are reaped by. If it is killed, its children die with it, engines live on,
and the next `shoal serve` takes them back.

The broker is no exception: engines that live on without a relay get no requests, so they need no more memory than they
have, and they tell the next broker on the same socket what that is. A second one beside an old one, with books of its
own, is what must never be.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from shoal.config import Handover
from shoal.errors import ShoalError
from shoal.fleet.devices import Devices
from shoal.gateway.relay import RelayConfig
from shoal.paths import Paths, find_paths, hold, make_runtime
from shoal.settings import Settings

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
BACKLOG = 2048
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
CALM = 30.0
"""Seconds of life after which a child's earlier crashes are forgotten."""
RELAY_GRACE = 10.0
BROKER_GRACE = 5.0
CONTROLLER_GRACE = 30.0
"""Seconds that the controller may take to stop beyond what draining and ending engines takes."""
HELD_BACK = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Signals that wait until the controller can handle them: they would end one that has just been started."""

_libc = ctypes.CDLL(None, use_errno=True)
_log = logging.getLogger("shoal.supervisor")


class StartError(ShoalError):
    """`shoal serve` cannot start; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=409, code="cannot_start")


def listen(settings: Settings) -> socket.socket:
    """The public socket. Raises StartError if the port is taken."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"host: {settings.host} is not an address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind, proto)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"port {settings.port} on {settings.host} cannot be used: {(error.strerror or '').lower()}; "
            "does another Shoal run there? take another with --port"
        ) from None
    return listener


class _Child:
    """One process that is started again whenever it ends."""

    def __init__(self, name: str, start: Callable[[int, bool], subprocess.Popen[bytes]]) -> None:
        self.name = name
        self._start = start
        self.process: subprocess.Popen[bytes] | None = None
        self.notify = -1
        self.ready = False
        self.served = False
        self._started_at = 0.0
        self._delay = FIRST_DELAY
        self.due: float | None = 0.0

    def start(self) -> bool:
        """Start it; `notify` becomes readable once it serves. False if that has to be tried again later."""
        self._started_at = time.monotonic()
        self.due = None
        self.ready = False
        read, write = os.pipe()
        try:
            self.process = self._start(write, self.served)
        except OSError as error:  # the machine is out of processes or memory; that may pass
            os.close(read)
            self._again(f"cannot be started ({error.strerror})")
            return False
        finally:
            os.close(write)
        self.notify = read
        return True

    def ended(self, status: int) -> int:
        """It has ended; its exit code."""
        code = os.waitstatus_to_exitcode(status)
        if self.process is not None:
            self.process.returncode = code
        self.process = None
        self.ready = False
        return code

    def restart(self, code: int) -> None:
        """It is to be started again, after a delay that grows."""
        if time.monotonic() - self._started_at > CALM:
            self._delay = FIRST_DELAY
        self._again(f"ended ({code})")

    def _again(self, what: str) -> None:
        _log.warning("the %s %s; starting it again in %.1f s", self.name, what, self._delay)
        self.due = time.monotonic() + self._delay
        self._delay = min(LONGEST_DELAY, self._delay * 2)

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Supervisor:
    """Runs until SIGTERM or SIGINT; a second one does not wait for running requests."""

    def __init__(
        self,
        handover: Handover,
        listener: socket.socket,
        paths: Paths,
        on_ready: Callable[[str], None],
        memory_limits: Mapping[str, str],
    ) -> None:
        self._handover = handover
        self._settings = handover.settings
        self._listener = listener
        self._paths = paths
        self._on_ready = on_ready
        self._controller = _Child("controller", self._start_controller)
        self._relay = _Child("relay", self._start_relay)
        self._needed = (self._controller, self._relay)
        own = self._settings.memory_socket is None
        self._broker = _Child("memory broker", self._start_broker) if own else None
        self._children = self._needed if self._broker is None else (self._broker, *self._needed)
        self._memory_limits = memory_limits
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._told = False

    @property
    def url(self) -> str:
        """Where clients reach it."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until told to stop; on return no process is left, engines included unless they are to be kept."""
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
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
                self._wait(wake_r)
                self._reap()
                for child in self._children:
                    if child.due is not None and child.due <= time.monotonic():
                        self._launch(child)
            self._stop_controller(wake_r)
            self._stop(self._relay, wake_r, RELAY_GRACE)
            if self._broker is not None:  # last: engines that end give back what they have
                self._stop(self._broker, wake_r, BROKER_GRACE)
        finally:
            for child in self._children:
                child.signal(signal.SIGKILL)
            signal.set_wakeup_fd(old_wakeup)
            for number, handler in old.items():
                signal.signal(number, handler)
            os.close(wake_r)
            os.close(wake_w)
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

    def _stop_controller(self, wake: int) -> None:
        """The controller ends the engines. One that is down just now, or dies over it, gets a successor for that."""
        grace = self._settings.drain_timeout + self._settings.stop_timeout + CONTROLLER_GRACE
        for _ in range(2):
            if self._controller.process is None:
                self._launch(self._controller)
            if self._stop(self._controller, wake, grace) == 0:
                return
        _log.error("the controller could not end in order; engines may still run, the next `shoal serve` finds them")

    def _stop(self, child: _Child, wake: int, grace: float) -> int | None:
        """End it; its exit code, None if it did not run."""
        child.due = None
        child.signal(signal.SIGTERM)
        process = child.process
        deadline = time.monotonic() + grace
        while child.process is not None:
            if time.monotonic() >= deadline:
                child.signal(signal.SIGKILL)
            self._wait(wake, limit=0.5)
            if self._stop_asked():
                child.signal(signal.SIGTERM)  # asked again: more urgent
            self._reap(restart=False)
        return None if process is None else process.returncode

    def _wait(self, wake: int, limit: float | None = None) -> None:
        dues = [child.due - time.monotonic() for child in self._children if child.due is not None]
        timeout = max(0.0, min(dues)) if dues and limit is None else limit
        for key, _ in self._selector.select(timeout):
            if key.fd == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            else:
                child: _Child = key.data
                child.ready = os.read(key.fd, 64).startswith(b"ready")
                child.served = child.served or child.ready
                self._unwatch(child)
        if not self._told and all(child.ready for child in self._needed):
            self._told = True
            self._on_ready(self.url)

    def _reap(self, *, restart: bool = True) -> None:
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
                    if restart:
                        child.restart(code)

    def _launch(self, child: _Child) -> None:
        again = child is self._controller and child.served
        if again and self._broker is not None and not self._paths.memory_socket.exists():
            # The runtime folder was removed, which is why the controller starts anew. Nobody can reach that broker.
            self._broker.signal(signal.SIGTERM)
        if child.start():
            self._selector.register(child.notify, selectors.EVENT_READ, child)

    def _unwatch(self, child: _Child) -> None:
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
            return _popen(argv, (settings, notify), HELD_BACK)
        finally:
            os.close(settings)

    def _start_relay(self, notify: int, _again: bool) -> subprocess.Popen[bytes]:
        fd = self._listener.fileno()
        settings = self._settings
        argv = [
            *(sys.executable, "-m", "shoal.gateway", "--fd", str(fd), "--notify-fd", str(notify)),
            *("--controller", str(self._paths.controller_socket)),
            *("--relay-socket", str(self._paths.relay_socket)),
            *("--table", str(self._paths.routing_table)),
            *("--settings", json.dumps(relay_settings(settings)), "--relay", settings.relay),
        ]
        return _popen(argv, (fd, notify))

    def _start_broker(self, _notify: int, _again: bool) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "shoal.cli", "memory", "broker", "--socket", str(self._paths.memory_socket)]
        argv += ["--headroom", self._settings.memory_headroom]
        for key, amount in self._memory_limits.items():
            argv += ["--limit", f"{key}={amount}"]
        return _popen(argv, ())


def relay_settings(settings: Settings) -> dict[str, object]:
    """The part of the settings that relays take, by the names that `RelayConfig` has for them."""
    shared = {field.name for field in dataclasses.fields(RelayConfig)} & settings.model_fields.keys()
    return {**settings.model_dump(mode="json", include=shared), "remote_admin": settings.insecure}


def _popen(argv: list[str], fds: tuple[int, ...], blocked: frozenset[int] = frozenset()) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def die_with_supervisor() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    return subprocess.Popen(
        argv,
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        # Ctrl-C in a terminal reaches the whole foreground group; only the supervisor is to act on it.
        start_new_session=True,
        preexec_fn=die_with_supervisor,
    )


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
    limits = find_limits(handover.settings)
    make_runtime(paths)
    with hold(paths), listen(handover.settings) as listener:
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        settings = handover.settings.model_copy(update={"port": port})
        # A table left by an earlier run would name engines that may be gone.
        paths.routing_table.unlink(missing_ok=True)
        Supervisor(dataclasses.replace(handover, settings=settings), listener, paths, on_ready, limits).run()
