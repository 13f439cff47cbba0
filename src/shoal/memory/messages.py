"""Every message between engines, tools and the broker, and the frames that carry them.

A frame is its length (4 bytes, big-endian, at most `MAX_FRAME`) and one JSON object. JSON because a message can be read
in a trace and written from any language, while msgspec reads and checks one in about a microsecond; there are at most a
few thousand a second. Every object has `v`, the version of the protocol, and `type`. Sizes are bytes.

An engine opens a connection for each rank and says `Hello`; the connection *is* the lease, its end frees it. Tools
send `List`, `Watch`, `SetTerms`, `SetBudget`, `Trim` or `Reserve` on a connection of their own.
"""

from __future__ import annotations

import struct
from typing import Annotated, ClassVar

import msgspec

from .ages import AGES
from .ledger import Reason

VERSION = 1
MAX_FRAME = 64 * 1024
"""Bytes that one message may have."""
MEMBERS_A_FRAME = 48
"""Members in one `Listing`, so that it stays below `MAX_FRAME` whatever their names are."""

_LENGTH = struct.Struct(">I")

Size = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Name = Annotated[str, msgspec.Meta(max_length=128, pattern=r'^[^\x00-\x1f\x7f"\\]+\Z')]
Priority = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Cached = Annotated[tuple[Size, ...], msgspec.Meta(max_length=len(AGES))]


class ProtocolError(Exception):
    """A frame that cannot be read. The connection it came on has to be closed."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all messages have."""

    v: int = VERSION


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """An engine's rank presents itself. `held` is the lease it has from an earlier connection and may have backed.

    `returning`: a broker took it in with these terms before. If its floor does not fit any more, it is taken in with
    what of it does, and has the rest as soon as that fits; a newcomer is refused.
    """

    engine: Name
    rank: Rank = 0
    device: Name
    device_size: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    floor: Size = 0
    ceiling: Size | None = None
    priority: Priority = 100
    unit: Annotated[int, msgspec.Meta(ge=1, le=2**40)] = 1
    held: Size = 0
    returning: bool = False


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The answer to `Hello`: the lease in force and the terms that hold now."""

    lease: Size
    floor: Size
    ceiling: Size | None
    priority: Priority


class Ask(Message, frozen=True, kw_only=True, tag="ask"):
    """The lease that live requests need, and what could be used to keep cached blocks too. The last word counts.

    `least`, which an engine gives only while it runs nothing, is the lease with which its first request can run: less
    is of no use to it, so where there is not enough for all such engines they take turns.
    """

    need: Size
    want: Size = 0
    least: Size = 0
    seq: Size = 0


class Grant(Message, frozen=True, kw_only=True, tag="grant"):
    """`size` bytes more may be backed; a recall before it is over. Every `Ask` is answered at once, be it by 0 bytes.

    `seq` is that of the last `Ask` read, `missing` what is short of its need and follows when memory comes free. `most`
    is the largest lease that the member can ever reach as things stand; who misses something is told when it changes.
    """

    size: Size
    missing: Size = 0
    seq: Size = 0
    most: Size | None = None


class Recall(Message, frozen=True, kw_only=True, tag="recall"):
    """Come down to `lease` bytes as memory comes free. A later one replaces it; one not below the lease ends it."""

    lease: Size
    reason: Reason


class Release(Message, frozen=True, kw_only=True, tag="release"):
    """`size` bytes are no longer backed and no longer leased."""

    size: Size


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """What an engine holds. `cached` are bytes of free blocks that hold a prefix, by age (`ages.AGES`)."""

    used: Size
    cached: Cached = ()
    backed: Size = 0
    waiting: Size = 0


class SetTerms(Message, frozen=True, kw_only=True, tag="set_terms"):
    """Change an engine's terms on all its ranks; what is None stays. `unlimited` takes the ceiling away."""

    engine: Name
    floor: Size | None = None
    ceiling: Size | None = None
    unlimited: bool = False
    priority: Priority | None = None


class Terms(Message, frozen=True, kw_only=True, tag="terms"):
    """Tells an engine its terms after a change, so that they outlive a restart of the broker."""

    floor: Size
    ceiling: Size | None
    priority: Priority


class SetBudget(Message, frozen=True, kw_only=True, tag="set_budget"):
    """Change what of a device may be leased: at most `limit`, with `headroom` kept back; what is None stays.

    `unlimited` takes the limit away.
    """

    device: Name
    limit: Size | None = None
    unlimited: bool = False
    headroom: Size | None = None


class Trim(Message, frozen=True, kw_only=True, tag="trim"):
    """Have an engine come down to `lease` bytes on every rank, once, as far as its requests do not need them."""

    engine: Name
    lease: Size = 0


TOOL = "tool"
"""The holder of what is held back where none is named."""


class Reserve(Message, frozen=True, kw_only=True, tag="reserve"):
    """Hold `size` bytes of a device back for what is about to need them, such as the weights of an engine that starts.

    Nobody may lease them while this connection lives; another `Reserve` of the same `holder` for the device replaces
    this one, and one of 0 ends it. The answer comes once the device was measured, so the budget is then what it says.

    `arriving`: they are being taken from now on. What others are measured to use more is then held back no longer,
    and what is not measured yet stays so over the end. `device_size` is needed for a device that no engine has named.
    """

    device: Name
    size: Size
    device_size: Annotated[int, msgspec.Meta(ge=1, le=2**53)] | None = None
    holder: Name = TOOL
    arriving: bool = False


class Done(Message, frozen=True, kw_only=True, tag="done"):
    """The answer to `SetTerms`, `SetBudget`, `Trim` and `Reserve`."""


class List(Message, frozen=True, kw_only=True, tag="list"):
    """Ask for the books."""


class Watch(Message, frozen=True, kw_only=True, tag="watch"):
    """Ask for the books now and after every change, at most once in `interval` seconds."""

    interval: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 1.0


class MemberState(msgspec.Struct, frozen=True):
    """One rank of an engine in a `Listing`."""

    engine: str
    rank: int
    pid: int
    lease: int
    floor: int
    ceiling: int | None
    priority: int
    used: int
    cached: int
    backed: int
    need: int
    waiting: int
    recalled: int | None
    want: int = 0
    cached_by_age: tuple[int, ...] = ()
    promised: int = 0
    """The floor it was given, where `floor` is what of it is in force."""


class DeviceState(msgspec.Struct, frozen=True):
    """One device in a `Listing`."""

    key: str
    size: int
    budget: int
    headroom: int
    others: int
    leased: int
    owed: int
    limit: int | None = None
    free: int | None = None
    held_back: int = 0


class Listing(Message, frozen=True, kw_only=True, tag="listing"):
    """The books of one device, in as many frames as its members need; `more` says that others follow."""

    device: DeviceState | None
    members: tuple[MemberState, ...] = ()
    more: bool = False


class Error(Message, frozen=True, kw_only=True, tag="error"):
    """Something was refused, and what to do. `fatal`: the broker closes the connection."""

    code: str
    message: str
    fatal: bool = False


ToBroker = Hello | Ask | Release | Report | SetTerms | SetBudget | Trim | Reserve | List | Watch
FromBroker = Welcome | Grant | Recall | Terms | Listing | Done | Error


class _Version(msgspec.Struct):
    v: int


_ENCODER = msgspec.json.Encoder()
_VERSION = msgspec.json.Decoder(_Version)
_TO_BROKER: msgspec.json.Decoder[ToBroker] = msgspec.json.Decoder(ToBroker)
_FROM_BROKER: msgspec.json.Decoder[FromBroker] = msgspec.json.Decoder(FromBroker)


def frame(message: ToBroker | FromBroker) -> bytes:
    """The bytes that carry `message`."""
    payload = _ENCODER.encode(message)
    if len(payload) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(payload)} bytes is longer than {MAX_FRAME}")
    return _LENGTH.pack(len(payload)) + payload


def to_broker(payload: bytes) -> ToBroker:
    """The message in a frame that a broker received. Raises ProtocolError."""
    _check_version(payload)
    try:
        return _TO_BROKER.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None


def from_broker(payload: bytes) -> FromBroker:
    """The message in a frame that a broker sent. Raises ProtocolError."""
    _check_version(payload)
    try:
        return _FROM_BROKER.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None


def _check_version(payload: bytes) -> None:
    try:
        version = _VERSION.decode(payload).v
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from None
    if version != VERSION:
        raise ProtocolError(
            f"version {version} of the protocol, and this side speaks {VERSION}; "
            "install the same version of Shoal for the broker and the engines, and restart both"
        )


class Frames:
    """Cuts a stream of bytes into payloads. After a ProtocolError it is of no further use."""

    HEADER: ClassVar[int] = _LENGTH.size

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes. Raises ProtocolError if a frame is empty or too long."""
        self._buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= self.HEADER:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if not 0 < length <= MAX_FRAME:
                raise ProtocolError(f"a frame of {length} bytes; 1 to {MAX_FRAME} are allowed")
            end = start + self.HEADER + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + self.HEADER : end]))
            start = end
        del self._buffer[:start]
        return payloads
