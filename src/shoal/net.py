"""Addresses of engines and of Shoal's own processes: `unix:/path/to.sock` or `tcp:127.0.0.1:1234`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_UNIX_PATH = 107  # sun_path holds 108 bytes with its NUL (unix(7))


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port; engines use loopback only."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:{self.host}:{self.port}"


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """The address that `text` writes. Raises ValueError if it is none."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        return UnixAddress(Path(rest))
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host and port.isdigit() and 0 < int(port) < 65536:
        return TcpAddress(host, int(port))
    raise ValueError(f"{text!r} is not an address; give unix:/path or tcp:host:port")
