"""Whether models fit, with sums; who gives way; and what the fleet's state says of the devices."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.fleet import facts
from shoal.fleet.fit import Holder, ModelAnswer, Part, Space, Verdict, Wanted, chance, fit, give_way
from shoal.fleet.memory import Terms
from shoal.fleet.needs import KvCost, KvLayers, Needs
from shoal.fleet.occupancy import demand_of, loaded_on, spaces
from shoal.fleet.peaks import Demand, Load
from tests.fleet.fakes import GIB, HOST, World, books, gpu
from tests.fleet.fakes import spec as settings_of

MIB = 2**20
COST = KvCost((KvLayers(32, 4096),))


def needs(weights: float | None = 15.0, **changes: Any) -> Needs:
    size = None if weights is None else int(weights * GIB)
    return Needs(**{"weights": size, "overhead": 3 * GIB, "kv": GIB, "elastic": True, "cost": COST, **changes})


def space(name: str = "cuda:0", free: float = 80, *holders: Holder, **changes: Any) -> Space:
    size = int(free * GIB)
    return Space(
        **{"device": name, "kind": "cuda", "size": 80 * GIB, "free": size, "kv": size, "holders": holders, **changes}
    )


def holder(model: str, gives: float, **changes: Any) -> Holder:
    size = int(gives * GIB)
    return Holder(**{"instance": f"{model}-1", "model": model, "gives": size, "fixed": size, "sleeps": True, **changes})


def wanted(
    model: str = "m", weights: float | None = 15.0, devices: tuple[str, ...] = ("cuda:0", "cuda:1"), **changes: Any
) -> Wanted:
    found = changes.pop("needs", needs(weights))
    return Wanted(**{"model": model, "needs": dict.fromkeys(devices, found), "kinds": ("cuda", "host"), **changes})


def only(one: Wanted, *there: Space) -> ModelAnswer:
    (answer,), _ = fit([one], there)
    return answer


def test_it_fits_with_the_sum() -> None:
    answer = only(wanted(), space(free=60))
    assert (answer.verdict, answer.on) == (Verdict.FITS, ("cuda:0",))
    (device,) = answer.devices
    assert device.needed == 19 * GIB
    assert device.message == "m needs 19.0 GiB, cuda:0 has 60.0 GiB free of 80.0 GiB: it fits"
    assert device.parts == (
        Part("weights", 15 * GIB), Part("overhead", 3 * GIB), Part("KV cache from the start", GIB),
        Part("others hold", 20 * GIB),
    )  # fmt: skip


@pytest.mark.parametrize(("free", "verdict"), [(19 * GIB, Verdict.FITS), (19 * GIB - 1, Verdict.DOES_NOT_FIT)])
def test_the_last_byte_counts(free: int, verdict: Verdict) -> None:
    assert (
        only(
            wanted(),
            space(free=0),
        ).verdict
        is Verdict.DOES_NOT_FIT
    )
    there = Space("cuda:0", "cuda", 80 * GIB, free, free)
    assert only(wanted(), there).verdict is verdict


def test_it_fits_if_others_give_way_those_of_low_priority_and_long_unused_first() -> None:
    others = (
        holder("busy", 20, used_at=9.0),
        holder("idle", 20, used_at=1.0),
        holder("low", 5, used_at=5.0, priority=10),
    )
    answer = only(wanted(), space("cuda:0", 2, *others))
    (device,) = answer.devices
    assert answer.verdict is Verdict.IF_OTHERS_GIVE_WAY
    assert device.sleep == ("idle",), "low alone is too little, and idle alone is enough"
    assert device.message.endswith("it fits if idle sleeps, which gives back 20.0 GiB")
    both = only(wanted(weights=20), space("cuda:0", 2, *others)).devices[0]
    assert both.sleep == ("low", "idle")
    mixed = only(wanted(weights=20), space("cuda:0", 2, *others[:2], holder("low", 5, priority=10, sleeps=False)))
    assert (mixed.devices[0].sleep, mixed.devices[0].unload) == (("idle",), ("low",))
    assert "if idle sleeps and low is unloaded, which" in mixed.message


def test_it_can_never_fit_and_the_numbers_say_so() -> None:
    answer = only(wanted(weights=100), space("cuda:0", 2, holder("a", 50)))
    assert (answer.verdict, answer.on) == (Verdict.DOES_NOT_FIT, ())
    assert answer.message == (
        "m needs 104.0 GiB, cuda:0 has 2.0 GiB free of 80.0 GiB, and 52.0 GiB with every other model out of the way: "
        "it does not fit"
    )


def test_the_emptier_device_is_chosen_and_each_has_its_answer() -> None:
    answer = only(wanted(), space("cuda:0", 30), space("cuda:1", 70))
    assert answer.on == ("cuda:1",)
    assert [device.device for device in answer.devices] == ["cuda:0", "cuda:1"]
    moved = only(wanted(), space("cuda:0", 2, holder("a", 60)), space("cuda:1", 20))
    assert moved.on == ("cuda:1",), "nobody has to give way there"


def test_models_count_for_those_after_them() -> None:
    answers, _ = fit([wanted("a", 40), wanted("b", 40), wanted("c", 40)], [space("cuda:0", 80), space("cuda:1", 70)])
    assert [answer.on for answer in answers] == [("cuda:0",), ("cuda:1",), ()]
    assert answers[2].verdict is Verdict.DOES_NOT_FIT
    there = space("cuda:0", 2, holder("x", 60))
    answers, _ = fit([wanted("a", 40, ("cuda:0",)), wanted("b", 40, ("cuda:0",))], [there])
    assert [answer.verdict for answer in answers] == [Verdict.IF_OTHERS_GIVE_WAY, Verdict.DOES_NOT_FIT], "x is gone"


def test_tensor_parallel_needs_as_many_devices_and_frees_all_that_a_sleeper_held() -> None:
    split = holder("x", 60)
    there = [space("cuda:0", 2, split), space("cuda:1", 2, split), space("cuda:2", 70)]
    names = ("cuda:0", "cuda:1", "cuda:2")
    two = wanted(devices=names, width=2)
    answer = only(two, *there)
    assert (answer.on, answer.verdict) == (("cuda:0", "cuda:2"), Verdict.IF_OTHERS_GIVE_WAY)
    after, _ = fit([two, wanted("next", 40, names)], there)
    assert after[1].on == ("cuda:1",), "x is gone from both of its devices"
    few = only(wanted(width=4, devices=names), *there)
    assert few.verdict is Verdict.DOES_NOT_FIT
    assert few.message == "m needs 4 cuda or host device(s), and 3 can be used"


def test_devices_that_were_named_that_are_broken_and_of_the_wrong_kind() -> None:
    there = [space("cuda:0", 80, error="fell off the bus"), space("cuda:1", 70), space("host", 60, kind="host")]
    names = ("cuda:0", "cuda:1", "host")
    assert only(wanted(devices=names), *there).on == ("cuda:1",), "no fall-back to the host while there are GPUs"
    assert only(wanted(devices=names, on=("host",)), *there).on == ("host",)
    assert only(wanted(devices=names, on=("cuda:0",)), *there).verdict is Verdict.DOES_NOT_FIT
    assert only(wanted(devices=names, on=("host",), kinds=("cuda",)), *there).verdict is Verdict.DOES_NOT_FIT
    assert only(wanted(), *[]).verdict is Verdict.DOES_NOT_FIT


def test_unknown_weights_are_said_and_what_is_known_may_be_too_much_already() -> None:
    answer = only(wanted(weights=None), space(free=60))
    assert (answer.verdict, answer.devices[0].needed) == (Verdict.UNKNOWN, None)
    assert answer.message == (
        "m needs at least 4.0 GiB, cuda:0 has 60.0 GiB free of 80.0 GiB; its weights are not known yet"
    )
    assert only(wanted(weights=None), space(free=3)).verdict is Verdict.DOES_NOT_FIT
    assert only(wanted(weights=None), space("cuda:0", 3, holder("a", 9))).verdict is Verdict.UNKNOWN


def test_a_loaded_model_is_said_to_be_and_counts_once() -> None:
    answers, collisions = fit([wanted(loaded=("cuda:1",)), wanted("b", 60)], [space("cuda:0", 10), space("cuda:1", 70)])
    assert answers[0].verdict is Verdict.LOADED
    assert answers[1].on == ("cuda:1",)
    assert [collision.device for collision in collisions] == ["cuda:1"]


def demand(model: str, concurrency: float, tokens: float, most: int | None = None) -> Demand:
    return Demand(model, Load(concurrency, tokens, 0.0), COST, most)


def test_the_chance_of_a_collision_counts_all_on_the_device() -> None:
    """Each of two wants 40 GiB half of the time, and they leave each other 42."""
    each = 40 * GIB // COST.per_token
    there = space("cuda:0", 60, demands=(demand("old", 0.5, each, 1),), unknown=("mute",))
    new = wanted("new", 15, ("cuda:0",), demand=demand("new", 0.5, each, 1))
    (answer,), (collision,) = fit([new], [there])
    assert answer.verdict is Verdict.FITS
    assert collision.budget == 42 * GIB
    assert collision.peaks is not None
    assert collision.peaks.probability == pytest.approx(0.25)
    assert collision.unknown == ("mute",)
    assert (
        "the chance that they want more together is 25 % (without mute, whose load is not known)" in collision.message
    )
    alone = fit([new], [space("cuda:0", 60)])[1][0]
    assert alone.peaks is not None
    assert alone.peaks.probability == pytest.approx(0)
    assert fit([wanted("new", 15, ("cuda:0",))], [space("cuda:0", 60)])[1][0].peaks is None


def test_who_gives_way_collides_no_more_and_leaves_room() -> None:
    each = 30 * GIB // COST.per_token
    there = space("cuda:0", 2, holder("old", 40), kv=20 * GIB, demands=(demand("old", 1, each, 1),))
    _, (collision,) = fit([wanted("new", 15, ("cuda:0",), demand=demand("new", 1, each, 1))], [there])
    assert collision.budget == (20 + 40 - 18) * GIB
    assert collision.peaks is not None
    assert collision.peaks.probability == pytest.approx(0)
    assert set(collision.peaks.peaks) == {"new"}


def test_a_cache_of_fixed_size_collides_with_nobody_but_takes_its_room() -> None:
    fixed = wanted("f", needs=needs(kv=20 * GIB, elastic=False), demand=demand("f", 1, 10**6, 1))
    _, (collision,) = fit([fixed], [space("cuda:0", 60)])
    assert (collision.budget, collision.peaks, collision.unknown) == (22 * GIB, None, ())


@pytest.mark.parametrize(
    ("probability", "words"),
    [(0.0, "less than 0.0001 %"), (0.00123, "0.12 %"), (0.25, "25 %"), (0.999, "nearly 100 %")],
)
def test_chances_in_words(probability: float, words: str) -> None:
    assert chance(probability) == words


_holders = st.lists(
    st.builds(
        Holder, st.uuids().map(str), st.sampled_from("abcd"), st.integers(0, 50), st.just(0), st.booleans(),
        st.integers(1, 3), st.floats(0, 5),
    ), max_size=6,
)  # fmt: skip


@given(_holders, st.integers(0, 120))
def test_nobody_gives_way_for_nothing(holders: list[Holder], short: int) -> None:
    found = give_way(holders, short)
    everything = sum(one.gives for one in holders)
    if found is None:
        assert everything < short
    else:
        assert sum(one.gives for one in found) >= short
        for one in found:
            assert sum(other.gives for other in found if other is not one) < short


# -- out of the fleet's state -----------------------------------------------------------------------------------------


def test_a_device_as_the_fleet_knows_it() -> None:
    world = World(gpu(0, 50 * GIB), HOST)
    id = world.ready("m", needs=20 * GIB)
    world.tell(facts.BooksRead(books(world, {id: Terms(floor=2 * GIB)}, backed=6 * GIB, used=4 * GIB)))
    world.tell(facts.DevicesRead((gpu(0, 30 * GIB), HOST), {}))
    fleet = world.manager.fleet
    cuda, host = spaces(fleet, {"m": needs(concurrency=8)}, {"m": Load(1, 1000)})
    assert cuda.kept == 0
    assert cuda.free == 32 * GIB, "what is cached and no request uses counts as free"
    assert cuda.kv == (80 - 50 + 6) * GIB, "all but what is no KV cache"
    (one,) = cuda.holders
    assert (one.model, one.sleeps) == ("m", True)
    assert one.gives == 21 * GIB, "what requests use and all the rest, but for the overhead, which stays"
    assert [d.model for d in cuda.demands] == ["m"]
    assert cuda.demands[0].most == 8
    assert (host.holders, host.free) == ((), 60 * GIB)
    assert loaded_on(fleet, "m") == ("cuda:0",)
    assert loaded_on(fleet, "other") == ()


def test_what_starts_is_promised_and_without_a_load_unknown() -> None:
    world = World(gpu(0, 50 * GIB))
    world.add("m")
    world.load("m")
    world.prepare(needs=20 * GIB)
    (cuda,) = spaces(world.manager.fleet, {"m": needs()}, {})
    assert cuda.free == 30 * GIB
    assert cuda.holders == (), "one that starts cannot give way"
    assert cuda.unknown == ("m",)
    assert loaded_on(world.manager.fleet, "m") == ("cuda:0",)


def test_instances_share_their_models_load() -> None:
    world = World(gpu(0), gpu(1))
    world.add("m", instances=2)
    world.load("m")
    world.prepare(needs=50 * GIB)
    found = spaces(world.manager.fleet, {"m": needs()}, {"m": Load(6, 1000)})
    assert [one.demands[0].load.concurrency for one in found] == [3, 3]


def test_a_demand_needs_a_load_a_cost_and_an_elastic_cache() -> None:
    load = Load(1, 1000)
    settings = settings_of("m", max_concurrency=4, ceiling="8GiB")
    found = demand_of(settings, needs(concurrency=256, longest=4096), load)
    assert found == Demand("m", load, COST, 4, 4096, 8 * GIB)
    for nothing in (demand_of(settings, needs(), None), demand_of(settings, needs(cost=None), load),
                    demand_of(settings, needs(elastic=False), load)):  # fmt: skip
        assert nothing is None


def test_what_kv_caches_may_not_lease_stays_free_beside_an_elastic_one() -> None:
    world = World(gpu(0, 50 * GIB))
    world.elastic = True
    id = world.ready("m", needs=20 * GIB)
    world.tell(facts.BooksRead(books(world, {id: Terms()}, headroom=3 * GIB)))
    world.tell(facts.DevicesRead((gpu(0, 30 * GIB),), {}))
    (there,) = spaces(world.manager.fleet, {"m": needs()}, {})
    assert (there.free, there.kept) == (27 * GIB, 3 * GIB)
    (device,) = only(wanted(devices=("cuda:0",)), there).devices
    assert device.parts[-2:] == (Part("others hold", 50 * GIB), Part("stays free", 3 * GIB))
