"""Instances by id and by model stay the same instances, whatever is put in and taken out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet.known import Instances
from shoal.fleet.state import Instance, InstanceState

IDS, MODELS = ("1", "2", "3", "4"), ("a", "b")


def instance(id: str, model: str) -> Instance:
    return Instance(id, model, "vllm", InstanceState.READY, (), 0.0, 0.0)


STEPS = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from((*MODELS, None))), max_size=30)


@given(STEPS)
def test_what_is_of_a_model_is_what_going_over_all_finds(steps: list[tuple[str, str | None]]) -> None:
    known, plain = Instances(), dict[str, Instance]()
    for id, model in steps:
        if model is None:
            assert known.pop(id, None) == plain.pop(id, None)
        else:
            known[id] = plain[id] = instance(id, model)
        assert list(known.values()) == list(plain.values()), "in the order in which they came"
        assert list(known) == list(plain)
        for model in (*MODELS, "c"):
            wanted = {i.id: i for i in plain.values() if i.model == model}
            assert {i.id: i for i in known.of(model)} == wanted


def test_a_changed_instance_takes_the_place_of_what_it_was() -> None:
    known = Instances()
    known["1"] = instance("1", "a")
    known["1"] = later = replace(known["1"], reason="grown")
    assert list(known.of("a")) == [later]
    with pytest.raises(KeyError):
        del known["2"]
    del known["1"]
    assert not known.of("a")
