"""What the memory commands draw and tell, without a broker."""

from __future__ import annotations

from dataclasses import asdict
from io import StringIO

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shoal.cli.memory_view import changes, parts, spread, view
from shoal.memory.messages import DeviceState, MemberState
from shoal.memory.tools import Books, DeviceBook

GIB = 2**30


def _member(engine: str = "a", **values: int | None) -> MemberState:
    base = MemberState(
        engine=engine, rank=0, pid=1, lease=4 * GIB, floor=0, ceiling=None, priority=100, used=GIB, cached=2 * GIB,
        backed=4 * GIB, need=GIB, waiting=0, recalled=None,
    )  # fmt: skip
    return msgspec.structs.replace(base, **values)


def _device(**values: int | None) -> DeviceState:
    base = DeviceState(key="gpu", size=80 * GIB, budget=50 * GIB, headroom=2 * GIB, others=20 * GIB, leased=4 * GIB,
                       owed=0, held_back=8 * GIB)  # fmt: skip
    return msgspec.structs.replace(base, **values)


def _drawn(books: Books, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, markup=False)
    console.print(view(books, lambda key: key))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@given(st.lists(st.integers(0, 2**40), max_size=9), st.integers(1, 300))
def test_a_bar_is_as_wide_as_it_may_be_and_shows_what_is_there(sizes: list[int], width: int) -> None:
    cells = spread(sizes, width)
    assert sum(cells) == (width if sum(sizes) else 0)
    if sum(1 for size in sizes if size) <= width:
        assert all((size > 0) == (n > 0) for size, n in zip(sizes, cells, strict=True))


def test_the_parts_of_a_device_add_up_to_it() -> None:
    book = DeviceBook(_device(), (_member(),))
    found = {part.name: part.size // GIB for part in parts(book) if part.size}
    assert found == {
        "in use": 1, "cached": 2, "leased, empty": 1, "others": 20, "held back": 8, "headroom": 2, "free": 46
    }  # fmt: skip
    assert sum(found.values()) == 80
    limited = DeviceBook(_device(limit=10 * GIB, budget=10 * GIB), (_member(),))
    assert {part.name: part.size // GIB for part in parts(limited)}["beyond the limit"] == 40
    # An engine that says more than its lease does not draw over its neighbours.
    greedy = DeviceBook(_device(), (_member(used=90 * GIB, cached=9 * GIB),))
    assert sum(part.size for part in parts(greedy)) == 80 * GIB


def test_what_is_drawn_fits_and_names_are_text() -> None:
    members = (_member("x" * 100), _member("[red]\x1b[31mevil"), _member("c", waiting=3, need=9 * GIB, recalled=GIB))
    text = _drawn({"gpu": DeviceBook(_device(owed=GIB), members)})
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    assert "[red]" in text
    words = " ".join(text.split())
    assert "1.0 GiB to be given back" in words
    assert "3 waiting" in words


def test_changes_are_what_came_went_and_differs() -> None:
    before: Books = {"gpu": DeviceBook(_device(), (_member("a"), _member("b")))}
    after: Books = {
        "gpu": DeviceBook(_device(leased=6 * GIB), (_member("a", lease=6 * GIB, used=GIB + 1), _member("c", rank=1)))
    }
    told = changes(before, after)
    assert [change.words(str) for change in told] == [
        "gpu: leased 4.0 GiB → 6.0 GiB",
        "a on gpu: lease 4.0 GiB → 6.0 GiB",  # one byte is in the JSON and not worth a word
        "b on gpu: has left",
        "c/1 on gpu: is here, lease 4.0 GiB, used 1.0 GiB, cached 2.0 GiB, priority 100, need 1.0 GiB",
    ]
    assert told[1].as_dict() == {
        "kind": "engine", "what": "changed", "device": "gpu", "engine": "a", "rank": 0, "lease": 6 * GIB,
        "used": GIB + 1, "before": {"lease": 4 * GIB, "used": GIB},
    }  # fmt: skip
    assert asdict(told[2])["fields"] == {}
    assert changes(after, after) == []
    tiny = changes(before, {"gpu": DeviceBook(_device(), (_member("a", used=GIB + 1), _member("b")))})
    assert [change.words(str) for change in tiny] == [None]
