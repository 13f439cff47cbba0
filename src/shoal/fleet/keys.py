"""API keys: their settings, how they are made, and the book of them all. Pure; clock and randomness come from outside.

A key reads `sk-shoal-<id>-<secret>`. Only its SHA-256 is kept. For a password that would be too little: passwords are
guessable, and a slow, salted hash is what makes guessing dear. A secret here is 190 random bits, which no machine can
guess however fast the hash is, and which no two keys share, so that a salt would change nothing. A fast hash is even
needed: every request has one computed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import re
import secrets
import string
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from shoal.config import explain
from shoal.errors import ConflictError, NotFoundError, ShoalError
from shoal.fleet.spec import check_name
from shoal.messages import Key, Priority

PREFIX = "sk-shoal-"
ID_LENGTH = 8
SECRET_LENGTH = 32
"""Characters of base62: 32 · log2(62) = 190.5 bits."""
MAX_KEY_NAME = 100
MAX_GRACE = 30 * 86_400.0
_ID_LETTERS = string.digits + string.ascii_lowercase
_SECRET_LETTERS = string.digits + string.ascii_letters
_DURATION = re.compile(r"(\d{1,6})\s*([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

State = Literal["living", "expired", "revoked"]
Limit = Annotated[int, Field(ge=1, le=10**12)]


class KeySettings(BaseModel):
    """What a key allows. Immutable: a change makes a new one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(description="Whose key it is, or what it is for; no two living keys have the same.")
    models: Annotated[tuple[Annotated[str, AfterValidator(check_name)], ...], Field(max_length=1000)] = Field(
        (), description="The models, real or virtual, that it may use. Default: every one."
    )
    priority: Priority = Field("normal", description="Priority class of its requests: high, normal or low.")
    weight: float = Field(1.0, ge=0.01, le=100, description="Its share among the keys of its class.")
    requests_per_minute: Limit | None = Field(None, description="Requests that it may begin a minute.")
    tokens_per_minute: Limit | None = Field(None, description="Tokens, of prompts and answers, a minute.")
    concurrent: Limit | None = Field(None, description="Requests that it may have under way at once.")
    expires_at: float | None = Field(None, ge=0, le=3e11, description="When it ends, in Unix seconds.")

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        name = unicodedata.normalize("NFC", name)
        if not name or name != name.strip() or len(name) > MAX_KEY_NAME:
            raise ValueError(f"a key's name has 1 to {MAX_KEY_NAME} characters and no blanks at its ends")
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
            raise ValueError("a key's name cannot hold control characters or line breaks")
        return name

    @field_validator("models")
    @classmethod
    def _models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(models))


@dataclass(frozen=True, slots=True)
class Former:
    """The digest of the secret that a key had before its rotation, and until when that one still works."""

    digest: str
    until: float


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is stored. Times are Unix seconds; the key itself is in none of the fields."""

    id: str
    settings: KeySettings
    digest: str
    created_at: float
    rotated_at: float | None = None
    revoked_at: float | None = None
    former: Former | None = None

    @property
    def prefix(self) -> str:
        """What of the key may be shown: enough to tell it from others, nothing of its secret."""
        return PREFIX + self.id

    def state(self, now: float) -> State:
        """Whether it works now, and if not, why."""
        if self.revoked_at is not None:
            return "revoked"
        expires = self.settings.expires_at
        return "expired" if expires is not None and expires <= now else "living"

    def messages(self, now: float) -> tuple[Key, ...]:
        """The key for relays: none once it is revoked, two while its former secret works as well. One that has expired
        is among them, so that its owner is told what happened to it."""
        if self.revoked_at is not None:
            return ()
        settings = self.settings
        key = Key(
            id=self.id,
            name=settings.name,
            digest=self.digest,
            models=settings.models,
            priority=settings.priority,
            weight=settings.weight,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            concurrent=settings.concurrent,
            expires_at=settings.expires_at,
        )
        if self.former is None or self.former.until <= now:
            return (key,)
        until = self.former.until if key.expires_at is None else min(self.former.until, key.expires_at)
        return key, msgspec.structs.replace(key, digest=self.former.digest, expires_at=until)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made or given another secret: the only time that it is whole."""

    record: KeyRecord
    key: str


class KeyBook:
    """Every key there is, by id. Commands return the record to store, and raise ShoalError without changing a thing."""

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self.records: dict[str, KeyRecord] = {record.id: record for record in records}

    def find(self, name: str, now: float) -> KeyRecord:
        """The key with this id; or else, of those with this name, the one that works, or the newest."""
        if (record := self.records.get(name)) is not None:
            return record
        named = [record for record in self.records.values() if record.settings.name == name]
        if not named:
            raise NotFoundError(
                f"there is no key {name}; `shoal keys ls --all` lists them", code="key_not_found", param="key"
            )
        return max(named, key=lambda record: (record.state(now) == "living", record.created_at))

    def create(self, settings: KeySettings, now: float) -> NewKey:
        """Make a key."""
        _refuse_expired(settings, now)
        self._refuse_taken(settings.name, now)
        id = _random(_ID_LETTERS, ID_LENGTH)
        while id in self.records:
            id = _random(_ID_LETTERS, ID_LENGTH)
        key = make_secret(id)
        return NewKey(self._put(KeyRecord(id, settings, digest_of(key), now)), key)

    def edit(self, name: str, changes: Mapping[str, Any], now: float) -> KeyRecord:
        """Change some settings; an expired key may be given more time."""
        record = self._usable(name, now)
        settings = parse_key({**record.settings.model_dump(), **changes})
        if "expires_at" in changes:
            _refuse_expired(settings, now)
        if settings.name != record.settings.name or record.state(now) == "expired":
            self._refuse_taken(settings.name, now, but=record.id)
        return self._put(dataclasses.replace(record, settings=settings))

    def rotate(self, name: str, grace: float, now: float) -> NewKey:
        """Give a key another secret. The one that it has works for `grace` seconds more; any before it, no longer."""
        record = self._usable(name, now)
        if record.state(now) == "expired":
            raise ConflictError(
                f"the key {record.settings.name} has expired; give it more time first, with "
                f"`shoal keys edit {record.id} --expires 30d`",
                code="key_expired",
            )
        if not 0 <= grace <= MAX_GRACE:
            raise ShoalError(f"grace has to be from 0 to {MAX_GRACE:.0f} seconds, which is 30 days", param="grace")
        key = make_secret(record.id)
        former = Former(record.digest, now + grace) if grace else None
        return NewKey(self._put(dataclasses.replace(record, digest=digest_of(key), rotated_at=now, former=former)), key)

    def revoke(self, name: str, now: float) -> KeyRecord:
        """End a key for good; again changes nothing."""
        record = self.find(name, now)
        if record.revoked_at is not None:
            return record
        return self._put(dataclasses.replace(record, revoked_at=now, former=None))

    def messages(self, now: float) -> tuple[Key, ...]:
        """Every key for relays, in the order of their making."""
        found = sorted(self.records.values(), key=lambda record: (record.created_at, record.id))
        return tuple(key for record in found for key in record.messages(now))

    def _usable(self, name: str, now: float) -> KeyRecord:
        record = self.find(name, now)
        if record.revoked_at is not None:
            raise ConflictError(
                f"the key {record.settings.name} ({record.id}) was revoked; make a new one with `shoal keys create`",
                code="key_revoked",
            )
        return record

    def _refuse_taken(self, name: str, now: float, but: str = "") -> None:
        for record in self.records.values():
            if record.id != but and record.settings.name == name and record.state(now) == "living":
                raise ConflictError(
                    f"there is a key {name} already ({record.id}); take another name, or revoke that one",
                    code="key_exists",
                    param="name",
                )

    def _put(self, record: KeyRecord) -> KeyRecord:
        self.records[record.id] = record
        return record


def any_living(records: Iterable[KeyRecord], now: float) -> bool:
    """Whether one of the keys works."""
    return any(record.state(now) == "living" for record in records)


def must_show_key(records: Iterable[KeyRecord], *, exposed: bool) -> bool:
    """Whether a request without a key is to be refused: others than this machine can connect (`exposed`), or there is
    a key that nobody has revoked. One that has expired counts here: time alone is to close a door, never to open one.
    """
    return exposed or any(record.revoked_at is None for record in records)


def make_secret(id: str) -> str:
    """A whole new key for an id."""
    return f"{PREFIX}{id}-{_random(_SECRET_LETTERS, SECRET_LENGTH)}"


def digest_of(key: str | bytes) -> str:
    """What is kept of a key: its SHA-256 in hex."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def parse_key(data: Mapping[str, Any]) -> KeySettings:
    """A key's settings from untrusted data. Raises ShoalError that names each fault."""
    try:
        return KeySettings.model_validate(dict(data))
    except ValidationError as error:
        raise ShoalError(explain(error, KeySettings), code="invalid_settings") from None


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `15m`, `1h`, `30d` or `2w`. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a time; write it as 90s, 15m, 1h, 30d or 2w")
    return float(int(match[1]) * _UNITS[match[2]])


def parse_expiry(text: str, now: float) -> float:
    """When a key ends, in Unix seconds: `30d` from now, or with the day `2026-12-31` (UTC). Raises ValueError."""
    try:
        day = datetime.date.fromisoformat(text.strip())
    except ValueError:
        try:
            return now + parse_duration(text)
        except ValueError:
            raise ValueError(f"{text!r} is neither a time such as 30d nor a day such as 2026-12-31") from None
    start = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
    return start.timestamp() + 86_400


def _refuse_expired(settings: KeySettings, now: float) -> None:
    if settings.expires_at is not None and settings.expires_at <= now:
        raise ShoalError("expires_at is in the past; name a later time", code="invalid_settings", param="expires_at")


def _random(letters: str, length: int) -> str:
    return "".join(secrets.choice(letters) for _ in range(length))
