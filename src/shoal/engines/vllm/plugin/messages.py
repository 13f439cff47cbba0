"""What the processes of one engine say to each other: the pager beside the scheduler, and each rank's worker.

A message is one packet (SOCK_SEQPACKET) of MessagePack on an abstract Unix socket, so nothing is left behind by a
process that is killed. Both ends check that the other runs as the same user.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Sequence

import msgspec

MAX_PACKET = 1 << 17
MAX_IDS = 8192
"""Blocks in one message, so that it fits a packet."""


class ChannelError(RuntimeError):
    """The other process is not there, or is not who it should be."""


class Back(msgspec.Struct, frozen=True, tag="back"):
    """Back `ids` in order, as far as memory goes; answered by how many."""

    ids: Sequence[int]


class Unback(msgspec.Struct, frozen=True, tag="unback"):
    """Unback `ids`; answered by their number."""

    ids: Sequence[int]


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Asks for the `Description`."""


class Listen(msgspec.Struct, frozen=True, tag="listen"):
    """From now on this connection carries the worker's `Suspend` and `Resume`, each answered with `Done`."""


class Suspend(msgspec.Struct, frozen=True, tag="suspend"):
    """The worker is about to sleep: take all memory away."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """The worker wakes: block 0 has to be backed."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """`count` blocks were done; `error` says why not all, unless it was for want of memory."""

    count: int = 0
    error: str | None = None


class Run(msgspec.Struct, frozen=True):
    """`pages.Run`, in bytes."""

    offset: int
    stride: int
    length: int


class Description(msgspec.Struct, frozen=True, tag="description"):
    """A rank's memory. Sizes in bytes. Without `runs` it is not elastic, and `reason` says why."""

    device: str
    device_size: int
    page_size: int = 0
    blocks: int = 0
    runs: tuple[Run, ...] = ()
    reason: str = ""


Message = Back | Unback | Describe | Listen | Suspend | Resume | Done | Description

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def address(engine: str, parent: int, rank: int) -> str:
    """Where `rank` of the engine whose scheduler runs in process `parent` listens."""
    name = hashlib.sha256(engine.encode()).hexdigest()[:16]
    return f"\0shoal-kv-{os.getuid()}-{parent}-{name}-{rank}"


def send(channel: socket.socket, message: Message) -> None:
    """Raises ChannelError."""
    try:
        channel.send(_ENCODER.encode(message))
    except OSError as error:
        raise ChannelError(f"another process of this engine is gone: {error}") from error


def receive(channel: socket.socket) -> Message | None:
    """The next message, or None once the other end is gone. Raises ChannelError."""
    try:
        packet = channel.recv(MAX_PACKET)
    except OSError as error:
        raise ChannelError(f"another process of this engine is gone: {error}") from error
    if not packet:
        return None
    try:
        return _DECODER.decode(packet)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ChannelError(f"another process of this engine sent what is no message: {error}") from error


def is_ours(channel: socket.socket) -> bool:
    """Whether the process at the other end runs as this user."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.getuid())
