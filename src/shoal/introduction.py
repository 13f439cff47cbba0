"""How a client on this machine knows that the controller's socket here belongs to the Shoal that it asks at a port.

The port may be another machine's, forwarded to this one, where the same user has a Shoal with the same paths. So a
controller tells with the path something that only it knows: a token of its start, which lies beside its socket too.
Where the file there holds another one, the socket is somebody else's. The token opens nothing: the folder does.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

SOCKET_HEADER = "x-shoal-socket"
"""Where a client on this machine that is not signed in finds the controller's own socket, if it may open it."""
TOKEN_BYTES = 32
_MOST = 128
"""Bytes of a file that are read: more than any token has."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """A controller's socket, and the token of the start of the controller that named it."""

    socket: Path
    token: str

    @classmethod
    def of(cls, socket: Path) -> Introduction:
        """That of a controller that starts now."""
        return cls(socket, secrets.token_urlsafe(TOKEN_BYTES))

    @classmethod
    def parse(cls, header: str) -> Introduction | None:
        """What a header says; None if it names no token."""
        token, _, path = header.partition(" ")
        return cls(Path(unquote(path, errors="surrogateescape")), token) if token and path else None

    @property
    def header(self) -> str:
        """What to send: the token and the path, whose characters a header could not all carry."""
        return f"{self.token} {quote(str(self.socket), errors='surrogateescape')}"

    @property
    def file(self) -> Path:
        """Where the token lies."""
        return self.socket.with_suffix(".token")

    def keep(self) -> None:
        """Write the token down for this user alone, in place of an earlier controller's. Raises OSError."""
        new = self.file.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(self.token.encode())
        new.replace(self.file)  # whoever reads meanwhile reads a whole one

    def forget(self) -> None:
        """Remove the token, whatever becomes of that."""
        with contextlib.suppress(OSError):
            self.file.unlink()

    def is_kept(self) -> bool:
        """Whether the token beside the socket on this machine is this one."""
        return hmac.compare_digest(_read(self.file), self.token.encode("utf-8", "replace")) and bool(self.token)


def _read(path: Path) -> bytes:
    """What a regular file begins with; nothing if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    with os.fdopen(fd, "rb", buffering=0) as file:
        return file.read(_MOST) or b"" if stat.S_ISREG(os.fstat(fd).st_mode) else b""
