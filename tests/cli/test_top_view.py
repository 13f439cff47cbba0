"""What `shoal top` shows: what is known of the fleet, rows, acts, and pictures that fit whatever there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from shoal.cli import top_acts, top_help, top_view
from shoal.cli.top_looks import ASCII, SHAPES, legend
from shoal.cli.top_rates import Rates
from shoal.cli.top_rows import ORDERS, Looking, arranged, beside, columns, note
from shoal.cli.top_state import EVENTS_KEPT, Fleet
from tests.cli.scripted import GIB, device, instance, memory
from tests.cli.top_parts import NOW, STRANGE, elastic, fleet, message, model, shown


def test_the_stream_is_followed() -> None:
    known = fleet(model("a", instance("a-1", "a", "ready")), model("b"))
    known.take("model", model("c"), NOW)
    known.take("model_removed", {"name": "b"}, NOW)
    known.take("devices", {"devices": [device("cuda:7")]}, NOW)
    assert list(known.models) == ["a", "c"]
    assert known.devices[0]["id"] == "cuda:7"
    fresh = elastic(GIB, GIB, 0)
    known.take("memory", {"devices": [device("cuda:0")], "instances": {"a-1": fresh}}, NOW)
    assert known.models["a"]["instances"][0]["memory"] == fresh
    known.take("preset_run", {"anything": 1}, NOW)
    known.take("snapshot", {"status": known.status, "devices": [], "models": []}, NOW)
    assert known.models == {}


def test_what_happened_is_kept_once_and_in_order() -> None:
    known = fleet()
    known.take("message", message(NOW + 2, "second"), NOW)
    known.take("history", [message(NOW + 1, "first", id=4), message(NOW + 2, "second", id=5)], NOW)
    assert [one["message"] for one in known.events] == ["first", "second"]
    known.take("history", [message(NOW + 10 + n, f"{n}") for n in range(500)], NOW)
    assert len(known.events) == EVENTS_KEPT
    assert known.events[-1]["message"] == "499"


def test_a_connection_is_lost_while_the_stream_or_the_readings_are() -> None:
    known = fleet()
    known.take("lost", "nothing listens", NOW + 5)
    known.take("traffic", {"at": NOW, "bounds": [], "models": []}, NOW + 6)
    assert known.lost == "nothing listens"
    known.take("snapshot", {"status": known.status, "devices": [], "models": []}, NOW + 7)
    assert (known.lost, known.heard_at) == ("", NOW + 7)
    known.take("unread", "no answer in time", NOW + 8)
    known.take("message", message(NOW, "still there"), NOW + 9)
    assert known.lost == "no answer in time"
    known.take("usage", [{"model": "a", "last_used": NOW - 60}, {"model": None, "last_used": 0}], NOW + 10)
    assert known.lost == ""
    assert known.last_use == {"a": NOW - 60}


def test_an_answer_does_not_undo_what_the_stream_told_meanwhile() -> None:
    known = fleet(model("a"))
    before = known.models["a"]
    known.accept(model("a", state="queued"), before)
    assert known.models["a"]["state"] == "queued"
    known.take("model", model("a", state="failed"), NOW)
    known.accept(model("a", state="queued"), before)
    assert known.models["a"]["state"] == "failed"


# -- rows --------------------------------------------------------------------------------------------------------------


def test_orders_and_search() -> None:
    known = fleet(
        model("b", instance("b-1", "b", "sleeping")),
        model("a", instance("a-1", "a", "failed", devices=["cuda:1"])),
        model("c", instance("c-1", "c", "ready", memory=elastic(GIB, GIB, GIB))),
        model("D"),
    )
    known.rates = {"b": Rates(requests=2, tokens=1), "a": Rates(requests=1, tokens=9), "D": Rates(waiting=3)}
    known.last_use = {"a": 5.0, "D": 6.0}
    firsts = {order: [one["name"] for one in arranged(known, Looking(order=order))] for order in ORDERS}
    assert firsts == {
        "state": ["c", "a", "b", "D"],
        "name": ["a", "b", "c", "D"],
        "requests/s": ["b", "a", "c", "D"],
        "tokens/s": ["a", "b", "c", "D"],
        "waiting": ["D", "a", "b", "c"],
        "KV": ["c", "a", "b", "D"],
        "last use": ["D", "a", "b", "c"],
    }
    assert [one["name"] for one in arranged(known, Looking(search="TOY cuda:1"))] == ["a"]
    assert arranged(known, Looking(search="nothing has this")) == []


def test_selecting_stays_within_the_list() -> None:
    assert beside([], "a", 1) == ""
    assert beside(["a", "b"], "gone", 1) == "a"
    assert [beside(["a", "b"], "a", step) for step in (-5, 0, 1, 5)] == ["a", "a", "b", "b"]


def test_what_a_model_waits_for_or_suffers_from() -> None:
    progress = {"phase": "loading weights", "percent": 40, "seconds_left": 3.0}
    failure = {"message": "It ran out of memory.", "hint": "Unload another.", "code": "oom"}
    said = [
        note(model("a", instance("1", "a", "starting", progress=progress))),
        note(model("a", instance("1", "a", "queued", reason="waits for cuda:0"))),
        note(model("a", instance("1", "a", "failed", failure=failure))),
        note(model("a", instance("1", "a", "ready", memory=memory(lease=1, waiting=2)))),
        note(model("a", instance("1", "a", "ready"))),
        note(model("a")),
    ]
    assert said == [
        "loading weights, 40 %, about 3.0 s left",
        "waits for cuda:0",
        "It ran out of memory. Unload another.",
        "2 requests wait for memory",
        "",
        "",
    ]


@given(st.integers(0, 400), st.integers(0, 400))
def test_columns_fit(width: int, longest: int) -> None:
    shape = columns(width, longest)
    total = 14 + shape.name + sum(1 + wide for _, wide in shape.numbers) + (1 + shape.note if shape.note else 0)
    assert total <= max(width, 15)
    assert shape.name >= min(14, max(1, width - 14))


# -- pictures ----------------------------------------------------------------------------------------------------------


def busy() -> Fleet:
    known = fleet(
        model("long" * 60),
        model("qwen", instance("q-1", "qwen", "ready", memory=elastic(56 * GIB, 28 * GIB, 14 * GIB, floor=35 * GIB))),
        model("tiny", instance("t-1", "tiny", "queued", reason="waits for 3.0 GiB on cuda:0"), pin=True),
        devices=(
            device("cuda:0", memory_used=105 * GIB),
            device("host", kind="host", memory_used=GIB, utilization=None),
        ),
    )
    known.rates = {"qwen": Rates(2.04, 61.0, 0.088, 1.24, 3, 1)}
    known.last_use = {"qwen": NOW - 130}
    known.take("message", message(NOW, "vLLM ran out of memory", level="error", model="tiny"), NOW)
    return known


def test_everything_is_told_in_words_and_characters() -> None:
    """Without colour: what is drawn is text alone."""
    lines = shown(busy(), selected="qwen", glyphs=ASCII)
    assert lines[0].startswith("cuda:0 ")
    assert "##=======----//...." in lines[0]
    assert lines[0].endswith(" 75 % 105.0 of 140.0 GiB  42 % busy")
    assert "____" in lines[1]
    assert "^" in lines[1]
    (qwen,) = [line for line in lines if line.startswith("> qwen")]
    assert qwen.split() == [">", "qwen", "*", "ready", "2.0", "61", "3", "1", "88ms/1.2s", "28.0G/14.0G", "2m"]
    (tiny,) = [line for line in lines if line.startswith("  tiny")]
    assert "P ? queued" in tiny
    assert "waits for 3.0 GiB on cuda:0" in tiny
    assert any(line.rstrip().endswith("error: tiny: vLLM ran out of memory") for line in lines)
    assert "cuda:0: weights 56.0 GiB, KV in use 28.0 GiB, KV cached 14.0 GiB" in lines
    assert all(line.isascii() for line in lines)


def test_empty_states_say_the_next_step() -> None:
    text = "\n".join(shown(fleet(devices=())))
    assert "shoal doctor" in text
    assert "shoal models add" in text
    text = "\n".join(shown(busy(), search="nosuch"))
    assert "No model has 'nosuch'" in text
    assert set(shown(Fleet())) == {""}


def test_head_says_what_is_wrong() -> None:
    known = busy()
    (line,) = top_view.head(known, "http://host:8000", 80, NOW)
    assert line.plain.startswith("shoal 1.2.3 at host:8000  1 ready, 1 queued")
    assert line.plain.endswith(" live")
    known.status = {**known.status, "relays": 0, "memory": {"ok": False}, "store": {"ok": False}}
    assert "NO RELAY NO BROKER NOT SAVED" in top_view.head(known, "http://h", 80, NOW)[0].plain
    known.take("lost", "nothing listens at http://h", NOW + 1)
    first, second = top_view.head(known, "http://h", 80, NOW + 72)
    assert first.plain.endswith(" OLD")
    assert "1 min 12 s ago; trying again: nothing listens" in second.plain
    assert all("dim" in str(line.spans[-1].style) for line in top_view.body(known, Looking(), 80, 9, NOW) if line.plain)
    unknown = Fleet()
    unknown.take("lost", "nothing listens", NOW)
    assert "not connected: nothing listens" in top_view.head(unknown, "http://h", 80, NOW)[1].plain


def test_what_is_old_does_not_age() -> None:
    known = busy()
    before = shown(known, selected="qwen")
    known.take("lost", "gone", NOW)
    assert shown(known, selected="qwen", now=NOW + 5000) == before


NAMES = st.sampled_from(STRANGE) | st.text(max_size=30)


@given(
    names=st.lists(NAMES, max_size=12, unique=True), count=st.integers(0, 12), width=st.integers(1, 160),
    height=st.integers(0, 50), order=st.sampled_from(ORDERS), ascii_only=st.booleans(), at=st.integers(0),
    lost=st.booleans(),
)  # fmt: skip
def test_a_picture_fits_whatever_names_and_numbers_there_are(
    names: list[str], count: int, width: int, height: int, order: str, ascii_only: bool, at: int, lost: bool
) -> None:
    states = ["ready", "starting", "failed", "sleeping"]
    models = [
        model(name, instance(f"i{n}", name, states[n % 4], reason=name, memory=elastic(n * GIB, GIB, GIB, floor=GIB)))
        for n, name in enumerate(names)
    ]
    errors = [None, *STRANGE, None, *STRANGE]
    known = fleet(*models, devices=tuple(device(f"cuda:{n}", error=errors[n]) for n in range(count)))
    for name in names:
        known.take("message", message(NOW, name, level="warning", model=name), NOW)
    if lost:
        known.take("lost", STRANGE[0], NOW)
    selected = names[at % len(names)] if names else ""
    glyphs = ASCII if ascii_only else SHAPES
    looking = Looking(selected, order, glyphs=glyphs)
    body = top_view.body(known, looking, width, height, NOW + 9)
    assert len(body) == height
    head = top_view.head(known, "http://[::1]:8000/" + "x" * 50, width, NOW + 9)
    for line in (*head, *body, top_view.keys(width), legend([], glyphs, width)):
        assert cell_len(line.plain) <= width
        assert not any(mark in line.plain for mark in "\x1b\n\t\u202e")
    if height >= 20 and width >= 60 and names:
        assert any(line.plain.startswith("> ") for line in body)


@given(*[st.integers(0, 60)] * 6)
def test_lines_are_shared_out_without_remainder(height: int, devices: int, marked: int, models: int, details: int, events: int) -> None:  # fmt: skip  # noqa: E501
    room = top_view.allot(height, devices=devices, marked=marked, models=models, details=details, events=events)
    used = room.devices + room.marks * marked + room.legend + room.models + room.details + room.events + room.blank
    assert used == height
    assert room.devices <= devices
    assert room.models <= models
    assert min(room.blank, room.devices, room.models, room.details, room.events) >= 0
    if height >= 20:
        assert room.models >= min(models, 4)
        assert room.devices >= min(devices, 8)


def test_of_many_devices_those_of_the_selected_model_are_shown() -> None:
    one = model("a", instance("a-1", "a", "ready", devices=["cuda:30"]))
    known = fleet(one, devices=tuple(device(f"cuda:{n}") for n in range(32)))
    lines = shown(known, selected="a")
    assert [line.split()[0] for line in lines[:4]] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert any(line.startswith("cuda:30") for line in lines)
    assert any(line.startswith("+22 devices  ") for line in lines)


def test_of_many_models_the_selected_one_is_in_sight() -> None:
    known = fleet(*(model(f"m{n:03}") for n in range(100)))
    for name in ("m000", "m050", "m099"):
        lines = shown(known, selected=name)
        assert sum(line.startswith(f"> {name}") for line in lines) == 1
        assert sum("/100 state" in line for line in lines) == 1


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_keys_and_help_fit(width: int) -> None:
    assert top_view.keys(width).plain.endswith("q leave")
    assert top_view.keys(width).cell_len <= width
    assert all(line.cell_len <= 80 for line in top_help.lines(SHAPES))
    assert len(top_help.lines(SHAPES)) <= 21


# -- acts --------------------------------------------------------------------------------------------------------------


def test_only_what_loses_something_is_asked_for() -> None:
    ready, asleep, started, none = (
        model("a", *(instance("1", "a", state) for state in states))
        for states in (("ready",), ("sleeping",), ("starting",), ("failed",))
    )
    assert "KV cache is lost" in top_acts.unload(ready).ask
    assert "leave the host's memory" in top_acts.unload(asleep).ask
    assert "loaded so far is lost" in top_acts.unload(started).ask
    assert top_acts.unload(none).ask == ""
    assert not any(act(ready).ask for act in (top_acts.load, top_acts.sleep, top_acts.wake, top_acts.pin))


def test_acts_tell_the_command_that_does_the_same() -> None:
    one = model("-a b")
    assert top_acts.load(one).command == "shoal load -- '-a b'"
    assert top_acts.pin(model("a")).command == "shoal models set --pin a"
    assert top_acts.pin(model("a", pin=True)).command == "shoal models set --no-pin a"
    assert top_acts.limit(model("a"), "ceiling", " None ", []).command == "shoal models set --ceiling none a"
    assert top_acts.limit(model("a"), "floor", "1.5GiB", []).command == "shoal models set --floor 1610612736 a"


def test_parts_are_of_the_smallest_device_that_a_model_is_on() -> None:
    devices = [device("cuda:0", memory_total=100 * GIB), device("cuda:1", memory_total=40 * GIB)]
    on_both = model("a", instance("1", "a", "ready", devices=["cuda:0", "cuda:1"]))
    wanted = str(10 * GIB)
    assert wanted in top_acts.limit(on_both, "floor", "25%", devices).command
    declared = model("a", devices=["cuda:1"])
    assert wanted in top_acts.limit(declared, "floor", "25%", devices).command
    with pytest.raises(ValueError, match="on no device"):
        top_acts.limit(model("a"), "floor", "25%", devices)
    for text in ("", "much", "-1", "101%", "none"):
        with pytest.raises(ValueError, match=r"size|most"):
            top_acts.limit(on_both, "floor", text, devices)


def test_readings_renew_the_status_and_make_nothing_of_a_lost_stream_younger() -> None:
    fleet = Fleet()
    fleet.take("snapshot", {"status": {"warnings": []}, "devices": [], "models": []}, 1000.0)
    fleet.take("status", {"warnings": ["the disk is full"]}, 1001.0)
    assert fleet.status == {"warnings": ["the disk is full"]}
    assert fleet.heard_at == 1001.0
    fleet.take("lost", "Shoal closed the connection", 1002.0)
    fleet.take("status", {"warnings": []}, 1600.0)
    assert (fleet.lost, fleet.heard_at) == ("Shoal closed the connection", 1001.0)
    fleet.take("devices", {"devices": []}, 1700.0)
    assert (fleet.lost, fleet.heard_at) == ("", 1700.0)
