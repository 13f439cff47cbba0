"""The broker's socket: one live broker a path, and nobody but its user may use it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

MAX_PATH = 107  # sun_path holds 108 bytes with its NUL (unix(7))

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class BrokerRunningError(OSError):
    """Another broker has the socket."""


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """A bound Unix socket of mode 0600. `replaced`: there was a broker before this one, whose engines may be alive."""

    path: Path
    socket: socket.socket
    replaced: bool
    lock: int

    def close(self) -> None:
        """Remove the socket and let the next broker in. The lock file stays: removing it would race with that one."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.socket.close()
        os.close(self.lock)


def listen(path: Path) -> ListeningSocket:
    """Bind `path`. Raises BrokerRunningError if it is in use, OSError if it cannot be used.

    A lock beside the socket decides, because the kernel drops it when its holder dies, however it dies. So two brokers
    that start at once cannot both take a dead one's socket away.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise OSError(f"{path} is longer than the {MAX_PATH} bytes a Unix socket may have; choose a shorter path")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BrokerRunningError(
                f"a memory broker already runs on {path}; use that one, or stop it first"
            ) from None
        dead = _clear(path)
        replaced = _sign(lock) or dead
        return ListeningSocket(path, _bind(path), replaced, lock)
    except BaseException:
        os.close(lock)
        raise


def _sign(lock: int) -> bool:
    """Note in the lock file that a broker ran in this boot of the machine. Returns whether one had before."""
    try:
        boot = BOOT_ID.read_bytes().strip()
    except OSError:
        boot = b"unknown"
    before = os.pread(lock, 64, 0).strip()
    if before == boot:
        return True
    os.ftruncate(lock, 0)
    os.pwrite(lock, boot + b"\n", 0)
    return False


def _clear(path: Path) -> bool:
    """Remove a dead socket. Returns whether there was one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise OSError(f"{path} is there and is no socket; choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return True
        except (TimeoutError, BlockingIOError):
            pass
    raise BrokerRunningError(f"another program listens on {path}; stop it, or choose another path")


def _bind(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # With the mask the socket is never, not for a moment, open to others.
    mask = os.umask(0o177)
    try:
        listening.bind(str(path))
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(mask)
    listening.listen(512)
    return listening
