"""Where things lie: the state folder survives a reboot, the runtime folder holds sockets and process records."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.errors import ShoalError
from shoal.net import MAX_UNIX_PATH
from shoal.settings import Settings

# The longest file name below the runtime folder: instances/<id of 40 characters>/engine.sock
_LONGEST = len("/instances/") + 40 + len("/engine.sock")


@dataclass(frozen=True, slots=True)
class Paths:
    """Every file and folder that a running Shoal uses."""

    state: Path
    runtime: Path

    @property
    def database(self) -> Path:
        return self.state / "shoal.db"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def log(self, instance: str) -> Path:
        """The engine's output; `….1` beside it holds the older half."""
        return self.logs / instance / "engine.log"

    @property
    def instances(self) -> Path:
        return self.runtime / "instances"

    @property
    def controller_socket(self) -> Path:
        return self.runtime / "controller.sock"

    @property
    def relay_socket(self) -> Path:
        return self.runtime / "relay.sock"

    @property
    def memory_socket(self) -> Path:
        """The memory broker's, unless the settings name another."""
        return self.runtime / "memory.sock"

    @property
    def python_path(self) -> Path:
        """What engines import of Shoal."""
        return self.runtime / "python"

    @property
    def routing_table(self) -> Path:
        return self.runtime / "routes.json"

    @property
    def lock(self) -> Path:
        return self.runtime / "lock"


def find_paths(settings: Settings) -> Paths:
    """The paths that `settings` lead to. Nothing is made."""
    runtime = settings.runtime_dir
    if runtime is None:
        # Socket paths are short by law (107 bytes), state folders need not be: so a hash of the folder names it.
        name = hashlib.sha256(os.fsencode(settings.state_dir)).hexdigest()[:12]
        # Not XDG_RUNTIME_DIR: a service and a shell of one user disagree about it, and it goes at logout.
        runtime = Path(f"/tmp/shoal-{os.getuid()}", name)  # noqa: S108 - made private, and checked to be ours
    if len(os.fsencode(runtime)) + _LONGEST > MAX_UNIX_PATH:
        raise ShoalError(
            f"runtime_dir: {runtime} is too long for Unix sockets; name a folder of at most "
            f"{MAX_UNIX_PATH - _LONGEST} bytes",
            code="invalid_settings",
        )
    return Paths(settings.state_dir, runtime)


def make_runtime(paths: Paths) -> None:
    """Make the runtime folder, private to this user. Raises ShoalError if it is somebody else's."""
    ours = [paths.runtime, paths.instances]
    if paths.runtime.parent.name == f"shoal-{os.getuid()}":  # the default one, in a folder that anybody may write
        ours.insert(0, paths.runtime.parent)
    try:
        for folder in ours:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        strangers = [folder for folder in ours if not _is_own(folder)]
    except OSError as error:
        raise ShoalError(
            f"the runtime folder {paths.runtime} cannot be made: {error.strerror}; name another with runtime_dir",
            code="invalid_settings",
        ) from None
    if strangers:
        raise ShoalError(
            f"the runtime folder {strangers[0]} belongs to somebody else; name another with runtime_dir",
            code="invalid_settings",
        )
    paths.runtime.chmod(0o700)
    if paths.memory_socket.is_symlink():  # engines that another Shoal took over from here were led to its broker
        paths.memory_socket.unlink(missing_ok=True)


def _is_own(folder: Path) -> bool:
    info = folder.lstat()
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()


def keep_fresh(paths: Paths) -> None:
    """Touch everything in the runtime folder: what cleans /tmp takes files that are days old for forgotten ones."""
    for folder, _, files in os.walk(paths.runtime):  # unlike rglob it bears folders that vanish under it
        for name in ("", *files):
            with contextlib.suppress(OSError):
                os.utime(Path(folder, name))


def fleet_id(paths: Paths) -> str:
    """What marks this fleet's processes; the same as long as the state folder is."""
    for folder in (paths.state, paths.runtime):
        with contextlib.suppress(OSError, ValueError):
            id = (folder / "fleet-id").read_text(encoding="ascii").strip()
            if re.fullmatch("[0-9a-f]{32}", id):  # a power cut may leave zeros
                return id
    id = secrets.token_hex(16)
    for folder in (paths.state, paths.runtime):  # a state folder that cannot be written must not stop the start
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "fleet-id").write_text(id, encoding="ascii")
            break
    return id


@contextlib.contextmanager
def hold(paths: Paths) -> Iterator[None]:
    """Be the one Shoal of these folders while the block runs. Raises ShoalError (409) if another one is.

    Both are locked: two that shared a state folder would take each other's engines for orphans of their own.
    """
    with _hold_file(paths.lock), _hold_folder(paths.state):
        yield


@contextlib.contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder itself: that needs no file, so it works where nothing can be written."""
    fd = -1
    with contextlib.suppress(OSError):  # without such a folder there is nothing to share; the store says what it means
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if fd >= 0:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _already("in another runtime folder") from None
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _already(where: str) -> ShoalError:
    return ShoalError(
        f"Shoal already runs with this state folder ({where}); use that one, or name another folder with --state-dir",
        status=409,
        code="already_running",
    )


@contextlib.contextmanager
def _hold_file(lock: Path) -> Iterator[None]:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise _already(f"process {holder}") from None
        with contextlib.suppress(OSError):  # a full disk must not stop the start
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)
