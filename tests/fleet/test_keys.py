"""The book of keys: what it makes, what it refuses, and that it never changes anything when it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ShoalError
from shoal.fleet.keys import (
    MAX_GRACE,
    SECRET_LENGTH,
    KeyBook,
    KeySettings,
    any_living,
    digest_of,
    must_show_key,
    parse_duration,
    parse_expiry,
    parse_key,
)

NOW = 1_750_000_000.0


def refused(book: KeyBook, call: Any, *args: Any) -> ShoalError:
    """The error of a command, which must have changed nothing."""
    before = dict(book.records)
    with pytest.raises(ShoalError) as caught:
        call(*args)
    assert book.records == before
    return caught.value


def test_a_key_has_190_random_bits_and_only_its_digest_is_kept() -> None:
    book = KeyBook()
    new = book.create(KeySettings(name="me"), NOW)
    assert re.fullmatch(rf"sk-shoal-{new.record.id}-[0-9A-Za-z]{{32}}", new.key)
    assert re.fullmatch("[0-9a-z]{8}", new.record.id)
    assert SECRET_LENGTH * math.log2(62) > 190
    assert new.record.digest == digest_of(new.key) == digest_of(new.key.encode())
    assert re.fullmatch("[0-9a-f]{64}", new.record.digest)
    secret = new.key.rpartition("-")[2]
    assert secret not in repr(new.record)
    assert new.record.prefix == f"sk-shoal-{new.record.id}"
    assert secret not in new.record.prefix


def test_no_two_keys_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    book = KeyBook()
    made = [book.create(KeySettings(name=f"key {n}"), NOW) for n in range(200)]
    assert len({new.key for new in made}) == len(book.records) == 200
    taken = list(made[0].record.id)
    drawn = iter([*taken, *"fresh000", *"x" * 100])
    monkeypatch.setattr(secrets, "choice", lambda _letters: next(drawn))
    assert book.create(KeySettings(name="another"), NOW).record.id == "fresh000"


def test_names_are_unique_among_those_that_work() -> None:
    book = KeyBook()
    first = book.create(KeySettings(name="me", expires_at=NOW + 10), NOW).record
    error = refused(book, book.create, KeySettings(name="me"), NOW)
    assert (error.status, error.code, error.param) == (409, "key_exists", "name")
    second = book.create(KeySettings(name="me"), NOW + 10).record  # the first has expired
    assert book.find("me", NOW + 10) == second
    assert book.find(first.id, NOW + 10) == first
    error = refused(book, book.edit, first.id, {"expires_at": NOW + 100}, NOW + 10)  # would come back beside it
    assert error.code == "key_exists"
    book.revoke(second.id, NOW + 11)
    assert book.edit(first.id, {"expires_at": NOW + 100}, NOW + 12).state(NOW + 12) == "living"
    other = book.create(KeySettings(name="you"), NOW).record
    assert refused(book, book.edit, other.id, {"name": "me"}, NOW + 12).code == "key_exists"
    assert book.edit(other.id, {"name": "you"}, NOW + 12) == other


def test_an_edit_changes_what_it_names() -> None:
    book = KeyBook()
    made = book.create(KeySettings(name="me", models=("a",), requests_per_minute=5), NOW).record
    edited = book.edit("me", {"requests_per_minute": None, "priority": "low"}, NOW)
    assert edited.settings == KeySettings(name="me", models=("a",), priority="low")
    assert (edited.id, edited.digest) == (made.id, made.digest)
    assert refused(book, book.edit, "me", {"prority": "low"}, NOW).message.endswith("did you mean priority?")
    assert refused(book, book.edit, "me", {"expires_at": NOW}, NOW).code == "invalid_settings"
    assert refused(book, book.edit, "nobody", {}, NOW).status == 404


def test_a_rotated_key_is_the_same_key_with_another_secret() -> None:
    book = KeyBook()
    first = book.create(KeySettings(name="me", expires_at=NOW + 5000), NOW)
    second = book.rotate("me", 0, NOW + 1)
    assert second.record.id == first.record.id
    assert second.record.settings == first.record.settings
    assert second.record.rotated_at == NOW + 1
    assert [key.digest for key in book.messages(NOW + 1)] == [digest_of(second.key)]
    third = book.rotate("me", 3600, NOW + 2)
    both = book.messages(NOW + 2)
    assert [(key.id, key.digest, key.expires_at) for key in both] == [
        (first.record.id, digest_of(third.key), NOW + 5000),
        (first.record.id, digest_of(second.key), NOW + 3602),
    ]
    assert len(book.messages(NOW + 3602)) == 1
    book.edit("me", {"expires_at": NOW + 100}, NOW + 3)  # a former secret never outlives its key
    assert [key.expires_at for key in book.messages(NOW + 3)] == [NOW + 100, NOW + 100]
    assert refused(book, book.rotate, "me", 0, NOW + 100).code == "key_expired"
    for grace in (-1.0, MAX_GRACE + 1, math.nan, math.inf):
        assert refused(book, book.rotate, "me", grace, NOW + 4).param == "grace"


def test_a_revoked_key_is_gone_for_good_with_its_former_secret() -> None:
    book = KeyBook()
    made = book.create(KeySettings(name="me"), NOW).record
    book.rotate("me", 3600, NOW)
    revoked = book.revoke("me", NOW + 1)
    assert book.messages(NOW + 1) == ()
    assert revoked.state(NOW + 1) == "revoked"
    assert book.revoke(made.id, NOW + 2) == revoked  # again: no change
    for call in (lambda: book.edit(made.id, {}, NOW + 2), lambda: book.rotate(made.id, 0, NOW + 2)):
        error = refused(book, call)
        assert (error.status, error.code) == (409, "key_revoked")
    assert KeyBook(book.records.values()).records == book.records


def test_an_expired_key_is_still_told_of_and_closes_what_it_closed() -> None:
    book = KeyBook()
    assert not must_show_key(book.records.values(), exposed=False)
    assert must_show_key(book.records.values(), exposed=True)
    book.create(KeySettings(name="me", expires_at=NOW + 1), NOW)
    assert any_living(book.records.values(), NOW)
    assert not any_living(book.records.values(), NOW + 1)
    assert must_show_key(book.records.values(), exposed=False)
    assert [key.expires_at for key in book.messages(NOW + 9)] == [NOW + 1]
    book.revoke("me", NOW + 9)
    assert not must_show_key(book.records.values(), exposed=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "name: Field required"),
        ({"name": ""}, "name: a key's name has 1 to 100 characters"),
        ({"name": " me"}, "no blanks at its ends"),
        ({"name": "x" * 101}, "1 to 100 characters"),
        ({"name": "a\nb"}, "control characters or line breaks"),
        ({"name": "\ud800"}, "name"),
        ({"name": "me", "models": ["/x"]}, "models.0: a name cannot be a path"),
        ({"name": "me", "models": "a"}, "models"),
        ({"name": "me", "priority": "urgent"}, "priority: Input should be 'high', 'normal' or 'low'"),
        ({"name": "me", "weight": 0}, "weight"),
        ({"name": "me", "weight": math.nan}, "weight"),
        ({"name": "me", "requests_per_minute": 0}, "requests_per_minute: Input should be greater than or equal to 1"),
        ({"name": "me", "tokens_per_minute": 1.5}, "tokens_per_minute"),
        ({"name": "me", "concurrent": 10**13}, "concurrent"),
        ({"name": "me", "expires_at": math.inf}, "expires_at"),
        ({"name": "me", "digest": "0" * 64}, "digest: there is no such setting"),
        ({"name": "me", "id": "00000000"}, "id: there is no such setting"),
    ],
)
def test_settings_that_cannot_be(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError) as caught:
        parse_key(data)
    assert message in caught.value.message
    assert (caught.value.status, caught.value.code) == (400, "invalid_settings")


def test_models_are_named_once_and_in_one_form() -> None:
    assert parse_key({"name": "e\u0301", "models": ["b", "a", "b", "e\u0301"]}).models == ("b", "a", "é")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("30d", 2_592_000), ("2w", 1_209_600), (" 1 H ", 3600)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_expiry(text, NOW) == NOW + seconds


def test_a_key_works_for_the_whole_of_its_last_day() -> None:
    assert parse_expiry("1970-01-01", NOW) == 86_400
    assert parse_expiry("2026-12-31", NOW) == 1_798_761_600  # 2027-01-01T00:00:00Z


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "1y", "2026-13-01", "tomorrow", "9" * 400 + "d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="neither a time such as 30d nor a day such as 2026-12-31"):
        parse_expiry(text, NOW)


@given(st.text(max_size=30) | st.from_regex(r"[0-9-]{0,12}[smhdw]?", fullmatch=True))
def test_no_text_fails_in_another_way(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert math.isfinite(parse_expiry(text, NOW))


def test_records_are_not_to_be_changed() -> None:
    record = KeyBook().create(KeySettings(name="me"), NOW).record
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.digest = ""  # type: ignore[misc]
