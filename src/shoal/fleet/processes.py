"""Process groups of engines: start, end, find again, and prove whose they are.

A process is known by its pid and its start time together, and is signalled through a pidfd: a pid that was given to
somebody else is never hit.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from shoal.fleet.state import Exit

GENERATIONS = 16
"""How far below an engine's first process its others are looked for."""
FLEET = "SHOAL_FLEET"
INSTANCE = "SHOAL_INSTANCE"
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
        self._pidfds: dict[str, int] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def socket(self, instance: str) -> Path:
        """Where the instance's Unix socket is; nobody else has the folder, so it is never taken."""
        return self._folder / instance / "engine.sock"

    def spawn(self, instance: str, launch: Launch, log: Path) -> int:
        """Start the group; its shim's pid. Raises OSError if the runtime folder cannot be written."""
        folder = self._folder / instance
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("exit.json", "shim.json", "engine.sock"):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # without it the log is lost, not the engine
            log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        record = {
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
            json.dump(record, file)
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

    def terminate(self, instance: str) -> bool:
        """Ask the group to end, by force after the grace. False if it is gone already."""
        return self._signal(instance, signal.SIGTERM)

    def kill(self, instance: str) -> bool:
        """End the group at once. False if it is gone already."""
        return self._signal(instance, signal.SIGUSR1)

    def find(self) -> list[Found]:
        """The groups of this fleet whose shims live: their lock is held and their environment names the fleet."""
        found = []
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            pid = _lock_holder(folder)
            if pid is not None and _environ(pid).get(FLEET) == self._fleet:
                found.append(Found(folder.name, pid))
        return found

    def adopt(self, found: Found) -> bool:
        """Watch a group that `find` named. False if it has ended meanwhile."""
        try:
            self._watch(found.instance, found.pid)
        except ProcessLookupError:
            return False
        return True

    def last_exit(self, instance: str) -> Exit:
        """How the group ended, as its shim wrote it down."""
        try:
            record: dict[str, Any] = json.loads((self._folder / instance / "exit.json").read_text())
            return Exit(code=record["code"], signal=record["signal"])
        except (OSError, ValueError, KeyError, TypeError):
            return Exit()

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
        marked = {pid: environ.get(INSTANCE, "") for pid, environ in _marked(self._fleet)}
        parents = {pid: _parent(pid) for pid in _pids() if pid not in marked} if marked else {}
        total: dict[str, int] = {}
        for pid in (*marked, *parents):
            owner = pid
            for _ in range(GENERATIONS):
                if owner in marked or owner not in parents:
                    break
                owner = parents[owner]
            if owner in marked:
                total[marked[owner]] = total.get(marked[owner], 0) + _memory(pid)
        return total

    def sweep(self, known: Iterable[str]) -> list[int]:
        """Kill what is left of groups whose shim died: processes that carry this fleet's mark and an instance not
        in `known`. Returns their pids."""
        keep = set(known)
        ended = []
        for pid, environ in _marked(self._fleet):
            if environ.get(INSTANCE) in keep or pid == os.getpid():
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                fd = os.pidfd_open(pid)
                try:
                    # The pid may have changed hands since its environment was read.
                    if _environ(pid).get(FLEET) == self._fleet:
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                        ended.append(pid)
                finally:
                    os.close(fd)
        return ended

    def forget(self, instance: str) -> None:
        """Remove the folder of an instance that has ended."""
        shutil.rmtree(self._folder / instance, ignore_errors=True)

    def close(self) -> None:
        """Stop watching; the groups go on."""
        loop = asyncio.get_running_loop()
        for fd in self._pidfds.values():
            loop.remove_reader(fd)
            os.close(fd)
        self._pidfds.clear()
        for child in self._children.values():
            child.returncode = child.returncode if child.returncode is not None else 0  # not ours to wait for now
        self._children.clear()

    def _watch(self, instance: str, pid: int) -> None:
        fd = os.pidfd_open(pid)
        self._pidfds[instance] = fd
        asyncio.get_running_loop().add_reader(fd, self._gone, instance)

    def _gone(self, instance: str) -> None:
        fd = self._pidfds.pop(instance)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        if (child := self._children.pop(instance, None)) is not None:
            child.wait()
        # Had the shim been killed, the engine's children would live on.
        self.sweep(set(self._pidfds))
        self._on_exit(instance, self.last_exit(instance))

    def _signal(self, instance: str, number: signal.Signals) -> bool:
        fd = self._pidfds.get(instance)
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
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


def _shim_by_mark(instance: str) -> int | None:
    """A shim that has not written its record yet, or could not: the marked process that leads its own session."""
    for pid in _pids():
        if _environ(pid).get(INSTANCE) == instance and _session(pid) == pid and _parent_mark(pid) != instance:
            return pid
    return None


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def _marked(fleet: str) -> list[tuple[int, dict[str, str]]]:
    mark = f"{FLEET}={fleet}".encode()
    marked = []
    for pid in _pids():
        try:
            raw = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if mark in raw:
            marked.append((pid, _environ(pid)))
    return marked


def _stat(pid: int) -> list[str]:
    try:
        # The second field, the name in brackets, may itself hold blanks and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _session(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[3]) if fields else -1


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else -1


def _parent_mark(pid: int) -> str | None:
    fields = _stat(pid)
    return _environ(int(fields[1])).get(INSTANCE) if fields else None


def _memory(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return sum(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    return 0
