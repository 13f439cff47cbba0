"""Process groups of engines: start, end, find again, and prove whose they are.

A process is known by its pid and its start time together, and is signalled through a pidfd: a pid that was given to
somebody else is never hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.engines.base import Launch
from shoal.fleet import shim as shim_module
from shoal.fleet.procfs import (
    FLEET,
    GENERATIONS,
    INSTANCE,
    environ_of,
    folder_of,
    is_shim,
    marked,
    memory_of,
    parent_of,
    pids,
    session_of,
    shim_over,
    stat_of,
)
from shoal.fleet.state import Exit

RECORD = "instance.json"
"""Beside an engine's socket: what another controller needs to have the engine back."""
CLAIM = "claim.json"
"""Beside it too, where the engine was started by another fleet than the one that has it now: whose mark it has."""
# What an engine inherits. Everything else, secrets above all, stays with Shoal.
INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
INHERITED_PREFIXES = ("CUDA_", "HF_", "HUGGING_FACE_", "NCCL_", "NVIDIA_", "VLLM_", "XDG_")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of `environ` that an engine may see."""
    return {
        key: value
        for key, value in environ.items()
        if key in INHERITED or key in PROXIES or key.startswith(INHERITED_PREFIXES)
    }


@dataclass(frozen=True, slots=True)
class Found:
    """A process group of this fleet that lives although this process did not start it."""

    instance: str
    pid: int


class Processes:
    """The process groups of one fleet, in `folder`, a subfolder per instance.

    `on_exit(instance, exit)` is called from the event loop once a group is gone.
    """

    def __init__(
        self, folder: Path, fleet: str, *, log_bytes: int, grace: float, on_exit: Callable[[str, Exit], None]
    ) -> None:
        self._folder = folder
        self._fleet = fleet
        self._log_bytes = log_bytes
        self._grace = grace
        self._on_exit = on_exit
        self._groups: dict[str, tuple[int, int]] = {}  # the shim's pid, and a pidfd of it
        self._marks: dict[str, str] = {}  # the fleets that started what this one has taken over
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def socket(self, instance: str) -> Path:
        """Where the instance's Unix socket is; nobody else has the folder, so it is never taken."""
        return self._folder / instance / "engine.sock"

    @property
    def watched(self) -> set[str]:
        """The instances whose groups run, as far as this process knows."""
        return set(self._groups)

    def group(self, instance: str) -> int | None:
        """The shim's pid, or None if the group does not run as far as this process knows."""
        return self._groups[instance][0] if instance in self._groups else None

    def spawn(self, instance: str, launch: Launch, log: Path, record: str | None = None) -> int:
        """Start the group; its shim's pid. `record`: see `keep`. Raises OSError if the runtime folder cannot be
        written."""
        folder = self._folder / instance
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("exit.json", "shim.json", "engine.sock", RECORD, CLAIM):
            (folder / name).unlink(missing_ok=True)
        self._marks.pop(instance, None)
        if record is not None:
            self.keep(instance, record)
        with contextlib.suppress(OSError):  # without it the log is lost, not the engine
            log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        order = {
            "instance": instance,
            "argv": list(launch.argv),
            "env": {**scrubbed(os.environ), **launch.env, FLEET: self._fleet, INSTANCE: instance},
            "cwd": str(folder),
            "log": str(log),
            "log_bytes": self._log_bytes,
            "grace": self._grace,
        }
        path = folder / "launch.json"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(order, file)
        with (folder / "shim.err").open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", shim_module.__file__, str(path)],
                env={**scrubbed(os.environ), FLEET: self._fleet, INSTANCE: instance},
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                cwd=folder,
            )
        try:
            self._watch(instance, child.pid)
        except OSError:  # no file descriptor is left: what cannot be watched must not run
            child.kill()
            child.wait()
            raise
        self._children[instance] = child
        return child.pid

    def keep(self, instance: str, record: str) -> None:
        """Keep an instance's record beside its socket, for a controller that does not know it. Raises OSError."""
        write_private(self._folder / instance / RECORD, record)

    def take_over(self, folder: Path, fleet: str) -> Found:
        """Make a group that was started elsewhere, or by another fleet, this one's: its folder moves here, sockets and
        all. Returns it for `adopt`. Raises OSError if that cannot be: the folder is taken, or on another file system.
        """
        mine = self._folder / folder.name
        pid = _lock_holder(folder)
        if pid is None:
            raise ProcessLookupError(errno.ESRCH, "it has ended")
        if fleet != self._fleet:
            write_private(folder / CLAIM, json.dumps({"shoal_claim": 1, "fleet": self._fleet, "mark": fleet}))
        else:
            (folder / CLAIM).unlink(missing_ok=True)
        if folder != mine:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if mine.exists():
                raise FileExistsError(errno.EEXIST, "there is an instance of this id")
            folder.rename(mine)
        return Found(folder.name, pid)

    def terminate(self, instance: str) -> bool:
        """Ask the group to end, by force after the grace. False if it is gone already."""
        return self._signal(instance, signal.SIGTERM)

    def kill(self, instance: str) -> bool:
        """End the group at once. False if it is gone already."""
        return self._signal(instance, signal.SIGUSR1)

    def find(self) -> list[Found]:
        """The groups of this fleet whose shims live: their lock is held and their environment names the fleet, or the
        one from which this fleet has taken them over."""
        found = []
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            pid = _lock_holder(folder)
            mark = self._mark(folder)
            if pid is not None and environ_of(pid).get(FLEET) == mark:
                found.append(Found(folder.name, pid))
                if mark != self._fleet:
                    self._marks[folder.name] = mark
        return found

    def elsewhere(self) -> list[tuple[Path, str]]:
        """The folders of this fleet's groups that live, and are in another runtime folder, with the mark of each: for
        `take_over`. None that another fleet has taken over is among them."""
        here, found = self._folder.resolve(), []
        for pid in pids():
            if not is_shim(pid):
                continue
            environ = environ_of(pid)
            mark, folder = environ.get(FLEET, ""), folder_of(pid, environ.get(INSTANCE, ""))
            if folder is not None and folder.parent != here:
                claim = _claim(folder)
                if (mark if claim is None else claim[0]) == self._fleet:
                    found.append((folder, mark))
        return sorted(found)

    def adopt(self, found: Found) -> bool:
        """Watch a group that `find` or `take_over` named. False if it has ended meanwhile."""
        try:
            self._watch(found.instance, found.pid)
        except ProcessLookupError:
            return False
        if (mark := self._mark(self._folder / found.instance)) != self._fleet:
            self._marks[found.instance] = mark
        return True

    def last_exit(self, instance: str) -> Exit:
        """How the group ended, as its shim wrote it down."""
        try:
            record: dict[str, Any] = json.loads((self._folder / instance / "exit.json").read_text())
            return Exit(code=record["code"], signal=record["signal"])
        except (OSError, ValueError, KeyError, TypeError):
            return Exit()

    def log_of(self, instance: str) -> Path | None:
        """Where the group's shim writes the engine's log; None if that cannot be read."""
        try:
            return Path(json.loads((self._folder / instance / "launch.json").read_text(encoding="utf-8"))["log"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def engine_pid(self, instance: str) -> int | None:
        """The engine's first process, or None before it started."""
        try:
            return int(json.loads((self._folder / instance / "shim.json").read_text())["engine"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def memory(self) -> dict[str, int]:
        """Bytes of host memory by instance: what its processes hold and could not be read from a file again.

        Descendants of marked processes count too: one that gives itself a title, as vLLM's do, writes it over the
        environment that it was started with.
        """
        here = self._folder.resolve()
        ours = {
            pid: environ.get(INSTANCE, "")
            for fleet in {self._fleet, *self._marks.values()}
            for pid, environ in marked(fleet)
            if self._marks.get(environ.get(INSTANCE, ""), self._fleet) == fleet
            and not _is_elsewhere(pid, environ, here)
        }
        parents = {pid: parent_of(pid) for pid in pids() if pid not in ours} if ours else {}
        total: dict[str, int] = {}
        for pid in (*ours, *parents):
            owner = pid
            for _ in range(GENERATIONS):
                if owner in ours or owner not in parents:
                    break
                owner = parents[owner]
            if owner in ours:
                total[ours[owner]] = total.get(ours[owner], 0) + memory_of(pid)
        return total

    def sweep(self, known: Iterable[str], *, gone: Iterable[str] = ()) -> list[int]:
        """Kill what is left of groups whose shim died: processes that carry this fleet's mark and an instance not
        in `known`. Returns their pids.

        A group that is not in `known` but whose shim lives is somebody's to take back or to end (`orphans.py`), unless
        it is in `gone` and in this folder: those have been lost for good. A group in another folder is never touched:
        another fleet may have taken it over, and what `gone` says of its instance is not said of it.
        """
        known, gone, here = set(known), set(gone), self._folder.resolve()

        def is_left(pid: int, environ: dict[str, str]) -> bool:
            instance = environ.get(INSTANCE, "")
            if instance in known:
                return False
            shim = shim_over(pid, environ)
            folder = None if shim is None else folder_of(shim, instance)
            return folder is None or (folder.parent == here and instance in gone)

        return [pid for pid, environ in marked(self._fleet) if is_left(pid, environ) and self._end(pid)]

    def _end(self, pid: int, mark: str | None = None) -> bool:
        """Kill a process that has this fleet's mark, or the one given; whether that was done."""
        if pid == os.getpid():
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            fd = os.pidfd_open(pid)
            try:
                # The pid may have changed hands since its environment was read.
                if environ_of(pid).get(FLEET) == (mark or self._fleet):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    return True
            finally:
                os.close(fd)
        return False

    def _mark(self, folder: Path) -> str:
        """The fleet whose mark the processes of a folder carry: this one's, unless they were taken over."""
        claim = _claim(folder)
        return claim[1] if claim is not None and claim[0] == self._fleet else self._fleet

    def forget(self, instance: str) -> None:
        """Remove the folder of an instance that has ended."""
        shutil.rmtree(self._folder / instance, ignore_errors=True)

    def close(self) -> None:
        """Stop watching; the groups go on."""
        loop = asyncio.get_running_loop()
        for _, fd in self._groups.values():
            loop.remove_reader(fd)
            os.close(fd)
        self._groups.clear()
        for child in self._children.values():
            child.returncode = child.returncode if child.returncode is not None else 0  # not ours to wait for now
        self._children.clear()

    def _watch(self, instance: str, pid: int) -> None:
        fd = os.pidfd_open(pid)
        self._groups[instance] = pid, fd
        asyncio.get_running_loop().add_reader(fd, self._gone, instance)

    def _gone(self, instance: str) -> None:
        _, fd = self._groups.pop(instance)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        if (child := self._children.pop(instance, None)) is not None:
            child.wait()
        # Had the shim been killed, the engine's children would live on. What has a shim is another Shoal's by now.
        mark = self._marks.pop(instance, self._fleet)
        for left, environ in marked(mark):
            if environ.get(INSTANCE) == instance and shim_over(left, environ) is None:
                self._end(left, mark)
        self._on_exit(instance, self.last_exit(instance))

    def _signal(self, instance: str, number: signal.Signals) -> bool:
        if instance not in self._groups:
            return False
        try:
            signal.pidfd_send_signal(self._groups[instance][1], number)
        except ProcessLookupError:
            return False
        return True


def _lock_holder(folder: Path) -> int | None:
    """The pid of the shim that holds the folder's lock, or None."""
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return int(json.loads((folder / "shim.json").read_text())["shim"])
        except (OSError, ValueError, KeyError, TypeError):
            return _shim_by_mark(folder.name)
    finally:
        os.close(fd)
    return None


def _claim(folder: Path) -> tuple[str, str] | None:
    """The fleet that has taken a folder's group over, and the one whose mark that has."""
    try:
        claim: dict[str, Any] = json.loads((folder / CLAIM).read_text(encoding="utf-8"))
        return (str(claim["fleet"]), str(claim["mark"])) if claim["shoal_claim"] == 1 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_private(path: Path, text: str) -> None:
    """Put a file in its place, whole, for this user alone. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def _is_elsewhere(pid: int, environ: dict[str, str], here: Path) -> bool:
    """Whether a marked process has a shim that runs in the folder of another fleet than the one in `here`."""
    shim = shim_over(pid, environ)
    folder = None if shim is None else folder_of(shim, environ.get(INSTANCE, ""))
    return folder is not None and folder.parent != here


def _shim_by_mark(instance: str) -> int | None:
    """A shim that has not written its record yet, or could not: the marked process that leads its own session."""
    for pid in pids():
        if environ_of(pid).get(INSTANCE) == instance and session_of(pid) == pid and _parent_mark(pid) != instance:
            return pid
    return None


def _parent_mark(pid: int) -> str | None:
    fields = stat_of(pid)
    return environ_of(int(fields[1])).get(INSTANCE) if fields else None
