"""The process that stands over one engine, so that the engine outlives the controller and leaves nothing behind.

    python -I -S shim.py LAUNCH.json

It starts the engine in a session of its own, writes what the engine prints to a bounded log, reaps every descendant
(it is their subreaper), and records how the engine ended. SIGTERM ends the engine (SIGTERM to its group, SIGKILL after
the grace), SIGUSR1 kills it at once. It needs the standard library alone, and keeps serving when the disk is full:
what cannot be written is counted and said once there is room.

In the launch file's folder it keeps `lock` (held while it lives), `shim.json` (who runs) and `exit.json` (how it
ended).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
CHUNK = 65536
BEGIN = "[shoal] the engine starts"
"""The log's line before each start: what stands above it is of an earlier one."""

_libc = ctypes.CDLL(None, use_errno=True)


class Log:
    """`path` and `path.1`, together at most `limit` bytes; never blocks or fails the engine."""

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._half = max(4096, limit // 2)
        self._lost = 0
        self._fd = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append; what does not fit on the disk is lost, and said so later."""
        try:
            if self._fd < 0:
                self._open()
            elif self._size >= self._half:
                os.close(self._fd)
                self._fd = -1
                os.replace(self._path, self._path + ".1")
                self._open()
            if self._lost:
                note = f"[shoal] {self._lost} bytes of this log were lost: the disk did not take them\n".encode()
                os.write(self._fd, note)
                self._lost = 0
            written = os.write(self._fd, data)
            self._size += written
            self._lost += len(data) - written
        except OSError:
            self._lost += len(data)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size


class Shim:
    """One engine and its descendants."""

    def __init__(self, launch: dict[str, Any], folder: str) -> None:
        self._launch = launch
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # it may be moved while this runs
        self._log = Log(launch["log"], launch["log_bytes"])
        self._engine: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        self._asked: list[int] = []  # signals that were not acted on yet
        self._kill_at: float | None = None

    def run(self) -> None:
        """Start the engine and stay until it and all its descendants are gone."""
        wake_r, wake_w = os.pipe()
        for fd in (wake_r, wake_w):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        self._log.write(f"{BEGIN}\n".encode())
        try:
            self._start()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            why = getattr(error, "strerror", None) or error
            self._log.write(f"[shoal] {self._launch['argv'][0]} cannot be started: {why}\n".encode())
            self._write("exit.json", {"code": 127, "signal": None, "at": time.time()})
            return
        engine = self._engine
        assert engine is not None and engine.stdout is not None
        output = engine.stdout.fileno()
        os.set_blocking(output, False)
        selector = selectors.DefaultSelector()
        selector.register(output, selectors.EVENT_READ)
        selector.register(wake_r, selectors.EVENT_READ)
        while True:
            self._obey()
            for key, _ in selector.select(self._time_left()):
                if key.fd == wake_r:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_r, 4096)
                elif not self._pump(output):
                    selector.unregister(output)
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._kill_at = None
                self._signal_group(signal.SIGKILL)
            self._reap()
            if self._status is not None:
                break
        self._end_descendants()
        while self._pump(output):
            pass
        code = os.waitstatus_to_exitcode(self._status)
        self._write(
            "exit.json",
            {"code": code if code >= 0 else None, "signal": -code if code < 0 else None, "at": time.time()},
        )

    def _start(self) -> None:
        def die_with_shim() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        self._engine = subprocess.Popen(
            self._launch["argv"],
            env=self._launch["env"],
            cwd=self._launch["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_shim,
        )
        self._write("shim.json", {"shim": os.getpid(), "engine": self._engine.pid, "at": time.time()})

    def _on_signal(self, number: int, _frame: object) -> None:
        # Only noted: it may come while the engine is being started, when there is nobody to pass it on to yet.
        self._asked.append(number)

    def _obey(self) -> None:
        while self._asked:
            number = self._asked.pop(0)
            if number == signal.SIGTERM and self._kill_at is None:
                self._kill_at = time.monotonic() + self._launch["grace"]
                self._signal_group(signal.SIGTERM)
            elif number == signal.SIGUSR1:
                self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        # Until it is reaped the engine's pid cannot be given to somebody else.
        if self._engine is not None and self._status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._engine.pid, number)

    def _time_left(self) -> float | None:
        return None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())

    def _pump(self, fd: int) -> bool:
        """Move one piece of output to the log. False at its end, or when there is none now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return self._status is None
        if data:
            self._log.write(data)
        return bool(data)

    def _reap(self) -> None:
        assert self._engine is not None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._engine.pid:
                self._status = status
                self._engine.returncode = os.waitstatus_to_exitcode(status)

    def _end_descendants(self) -> None:
        """Kill whoever the engine left behind: its orphans are this process's children now."""
        deadline = time.monotonic() + 10
        while children := _children():
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            if time.monotonic() > deadline:
                self._log.write(f"[shoal] processes {children} cannot be ended\n".encode())
                return
            time.sleep(0.005)

    def _write(self, name: str, record: dict[str, Any]) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            fd = os.open(name + ".new", flags, 0o600, dir_fd=self._folder)
            with open(fd, "w", encoding="ascii") as file:
                json.dump(record, file)
            os.replace(name + ".new", name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            self._log.write(f"[shoal] {name} cannot be written: {error.strerror}\n".encode())


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


def main(path: str) -> None:
    """Run the launch file at `path`. Ends at once if another process already does."""
    folder = os.path.dirname(os.path.abspath(path))
    with open(path, encoding="utf-8") as file:
        launch = json.load(file)
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{folder} is already being run")
    _libc.prctl(PR_SET_NAME, b"shoal-shim", 0, 0, 0)
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        sys.exit("this kernel has no child subreapers; Shoal needs Linux 3.4 or newer")
    Shim(launch, folder).run()


if __name__ == "__main__":
    main(sys.argv[1])
