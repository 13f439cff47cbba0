"""Records of instances come back as they were, or not at all; and what somebody is to serve again."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.orphans import (
    RecordError,
    read_record,
    record_of,
)
from shoal.fleet.state import InstanceState as S
from shoal.fleet.state import Rest
from shoal.orphans import serving_again
from tests.fleet.orphaned import INSTANCE_RECORD


def test_a_record_comes_back_as_it_was() -> None:
    assert read_record(record_of(INSTANCE_RECORD)) == INSTANCE_RECORD


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(record_of(INSTANCE_RECORD)), **fields})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (changed(shoal_instance=2), "format 2"),
        (changed(shoal_instance=None), "format None"),
        (changed(state="dreaming"), "cannot be read"),
        (changed(record="{}"), "cannot be read"),
        (record_of(dataclasses.replace(INSTANCE_RECORD, spec=None)), "there are none"),
    ],
)
def test_a_record_of_other_times_is_refused_and_says_why(text: str, why: str) -> None:
    with pytest.raises(RecordError, match=why):
        read_record(text)


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_no_text_whatever_breaks_more_than_itself(text: str) -> None:
    with pytest.raises(RecordError):
        read_record(text)


def test_what_was_to_end_or_to_sleep_is_to_serve() -> None:
    ending = dataclasses.replace(INSTANCE_RECORD, state=S.DRAINING, rest=Rest(), reason="unloaded")
    assert (serving_again(ending).state, serving_again(ending).reason) == (S.READY, "")
    retiring = dataclasses.replace(INSTANCE_RECORD, state=S.DRAINING)
    assert (serving_again(retiring).state, serving_again(retiring).rest.level) == (S.READY, None)
    assert serving_again(retiring).rest.canary == "canary", "what it answered is known still"
    assert serving_again(INSTANCE_RECORD).sleeps, "one that slept sleeps"
