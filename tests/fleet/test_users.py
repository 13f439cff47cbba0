"""Users, their sessions, and who may do what: pure, with the clock and the salt in the test's hand."""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal.errors import ShoalError
from shoal.fleet.attempts import BURST, PERIOD_OF_NAME, Attempts, Buckets
from shoal.fleet.sessions import AHEAD, IDLE, LONGEST, MOST, NOTED, Session, SessionBook, digest_of
from shoal.fleet.users import (
    MAX_PASSWORD,
    MAX_USER_NAME,
    MIN_PASSWORD,
    MOST_MEMORY,
    ROLES,
    Cost,
    PasswordHash,
    Peer,
    User,
    UserBook,
    Way,
    check_password,
    check_role,
    check_user_name,
    hash_password,
    peer_of,
    refusal,
)

CHEAP = Cost(2, 1, 1)
SALT = bytes(range(16))


def kept(password: str = "correct horse") -> PasswordHash:
    return hash_password(password, SALT, CHEAP)


def user(name: str = "ann", role: str = "admin") -> User:
    return User(name, check_role(role), kept(), 1.0, 1.0)


# -- passwords ---------------------------------------------------------------------------------------------------------


def test_the_hash_is_scrypt() -> None:
    """A vector of RFC 7914, section 12, of which the first 32 bytes are kept."""
    found = hash_password("pleaseletmein", b"SodiumChloride", Cost(16384, 8, 1))
    assert found.digest == "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"


SETTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
"""Without NUL, which `check_password` refuses: to HMAC, and so to scrypt, one at the end is the padding of a key."""


@settings(max_examples=50)
@given(SETTABLE, SETTABLE)
def test_a_password_matches_its_own_hash_alone(one: str, other: str) -> None:
    found = hash_password(one, SALT, CHEAP)
    assert found.matches(one)
    if one.encode("utf-8", "replace") != other.encode("utf-8", "replace") and one.isascii() and other.isascii():
        assert found.matches(other) == (one == other)


def test_the_same_letters_from_another_keyboard_are_the_same_password() -> None:
    assert hash_password("cafe\u0301-creme", SALT, CHEAP).matches("caf\u00e9-creme")


def test_two_users_with_one_password_have_two_hashes() -> None:
    assert hash_password("same", bytes(16), CHEAP).digest != hash_password("same", SALT, CHEAP).digest


def test_the_parameters_beside_the_hash_are_those_that_are_used() -> None:
    old = hash_password("x", SALT, CHEAP)
    assert old.matches("x")
    assert not dataclasses.replace(old, cost=Cost(4, 1, 1)).matches("x")


@pytest.mark.parametrize(
    ("n", "r", "p"), [(0, 8, 1), (3, 8, 1), (1, 8, 1), (2, 0, 1), (2, 1, 0), (2, 1, 65), (2**30, 8, 1)]
)
def test_parameters_that_make_no_sense_or_take_the_machine_are_refused(n: int, r: int, p: int) -> None:
    with pytest.raises(ValueError):
        Cost(n, r, p)


def test_what_a_hash_costs_by_default() -> None:
    """OWASP's least for scrypt: 32 MiB, three times."""
    cost = Cost()
    assert (cost.n, cost.r, cost.p) == (2**15, 8, 3)
    assert 128 * cost.n * cost.r <= MOST_MEMORY


@pytest.mark.parametrize(
    "password", ["", "short", "x" * (MAX_PASSWORD + 1), "two\nlines12", "nul\0nul12", "\ud800" * 9]
)
def test_a_password_that_cannot_be_set_is_not_repeated(password: str) -> None:
    with pytest.raises(ShoalError) as caught:
        check_password(password)
    assert caught.value.param == "password"
    assert len(password) < MIN_PASSWORD or password[:6] not in caught.value.message


def test_a_password_may_have_blanks_and_any_script() -> None:
    for password in ("four words of it", "пароль-пароль", "🐟🐟🐟🐟🐟🐟🐟🐟"):
        assert check_password(password) == password


# -- the book ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ann", "ann ", "a:b", "a/b", "a\nb", "x" * 101, "\ufb2c" * 100, "a\0"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ShoalError) as caught:
        check_user_name(name)
    assert caught.value.param == "name"


def test_a_user_is_made_changed_and_forgotten() -> None:
    book = UserBook()
    made, new = book.put("ann", "admin", kept(), 5.0)
    assert (made, new) == (User("ann", "admin", kept(), 5.0, 5.0), True)
    changed, new = book.put("ann", "read-only", None, 7.0)
    assert (changed, new) == (User("ann", "read-only", kept(), 5.0, 7.0), False)
    other, _ = book.put("ann", None, kept("another one"), 8.0)
    assert (other.role, other.password.matches("another one")) == ("read-only", True)
    assert book.find("ann") is other
    assert book.remove("ann") is other
    for act in (book.find, book.remove):
        with pytest.raises(ShoalError, match="no user ann") as caught:
            act("ann")
        assert caught.value.status == 404


@pytest.mark.parametrize(("given", "param"), [((None, kept()), "role"), (("admin", None), "password")])
def test_a_new_user_needs_a_role_and_a_password(given: tuple[None, None], param: str) -> None:
    book = UserBook()
    with pytest.raises(ShoalError) as caught:
        book.put("ann", *given, 1.0)
    assert (caught.value.param, book.records) == (param, {})


def test_there_are_two_roles() -> None:
    assert [check_role(role) for role in ROLES] == ["admin", "read-only"]
    with pytest.raises(ShoalError, match="admin and read-only"):
        check_role("root")


def test_what_is_too_long_is_not_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes time by the square of the length, where marks follow marks."""
    composed: list[str] = []

    def normalize(_: str, text: str) -> str:
        composed.append(text)
        return text

    monkeypatch.setattr(unicodedata, "normalize", normalize)
    name = "a" + "\u0323\u0307" * MAX_USER_NAME
    for act in (
        check_user_name,
        UserBook().find,
        UserBook().remove,
        lambda name: UserBook().put(name, None, None, 1.0),
    ):
        with pytest.raises(ShoalError) as caught:
            act(name)
        assert len(caught.value.message) < 2 * MAX_USER_NAME
    assert composed == []


# -- who asks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "forwarded", "peer"),
    [
        ([], "", Peer(Way.OWN)),
        ([], "10.0.0.1", Peer(Way.OWN)),
        (["127.0.0.1"], "", Peer(Way.LOCAL, "127.0.0.1")),
        (["127.9.9.9"], "", Peer(Way.LOCAL, "127.9.9.9")),
        (["::1"], "", Peer(Way.LOCAL, "::/64")),
        (["::ffff:127.0.0.1"], "", Peer(Way.LOCAL, "127.0.0.1")),
        (["127.0.0.1"], "8.8.8.8, 10.1.2.3", Peer(Way.LOCAL, "10.1.2.3", True)),
        (["127.0.0.1"], "rubbish", Peer(Way.LOCAL, "127.0.0.1", True)),
        (["10.0.0.9"], "", Peer(Way.REMOTE, "10.0.0.9")),
        (["10.0.0.9"], "127.0.0.1", Peer(Way.REMOTE, "10.0.0.9")),
        (["2001:db8:1:2:3:4:5:6"], "", Peer(Way.REMOTE, "2001:db8:1:2::/64")),
        (["fe80::1%eth0"], "", Peer(Way.REMOTE, "fe80::/64")),
        (["unknown"], "", Peer(Way.REMOTE, "unknown")),
        ([""], "", Peer(Way.REMOTE, "unknown")),
        (["10.0.0.9", "127.0.0.1"], "", Peer(Way.REMOTE, "unknown")),
        (["10.0.0.9, 127.0.0.1"], "", Peer(Way.REMOTE, "unknown")),
    ],
)
def test_what_the_relay_says_of_a_client(said: list[str], forwarded: str, peer: Peer) -> None:
    assert peer_of(said, forwarded) == peer


def test_a_proxy_may_say_what_it_is_in_other_ways() -> None:
    assert peer_of(["127.0.0.1"], forwarded=True) == Peer(Way.LOCAL, "127.0.0.1", True)
    assert peer_of(["10.0.0.9"], forwarded=True) == Peer(Way.REMOTE, "10.0.0.9")
    assert peer_of([], forwarded=True) == Peer(Way.OWN)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3), st.text(max_size=40))
def test_nobody_becomes_the_owner_by_what_they_say(said: list[str], forwarded: str) -> None:
    assert peer_of(said, forwarded).way is not Way.OWN


def code(error: ShoalError | None) -> str:
    return "" if error is None else error.code


@pytest.mark.parametrize(("way", "insecure", "answer"), [
    (Way.OWN, False, ""), (Way.LOCAL, False, ""), (Way.REMOTE, False, "local_only"), (Way.REMOTE, True, ""),
])  # fmt: skip
def test_without_users_this_machine_is_asked_for_nothing(way: Way, insecure: bool, answer: str) -> None:
    for reading, public in itertools.product((True, False), repeat=2):
        found = refusal(way, None, needed=False, insecure=insecure, reading=reading, public=public)
        assert code(found) == answer
        assert found is None or "shoal users set" in found.message


def test_with_users_everybody_signs_in_but_the_owner() -> None:
    for way, insecure, reading in itertools.product((Way.LOCAL, Way.REMOTE), (True, False), (True, False)):
        found = refusal(way, None, needed=True, insecure=insecure, reading=reading)
        assert found is not None
        assert (found.status, found.code) == (401, "sign_in_required")
        assert not found.headers["WWW-Authenticate"].lower().startswith("basic"), "browsers would ask by themselves"
        assert refusal(way, None, needed=True, insecure=insecure, reading=reading, public=True) is None
    assert refusal(Way.OWN, None, needed=True, insecure=False, reading=False) is None


def test_who_may_only_look_changes_nothing() -> None:
    for way in (Way.LOCAL, Way.REMOTE):
        for role, reading in itertools.product(ROLES, (True, False)):
            found = refusal(way, user(role=role), needed=True, insecure=False, reading=reading)
            assert code(found) == ("" if reading or role == "admin" else "read_only")


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_is_found_by_its_token_alone() -> None:
    book = SessionBook()
    session, ended = book.start("secret", "ann", 10.0)
    assert (session, ended) == (Session(digest_of("secret"), "ann", 10.0, 10.0), [])
    assert "secret" not in repr(book.records)
    assert book.find("secret", 11.0) is session
    for other in ("", "Secret", session.id, "\ud800"):
        assert book.find(other, 11.0) is None


def test_it_ends_by_idleness_and_by_age() -> None:
    book = SessionBook()
    session, _ = book.start("t", "ann", 0.0)
    assert book.find("t", IDLE - 1) is session
    assert book.find("t", IDLE) is None
    now = 0.0
    while now < LONGEST - IDLE:
        now += IDLE / 2
        found = book.find("t", now)
        assert found is not None
        book.note(found, now)
    assert book.find("t", LONGEST - 1) is not None
    assert book.find("t", LONGEST) is None


@pytest.mark.parametrize("moment", ["created_at", "seen_at"])
def test_a_session_of_a_clock_that_was_ahead_has_ended(moment: str) -> None:
    now = 1e9
    for ahead, over in ((AHEAD, False), (AHEAD + 1, True), (10 * LONGEST, True)):
        session = Session(digest_of("t"), "ann", **{"created_at": now, "seen_at": now, moment: now + ahead})
        book = SessionBook([session])
        assert (book.find("t", now) is None) == over, ahead
        assert book.sweep(now, ["ann"]) == [session] * over


def test_its_use_is_written_down_now_and_then() -> None:
    book = SessionBook()
    session, _ = book.start("t", "ann", 0.0)
    assert book.note(session, NOTED - 1) is None
    noted = book.note(session, NOTED)
    assert noted is not None and noted.seen_at == NOTED
    assert book.find("t", NOTED) is noted
    book.end(noted.id)
    assert book.note(noted, 9 * NOTED) is None, "one that has ended does not come back"
    assert book.find("t", 9 * NOTED) is None


def test_a_user_has_so_many_and_then_the_oldest_ends() -> None:
    book = SessionBook()
    for n in range(MOST):
        assert book.start(f"t{n}", "ann", float(n))[1] == []
    book.start("other", "bob", 0.0)
    _, ended = book.start("one more", "ann", 99.0)
    assert [one.id for one in ended] == [digest_of("t0")]
    assert {one.id for one in book.end_of("ann")} == {digest_of(f"t{n}") for n in range(1, MOST)} | {
        digest_of("one more")
    }
    assert [one.user for one in book.records.values()] == ["bob"]


def test_the_sweep_ends_what_is_over_and_what_is_nobodys() -> None:
    book = SessionBook()
    book.start("old", "ann", 0.0)
    book.start("new", "ann", IDLE)
    book.start("gone", "bob", IDLE)
    assert {one.id for one in book.sweep(IDLE, ["ann"])} == {digest_of("old"), digest_of("gone")}
    assert list(book.records) == [digest_of("new")]
    assert book.sweep(IDLE, ["ann"]) == []


# -- attempts ----------------------------------------------------------------------------------------------------------


def test_a_burst_and_then_one_by_one() -> None:
    attempts = Attempts()
    for n in range(BURST):
        assert attempts.begin("ann", f"10.0.0.{n}", 0.0) == 0
    assert attempts.begin("ann", "10.0.1.1", 0.0) == pytest.approx(PERIOD_OF_NAME)
    assert attempts.begin("ann", "10.0.1.1", PERIOD_OF_NAME / 2) == pytest.approx(PERIOD_OF_NAME / 2)
    assert attempts.begin("ann", "10.0.1.1", PERIOD_OF_NAME) == 0
    assert attempts.begin("ann", "10.0.1.1", PERIOD_OF_NAME) > 0
    assert attempts.begin("bob", "10.0.1.1", PERIOD_OF_NAME) == 0, "another name is not held up"


def test_one_address_cannot_try_many_names() -> None:
    attempts = Attempts()
    allowed = [attempts.begin(f"name{n}", "10.0.0.1", 0.0) == 0 for n in range(100)]
    assert allowed == [True] * BURST + [False] * 90


def test_the_right_password_gives_the_attempt_back() -> None:
    attempts = Attempts()
    for _ in range(10 * BURST):
        assert attempts.begin("ann", "10.0.0.1", 0.0) == 0
        attempts.succeeded("ann", "10.0.0.1", 0.0)


def test_a_flood_of_other_names_does_not_give_attempts_back() -> None:
    buckets = Buckets(20.0, burst=10, most=50)
    for _ in range(10):
        buckets.take("ann", 0.0)
    for n in range(1000):
        buckets.take(f"n{n}", 0.0)
    assert buckets.wait("ann", 0.0) == 20.0
    assert len(buckets) == 50


class AnyTries(RuleBasedStateMachine):
    """Whatever comes, in whatever order and with a clock that may stand or go back: memory and guesses are bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1e6
        self.passed = 0.0
        self.buckets = Buckets(20.0, burst=3, most=4)
        self.taken: dict[str, int] = {}

    @rule(seconds=st.floats(-5, 100))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.passed += max(0.0, seconds)  # what was set back may pass once more

    @rule(key=st.sampled_from(["a", "b", "c"]))
    def attempt(self, key: str) -> None:
        if self.buckets.wait(key, self.now) == 0:
            self.buckets.take(key, self.now)
            self.taken[key] = self.taken.get(key, 0) + 1

    @invariant()
    def bounded(self) -> None:
        assert len(self.buckets) <= 4
        room = 3 + self.passed / 20.0 + 1e-6
        assert all(taken <= room for taken in self.taken.values())


TestAnyTries = AnyTries.TestCase


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("ab")), max_size=60))
def test_no_key_ever_gets_more_than_its_burst_and_what_time_gives(steps: list[tuple[float, str]]) -> None:
    buckets, now = Buckets(20.0, burst=3), 0.0
    taken = {"a": 0, "b": 0}
    for seconds, key in steps:
        now += seconds
        wait = buckets.wait(key, now)
        if wait == 0:
            buckets.take(key, now)
            taken[key] += 1
        else:
            assert buckets.wait(key, now + wait + 1e-6) == 0, "what is said to be the wait is enough"
        assert taken[key] <= 3 + now / 20.0 + 1e-6
