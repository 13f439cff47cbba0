"""Hypothesis strategies for what the store keeps, and small records to write by hand."""

from __future__ import annotations

import unicodedata
from typing import Any

from hypothesis import strategies as st

from shoal.fleet.keys import Former, KeyRecord, KeySettings
from shoal.fleet.moves import Leg, Move, Step
from shoal.fleet.presets import LastRun, Preset, PresetEntry, PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.records import Event, LoadRecord
from shoal.fleet.spec import Elastic, ModelSpec
from shoal.fleet.state import Failure, Instance, InstanceState, Model, Progress, Rest
from shoal.fleet.virtual import Virtual, VirtualSpec
from shoal.messages import PRIORITIES, Usage, UsageReport

times = st.floats(0, 4e9)
texts = st.text(max_size=20)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
numbers = st.floats(allow_nan=False)


@st.composite
def names(draw: st.DrawFn) -> str:
    """Names that a ModelSpec takes."""
    part = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/."), min_size=1)
    name = unicodedata.normalize("NFC", "/".join(draw(st.lists(part.map(lambda s: s[:30]), min_size=1, max_size=3))))
    return name if name == name.strip() else "x"


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Settings of a model, of every kind."""
    n = draw(st.integers(1, 4))
    keys = st.from_regex(r"[A-RT-Z_][A-Z_]{0,8}", fullmatch=True)
    port = draw(st.none() | st.integers(1, 65535))
    fixed = draw(st.none() | st.integers(0, 2**50))
    elastic: Elastic = draw(st.sampled_from(["auto", "off"] if fixed is not None else ["auto", "required", "off"]))
    may_grow = fixed is None and elastic != "off"
    floor = draw(st.integers(0, 2**40)) if may_grow else 0
    return ModelSpec(
        name=draw(names()),
        source=draw(words.filter(bool)),
        engine=draw(st.sampled_from(["vllm", "simulated"])),
        environment=draw(st.none() | words),
        devices=draw(st.just("auto") | st.just(tuple(f"cuda:{i}" for i in range(n)))),
        tensor_parallel=n,
        context_length=draw(st.none() | st.integers(1, 10**7)),
        dtype=draw(st.sampled_from(["auto", "bfloat16"])),
        kv_cache_memory=fixed,
        elastic=elastic,
        sleep=draw(st.sampled_from(["auto", "off"])),
        floor=floor,
        ceiling=draw(st.none() | st.integers(max(1, floor), 2**50)) if may_grow else None,
        priority=draw(st.integers(1, 1000)),
        instances=1 if port else draw(st.integers(1, 64)),
        load_on_start=draw(st.booleans()),
        args=tuple(draw(st.lists(words, max_size=3))),
        env=draw(st.dictionaries(keys, words, max_size=3)),
        port=port,
        start_timeout=draw(st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
    )


models = st.builds(Model, specs(), st.sampled_from(["api", "file", "command"]), times, st.integers(0, 64))

instances = st.builds(
    Instance,
    id=st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True),
    model=names(),
    engine=st.sampled_from(["vllm", "simulated"]),
    state=st.sampled_from(InstanceState),
    devices=st.lists(words, max_size=3).map(tuple),
    created_at=times,
    changed_at=times,
    reason=texts,
    address=texts,
    spec=st.none() | specs(),
    environment=texts,
    pid=st.none() | st.integers(1, 2**22),
    ready_at=st.none() | times,
    elastic=st.none() | st.booleans(),
    fixed_because=texts,
    can_sleep=st.booleans(),
    sleepless_because=texts,
    rest=st.builds(
        Rest,
        st.none() | st.integers(1, 2),
        st.none() | texts,
        st.none() | st.integers(0, 2**60),
        st.integers(0, 2**60),
        st.integers(0, 2**60),
    ),
    restarts=st.integers(0, 10**6),
    restart_at=st.none() | times,
    progress=st.none() | st.builds(Progress, texts, st.integers(0, 100), st.none() | numbers),
    failure=st.none() | st.builds(Failure, texts, texts, texts),
    memory=st.dictionaries(texts, st.integers(0, 2**60), max_size=3),
)

events = st.builds(
    Event,
    at=times,
    level=st.sampled_from(["info", "warning", "error"]),
    kind=words,
    message=words,
    model=st.none() | words,
    instance=st.none() | words,
)

loads = st.builds(
    LoadRecord,
    model=words,
    instance=words,
    engine=words,
    environment=words,
    version=words,
    devices=st.lists(words, max_size=3).map(tuple),
    started_at=times,
    seconds=st.floats(0, 1e6),
    outcome=words,
    phases=st.dictionaries(texts, st.floats(0, 1e6), max_size=3),
    memory=st.dictionaries(texts, st.integers(0, 2**60), max_size=3),
)

_seconds = st.none() | st.floats(0, 1e6)
_bytes = st.integers(0, 2**60)

profiles = st.builds(
    Profile,
    model=words,
    settings=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    device=words,
    weights=st.none() | _bytes,
    measured_at=times,
    loads=st.integers(1, 10**6),
    overheads=st.lists(_bytes, max_size=5).map(tuple),
    kv_token=st.none() | st.floats(0, 1e9),
    load_seconds=_seconds,
    phases=st.dictionaries(texts, st.floats(0, 1e6), max_size=3),
    version=texts,
    sleep_seconds=_seconds,
    wake_seconds=_seconds,
    asleep=st.none() | _bytes,
)


@st.composite
def _entries(draw: st.DrawFn) -> PresetEntry:
    """A model in a preset."""
    spec = draw(specs())
    awake = 1 if spec.port else draw(st.integers(0, 8))
    sleeping = 0 if spec.port else draw(st.integers(0 if awake else 1, 8))
    where = draw(st.none() | st.lists(words.filter(bool), min_size=1, max_size=2).map(tuple))
    return PresetEntry(
        spec=spec,
        awake=awake,
        asleep=sleeping,
        sleep_level=draw(st.sampled_from([1, 2])),
        devices=(where,) * (awake + sleeping) if where else (),
    )


preset_contents = st.builds(
    Preset,
    name=names().map(lambda name: name.replace("/", "-")),
    description=words,
    models=st.lists(_entries(), max_size=3, unique_by=lambda entry: entry.spec.name).map(tuple),
)
presets = st.builds(
    PresetRecord,
    preset_contents,
    times,
    times,
    st.none()
    | st.builds(
        LastRun, st.sampled_from(["running", "done", "failed", "interrupted"]), times, st.none() | times, texts
    ),
)

_places = st.lists(words.filter(bool), max_size=2).map(tuple)
_ids = st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
_legs = st.builds(
    Leg,
    source=_ids,
    was_on=_places,
    devices=_places,
    compare=st.booleans(),
    step=st.sampled_from(Step),
    target=st.none() | _ids,
    former=st.none() | _ids,
    answer=st.none() | texts,
    cause=texts,
    note=texts,
    began_at=st.none() | times,
    switched_at=st.none() | times,
    ended_at=st.none() | times,
)
moves = st.builds(
    Move,
    id=_ids,
    model=names(),
    created_at=times,
    legs=st.lists(_legs, min_size=1, max_size=3).map(tuple),
    changes=st.dictionaries(words, st.none() | st.integers(0, 100) | words | st.booleans(), max_size=2),
    stop_first=st.booleans(),
    drain=st.none() | st.floats(0, 1e6),
    state=st.sampled_from(["waiting", "running", "done", "failed", "cancelled"]),
    cancelling=st.booleans(),
    ended_at=st.none() | times,
    message=texts,
)

_limits = st.none() | st.integers(1, 10**12)
_digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)

keys = st.builds(
    KeyRecord,
    id=st.from_regex(r"[a-z0-9]{8}", fullmatch=True),
    settings=st.builds(
        KeySettings,
        name=names().map(lambda name: name[:100].strip() or "x"),
        models=st.lists(names(), max_size=3).map(tuple),
        priority=st.sampled_from(PRIORITIES),
        weight=st.floats(0.01, 100),
        requests_per_minute=_limits,
        tokens_per_minute=_limits,
        concurrent=_limits,
        expires_at=st.none() | times,
    ),
    digest=_digests,
    created_at=times,
    rotated_at=st.none() | times,
    revoked_at=st.none() | times,
    former=st.none() | st.builds(Former, _digests, times),
)

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=5,
)


@st.composite
def virtual_specs(draw: st.DrawFn) -> VirtualSpec:
    """Settings of a virtual model, of every kind."""
    name, model, *fallback = draw(st.lists(names(), min_size=2, max_size=5, unique=True))
    fields = draw(st.lists(st.from_regex(r"x_[a-z]{1,6}", fullmatch=True), max_size=6, unique=True))
    return VirtualSpec(
        name=name,
        model=model,
        set={field: draw(_json) for field in fields[:2]},
        defaults={field: draw(_json) for field in fields[2:4]},
        strip=tuple(fields[4:]),
        system=draw(st.none() | words.filter(bool)),
        fallback=tuple(fallback),
    )


virtuals = st.builds(Virtual, virtual_specs(), st.sampled_from(["api", "file"]), times)


def key(id: str = "aaaa0000", name: str = "k", **changes: Any) -> KeyRecord:
    """A plain API key."""
    return KeyRecord(**{"id": id, "settings": KeySettings(name=name), "digest": "0" * 64, "created_at": 1.0, **changes})


def virtual(name: str = "v", **changes: Any) -> Virtual:
    """A plain virtual model."""
    return Virtual(**{"spec": VirtualSpec(name=name, model="m"), "origin": "api", "created_at": 1.0, **changes})


def used(key: str = "", model: str = "m", day: str = "2026-01-31", **changes: Any) -> Usage:
    """One request of ten tokens and five."""
    plain = {"requests": 1, "prompt_tokens": 10, "completion_tokens": 5, "last_used": 1.0}
    return Usage(key=key, model=model, day=day, **{**plain, **changes})


def usage_report(seq: int, *items: Usage, relay: str = "r") -> UsageReport:
    """What a relay reports."""
    return UsageReport(relay, seq, items)


def model(name: str = "m", **changes: Any) -> Model:
    """A plain model."""
    return Model(**{"spec": ModelSpec(name=name, source="/models/m"), "origin": "api", "created_at": 1.0, **changes})


def instance(id: str = "i", state: InstanceState = InstanceState.READY, **changes: Any) -> Instance:
    """A plain instance."""
    plain = {"model": "m", "engine": "simulated", "devices": ("host",), "created_at": 1.0, "changed_at": 1.0}
    return Instance(id=id, state=state, **{**plain, **changes})


def event(message: str = "something happened", **changes: Any) -> Event:
    """A plain event."""
    return Event(**{"at": 1.0, "level": "info", "kind": "test", "message": message, **changes})


def load(model: str = "m", **changes: Any) -> LoadRecord:
    """A plain load."""
    plain = {"instance": "i", "engine": "vllm", "environment": "e", "version": "1", "devices": ("cuda",)}
    times = {"started_at": 1.0, "seconds": 2.5, "outcome": "ready", "phases": {"weights": 2.0}, "memory": {"cuda:0": 5}}
    return LoadRecord(model=model, **{**plain, **times, **changes})
