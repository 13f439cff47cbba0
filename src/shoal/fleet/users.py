"""Who may sign in to the admin side: passwords and what is kept of them, the book of users, and who may do what. Pure;
clock and salt come from outside, and so do threads: a hash takes its time on purpose.

Passwords are guessable, so that each guess has to be dear: scrypt (RFC 7914) with a salt for each user. Its parameters
are kept beside the hash, so that they can be raised and old hashes still be checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from shoal.errors import NotFoundError, ShoalError

Role = Literal["admin", "read-only"]
ROLES: tuple[Role, ...] = get_args(Role)
MAX_USER_NAME = 100
"""Characters of a name, as it is given and as it is kept."""
MIN_PASSWORD = 8
MAX_PASSWORD = 1024
"""Characters of a password."""
SALT = 16
"""Bytes of a salt."""
MOST_MEMORY = 2**28
"""Bytes that checking one password may take: a stored row must not ask for all that the machine has."""
_NO_USER = "there is no user {name}; `shoal users ls` lists them"


@dataclass(frozen=True, slots=True)
class Cost:
    """scrypt's parameters: one hash takes 128·n·r bytes and time in proportion to n·r·p."""

    n: int = 2**15
    r: int = 8
    p: int = 3

    def __post_init__(self) -> None:
        if self.n < 2 or self.n & (self.n - 1) or self.r < 1 or not 1 <= self.p <= 64:
            raise ValueError("n has to be a power of two, r and p numbers from 1")
        if 128 * self.n * self.r > MOST_MEMORY:
            raise ValueError(f"a hash with these parameters takes more than {MOST_MEMORY} bytes")


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """What is kept of a password; salt and digest in hex."""

    salt: str
    digest: str
    cost: Cost

    def matches(self, password: str) -> bool:
        """Whether it is this one's. Slow; takes the same time for every password."""
        return hmac.compare_digest(self.digest, _scrypt(password, bytes.fromhex(self.salt), self.cost))


def hash_password(password: str, salt: bytes, cost: Cost | None = None) -> PasswordHash:
    """What to keep of a password. `salt`: SALT random bytes of its own. Slow."""
    cost = cost or Cost()
    return PasswordHash(salt.hex(), _scrypt(password, salt, cost), cost)


def _scrypt(password: str, salt: bytes, cost: Cost) -> str:
    # The same letters come composed from one keyboard and decomposed from another; what is no text is nobody's.
    given = unicodedata.normalize("NFC", password).encode("utf-8", "replace")
    memory = 128 * cost.r * (cost.n + cost.p + 2)
    return hashlib.scrypt(given, salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=memory + 2**20, dklen=32).hex()


def check_password(password: str) -> str:
    """A password that may be set. Raises ShoalError that says what is wrong with it, and nothing of it."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ShoalError(
            f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters", code="invalid_settings", param="password"
        )
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in password):
        raise ShoalError(
            "a password cannot hold control characters or line breaks", code="invalid_settings", param="password"
        )
    return password


def normal_name(name: str) -> str:
    """A name with its letters composed, as names are kept. Takes time by the square of its length: ask `too_long`."""
    return unicodedata.normalize("NFC", name)


def too_long(name: str, password: str = "") -> bool:
    """Whether no user has such a name, or such a password, for their length alone."""
    return len(name) > MAX_USER_NAME or len(password) > MAX_PASSWORD


def check_user_name(name: str) -> str:
    """A name as it is kept. Raises ShoalError. No colon: HTTP's Basic scheme ends the name there (RFC 7617)."""
    name = "" if too_long(name) else normal_name(name)
    if not name or name != name.strip() or len(name) > MAX_USER_NAME:
        fault = f"a user's name has 1 to {MAX_USER_NAME} characters and no blanks at its ends"
    elif ":" in name or "/" in name or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        fault = "a user's name cannot hold colons, slashes, control characters or line breaks"
    else:
        return name
    raise ShoalError(fault, code="invalid_settings", param="name")


def check_role(role: str) -> Role:
    """A role. Raises ShoalError."""
    for known in ROLES:
        if role == known:
            return known
    raise ShoalError(f"{role!r} is no role; there are {' and '.join(ROLES)}", code="invalid_settings", param="role")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may sign in. Times are Unix seconds."""

    name: str
    role: Role
    password: PasswordHash
    created_at: float
    changed_at: float


class UserBook:
    """Every user, by name. Commands return the record to store, and raise ShoalError without changing a thing."""

    def __init__(self, records: Iterable[User] = ()) -> None:
        self.records: dict[str, User] = {record.name: record for record in records}

    def find(self, name: str) -> User:
        """The user with this name."""
        record = None if too_long(name) else self.records.get(normal_name(name))
        if record is None:
            raise NotFoundError(_NO_USER.format(name=name[:MAX_USER_NAME]), code="user_not_found", param="name")
        return record

    def put(self, name: str, role: Role | None, password: PasswordHash | None, now: float) -> tuple[User, bool]:
        """Make a user, or change one: what is None stays. Whether it is new, which needs both."""
        name = check_user_name(name)
        known = self.records.get(name)
        if known is None:
            if role is None or password is None:
                missing = "role" if role is None else "password"
                raise ShoalError(f"a new user needs a {missing}", code="invalid_settings", param=missing)
            record = User(name, role, password, now, now)
        else:
            changed = dataclasses.replace(known, role=role or known.role, password=password or known.password)
            record = dataclasses.replace(changed, changed_at=now)
        self.records[name] = record
        return record, known is None

    def remove(self, name: str) -> User:
        """Forget a user."""
        return self.records.pop(self.find(name).name)


class Way(Enum):
    """How a request reached the controller."""

    OWN = "own"
    """Through the controller's own socket, which only the user who runs Shoal can open."""
    LOCAL = "local"
    """Through the public port, from this machine; also by a proxy on it that does not say so."""
    REMOTE = "remote"
    """Through the public port, from another machine."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the relay says. `address`: whom attempts to sign in are counted for."""

    way: Way
    address: str = ""
    forwarded: bool = False
    """A proxy says that it asks for somebody else."""


def peer_of(addresses: Iterable[str], forwarded_for: str = "", *, forwarded: bool = False) -> Peer:
    """The peer of a request. `addresses`: what the relay said, which is one address; nothing if no relay carried it.
    `forwarded`: a proxy has said in another way that it asks for somebody else.

    `forwarded_for` (X-Forwarded-For) counts from a proxy on this machine alone, and only to tell those apart who try to
    sign in: its last entry is the proxy's own word. It makes nobody local.
    """
    said = list(addresses)
    if not said:
        return Peer(Way.OWN)
    address = _address(said[0]) if len(said) == 1 else None  # two could only be somebody's attempt to be another
    if address is None:
        return Peer(Way.REMOTE, "unknown")
    if not address.is_loopback:
        return Peer(Way.REMOTE, _counted(address))
    client = _address(forwarded_for.rpartition(",")[2])
    return Peer(Way.LOCAL, _counted(client or address), forwarded or bool(forwarded_for))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


def _counted(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """One customer of IPv6 has 2⁶⁴ addresses; they count as one."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) & ~(2**64 - 1), 64)))


def refusal(
    way: Way, user: User | None, *, needed: bool, insecure: bool, reading: bool, public: bool = False
) -> ShoalError | None:
    """Why a request is not answered; None if it is.

    `needed`: there are users, so that one has to sign in; `insecure`: as long as there are none, the admin side is open
    beyond this machine; `reading`: it changes nothing; `public`: it is for what everybody may see who could sign in, as
    the page's files and signing in itself. Probes are not asked about.
    """
    if way is Way.OWN:
        return None
    if not needed:
        if way is Way.LOCAL or insecure:
            return None
        return ShoalError(
            "Models are managed from the machine that Shoal runs on, and not by a proxy or under a name other than "
            "localhost, as long as nobody can sign in; make a user there with `shoal users set NAME --role admin`. "
            "Inference is under /v1.",
            status=403,
            code="local_only",
        )
    if public:
        return None
    if user is None:
        return ShoalError(
            "sign in first: on the page, with SHOAL_USER and SHOAL_PASSWORD for the command line, or with HTTP Basic; "
            "`shoal users set NAME` on the machine that Shoal runs on makes users and sets passwords",
            status=401,
            code="sign_in_required",
            headers={"WWW-Authenticate": 'Shoal realm="admin"'},  # Basic would open the browser's own window
        )
    if user.role != "admin" and not reading:
        return ShoalError(
            f"{user.name} may look at everything and change nothing (read-only); an admin may do this, or make "
            f"{user.name} one with `shoal users set`",
            status=403,
            code="read_only",
        )
    return None
