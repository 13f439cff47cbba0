"""What the memory commands share: where the broker is, what devices are called, and what its refusals mean here."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from shoal.errors import ConflictError, NotFoundError, ShoalError
from shoal.memory.nvml import HOST, Machine
from shoal.memory.sizes import Amount
from shoal.memory.tools import BrokerError, BrokerTool

Socket = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="The memory broker's socket. Default: SHOAL_MEMORY_SOCKET, or the one broker of yours that runs.",
    ),
]


def user_folder() -> Path:
    """Where this user's sockets are, unless told otherwise."""
    # Not XDG_RUNTIME_DIR: a service and a shell of one user disagree about it, and it goes at logout.
    return Path(f"/tmp/shoal-{os.getuid()}")  # noqa: S108 - made private, and checked to be ours


def own_socket(given: Path | None) -> Path:
    """Where a broker of one's own listens."""
    named = given or os.environ.get("SHOAL_MEMORY_SOCKET")
    return Path(named).expanduser().absolute() if named else user_folder() / "memory.sock"


def find_socket(given: Path | None) -> Path:
    """Where the broker to talk to listens: what was said, or `shoal memory broker`'s, or that of a `shoal serve`.

    Raises ShoalError if there are several to choose from.
    """
    usual = own_socket(given)
    if given is not None or os.environ.get("SHOAL_MEMORY_SOCKET") or usual.exists():
        return usual
    # `shoal serve` has a runtime folder for each state folder.
    others = sorted(path for path in user_folder().glob("*/memory.sock") if _answers(path))
    if len(others) > 1:
        raise ShoalError(
            f"several memory brokers run: {', '.join(map(str, others))}; choose one with --socket or "
            "SHOAL_MEMORY_SOCKET",
            code="ambiguous",
        )
    return others[0] if others else usual


def _answers(path: Path) -> bool:
    try:
        BrokerTool(path, timeout=1.0).close()
    except BrokerError:
        return False
    return True


def make_user_folder() -> None:
    """Make it, private. Raises ShoalError if it is somebody else's."""
    folder = user_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise ShoalError(f"{folder} belongs to somebody else; name another socket with --socket", code="not_ours")
    folder.chmod(0o700)


@contextlib.contextmanager
def broker_at(given: Path | None) -> Iterator[BrokerTool]:
    """A connection to the broker; what it refuses is raised as a ShoalError."""
    with refusals(), BrokerTool(find_socket(given)) as tool:
        yield tool


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raise BrokerErrors as the ShoalErrors that the command line shows."""
    try:
        yield
    except BrokerError as error:
        raise _shown(error) from None


def _shown(error: BrokerError) -> ShoalError:
    message = str(error)
    if error.code in ("no_broker", "closed", "timeout"):
        return ShoalError(message, status=503, code="unreachable")
    if error.code in ("no_engine", "no_device"):
        return NotFoundError(message, code=error.code)
    if error.code in ("invalid", "protocol", "not_ours", "internal", "busy"):
        return ShoalError(message, code=error.code)
    return ConflictError(message, code=error.code)


def amount(text: str) -> Amount:
    """An argument such as ``8GiB`` or ``80%``. Raises typer.BadParameter."""
    try:
        return Amount.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def amount_or_none(text: str) -> Amount | None:
    """The same, or None for ``none``."""
    return None if text.strip().lower() == "none" else amount(text)


def device_key(machine: Machine, name: str) -> str:
    """The key of a device that was named on the command line. Raises NotFoundError."""
    try:
        return machine.key(name)
    except ValueError as error:
        raise NotFoundError(str(error), code="no_device") from None


def device_name(machine: Machine, key: str) -> str:
    """``cuda:0`` for a UUID of this machine, or the key."""
    gpus = machine.gpus() if key != HOST else ()
    return f"cuda:{gpus.index(key)}" if key in gpus else key
