"""Messages and frames: round trips, limits, and what is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.memory import messages as m
from shoal.memory.ages import AGES

_sizes = st.integers(0, 2**53)
_names = st.text(st.characters(exclude_categories=["C"], exclude_characters='"\\'), min_size=1, max_size=128)
_priorities = st.integers(1, 1000)
_to_broker = st.one_of(
    st.builds(
        m.Hello,
        engine=_names,
        rank=st.integers(0, 65535),
        device=_names,
        device_size=st.integers(1, 2**53),
        floor=_sizes,
        ceiling=st.none() | _sizes,
        priority=_priorities,
        unit=st.integers(1, 2**40),
        held=_sizes,
    ),
    st.builds(m.Ask, need=_sizes, want=_sizes, seq=_sizes),
    st.builds(m.Release, size=_sizes),
    st.builds(
        m.Report,
        used=_sizes,
        cached=st.lists(_sizes, max_size=len(AGES)).map(tuple),
        backed=_sizes,
        waiting=_sizes,
    ),
    st.builds(m.SetTerms, engine=_names, floor=st.none() | _sizes, priority=st.none() | _priorities),
    st.builds(m.SetBudget, device=_names, limit=st.none() | _sizes, unlimited=st.booleans()),
    st.builds(m.Trim, engine=_names, lease=_sizes),
    st.builds(
        m.Reserve,
        device=_names,
        size=_sizes,
        device_size=st.none() | st.integers(1, 2**53),
        holder=_names,
        arriving=st.booleans(),
    ),
    st.builds(m.List),
    st.builds(m.Watch, interval=st.floats(0.05, 3600)),
)
_from_broker = st.one_of(
    st.builds(m.Welcome, lease=_sizes, floor=_sizes, ceiling=st.none() | _sizes, priority=_priorities),
    st.builds(m.Grant, size=_sizes, missing=_sizes, seq=_sizes, most=st.none() | _sizes),
    st.builds(m.Recall, lease=_sizes, reason=st.sampled_from(["idle", "share", "floor", "budget", "limit", "trim"])),
    st.builds(m.Terms, floor=_sizes, ceiling=st.none() | _sizes, priority=_priorities),
    st.builds(m.Done),
    st.builds(m.Error, code=st.text(max_size=50), message=st.text(max_size=500), fatal=st.booleans()),
)


@given(st.lists(_to_broker, max_size=5), st.data())
def test_messages_to_the_broker_survive_any_cut_of_the_stream(sent: list[m.ToBroker], data: st.DataObject) -> None:
    stream = b"".join(map(m.frame, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    frames = m.Frames()
    payloads: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        payloads += frames.feed(stream[start:end])
    assert [m.to_broker(payload) for payload in payloads] == sent


@given(_from_broker)
def test_messages_from_the_broker_survive_the_trip(sent: m.FromBroker) -> None:
    (payload,) = m.Frames().feed(m.frame(sent))
    assert m.from_broker(payload) == sent


@given(st.binary(max_size=300))
def test_random_payloads_raise_nothing_but_protocol_errors(payload: bytes) -> None:
    for decode in (m.to_broker, m.from_broker):
        with pytest.raises(m.ProtocolError):
            decode(payload)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "nonsense"},
        {"type": None},
        {"need": -1},
        {"need": 2**60},
        {"need": 10**400},
        {"need": "5"},
        {"need": 1.5},
        {"need": None},
        {"deep": [[]]},
    ],
)
def test_a_message_with_wrong_contents_is_refused(change: dict[str, object]) -> None:
    text = json.dumps({"v": 1, "type": "ask", "need": 5} | change)
    if change == {"deep": [[]]}:
        # An unknown field is passed over, as a later release may add one, but not if it is a bomb.
        assert m.to_broker(text.encode()) == m.Ask(need=5)
        text = text.replace("[[]]", "[" * 30000 + "]" * 30000)
    with pytest.raises(m.ProtocolError):
        m.to_broker(text.encode())


def test_another_version_is_refused_with_both_versions_even_if_its_messages_are_unknown() -> None:
    for text in ('{"v": 2, "type": "ask", "need": 5}', '{"v": 2, "type": "new", "x": 1}'):
        with pytest.raises(m.ProtocolError, match=r"version 2 of the protocol.*speaks 1.*install the same version"):
            m.to_broker(text.encode())
    with pytest.raises(m.ProtocolError):
        m.to_broker(b'{"type": "ask", "need": 5}')


def test_messages_of_an_older_release_of_the_same_version_are_read() -> None:
    assert m.from_broker(b'{"v": 1, "type": "grant", "size": 5, "missing": 1, "seq": 2}') == m.Grant(
        size=5, missing=1, seq=2, most=None
    )
    for size in (-1, 2**60, 1.5, None):
        with pytest.raises(m.ProtocolError):
            m.to_broker(json.dumps({"v": 1, "type": "reserve", "device": "gpu", "size": size}).encode())


@pytest.mark.parametrize("length", [0, m.MAX_FRAME + 1, 2**32 - 1])
def test_a_frame_of_an_impossible_length_is_refused_before_it_is_read(length: int) -> None:
    with pytest.raises(m.ProtocolError, match=f"a frame of {length} bytes"):
        m.Frames().feed(struct.pack(">I", length))


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "a\n", 'a"b', "a\\b", "\x7f"])
def test_names_are_short_and_printable(name: str) -> None:
    with pytest.raises(m.ProtocolError):
        m.to_broker(json.dumps({"v": 1, "type": "trim", "engine": name}).encode())


def test_the_longest_listing_fits_a_frame() -> None:
    name, big = "\U0001f40b" * 128, 2**63
    member = m.MemberState(
        engine=name,
        rank=65535,
        pid=2**22,
        lease=big,
        floor=big,
        ceiling=big,
        priority=1000,
        used=big,
        cached=big,
        backed=big,
        need=big,
        waiting=big,
        recalled=big,
        want=big,
        cached_by_age=(big,) * len(AGES),
    )
    device = m.DeviceState(
        key=name, size=big, budget=big, headroom=big, others=big, leased=big, owed=big, limit=big, free=big,
        held_back=big,
    )  # fmt: skip
    assert len(m.frame(m.Listing(device=device, members=(member,) * m.MEMBERS_A_FRAME, more=True))) <= m.MAX_FRAME


def test_an_engine_needs_nothing_but_msgspec_and_the_standard_library() -> None:
    code = (
        "import sys, shoal.memory.client, shoal.memory.policy\n"
        "known = set(sys.stdlib_module_names) | {'shoal', 'msgspec', 'typing_extensions'}  # the last is msgspec's\n"
        "extra = {name.partition('.')[0] for name in sys.modules} - known\n"
        "print(sorted(n for n in extra if not n.startswith('_')))\n"
        "print(sorted(n for n in sys.modules if n.startswith('shoal.') and not n.startswith('shoal.memory')))\n"
    )
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "[]"]
