"""Processes that a supervisor keeps running: started again whenever they end, and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
CALM = 30.0
"""Seconds of life after which a child's earlier crashes are forgotten."""

libc = ctypes.CDLL(None, use_errno=True)
_log = logging.getLogger("shoal.supervisor")


class Child:
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


def popen(argv: list[str], fds: tuple[int, ...], blocked: frozenset[int] = frozenset()) -> subprocess.Popen[bytes]:
    """Start a process that gets the descriptors `fds` and dies with this one. It starts with the signals `blocked`
    held back. Raises OSError.
    """
    parent = os.getpid()

    def die_with_supervisor() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
