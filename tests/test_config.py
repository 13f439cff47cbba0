"""Settings from flags, variables and files; bad ones are refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import ConfigError, Handover, load_settings, parse_spec, read_file
from shoal.fleet.spec import ModelSpec
from shoal.paths import find_paths
from shoal.settings import Settings, is_loopback
from shoal.units import format_bytes, format_seconds, parse_bytes


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has set."""
    import os

    for name in os.environ:
        if name.startswith("SHOAL_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "shoal.yaml"
    file.write_text(text)
    return file


def test_flags_go_before_variables_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "port: 1\ndrain_timeout: 1\nstop_timeout: 1\n")
    monkeypatch.setenv("SHOAL_DRAIN_TIMEOUT", "2")
    monkeypatch.setenv("SHOAL_STOP_TIMEOUT", "2")
    settings = load_settings({"stop_timeout": 3, "host": None}, file=file)
    assert (settings.port, settings.drain_timeout, settings.stop_timeout) == (1, 2, 3)


def test_models_of_the_file_take_their_name_from_the_key_and_the_engine_from_the_setting(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: simulated\nmodels:\n  org/a: {source: x, kv_cache_memory: 1.5GiB}\n")
    spec = load_settings(file=file).models["org/a"]
    assert (spec.name, spec.engine, spec.kv_cache_memory) == ("org/a", "simulated", 3 * 2**29)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "prot: there is no such setting; did you mean port?"),
        (
            "models: {a: {source: x, contxt_length: 4}}",
            "models.a.contxt_length: there is no such setting; did you mean",
        ),
        ("models: {a: {source: x, name: b}}", "the key is the name"),
        ("models: {a: {}}", "models.a.source: Field required"),
        ("models: {a: 3}", "models.a"),
        ("port: 70000", "port: Input should be less than or equal to 65535"),
        ("port: 1\nport: 2", "line 2: the key 'port' stands twice"),
        ("[1, 2]", "has to be a mapping"),
        ("a: [", "is not YAML"),
        ("max_body: 5 parsecs", "is not a size; give one such as 512MiB"),
        ("models: {a: {source: x, env: {SHOAL_FLEET: x}}}", "SHOAL_FLEET is set by Shoal itself"),
        ("models: {a: {source: x, devices: [cuda:0, cuda:1]}}", "2 devices are named but tensor_parallel is 1"),
        ("models: {a: {source: x, port: 9000, instances: 2}}", "a fixed port serves one instance only"),
        (
            "models: {a: {source: x, floor: 2GiB, ceiling: 1GiB}}",
            "floor of 2.0 GiB is above the ceiling of 1.0 GiB",
        ),
        ("models: {a: {source: x, elastic: required, kv_cache_memory: 1GiB}}", "leave kv_cache_memory out"),
        ("models: {a: {source: x, elastic: off, floor: 1GiB}}", "but elastic is off"),
        ("models: {a: {source: x, kv_cache_memory: 1GiB, ceiling: 1GiB}}", "but kv_cache_memory fixes the size"),
        ("models: {a: {source: x, floor: -1}}", "a size cannot be negative"),
        ("models: {a: {source: x, ceiling: 0}}", "models.a.ceiling: Input should be greater than or equal to 1"),
        ("models: {a: {source: x, priority: 0}}", "models.a.priority: Input should be greater than or equal to 1"),
        ("models: {a: {source: x, priority: 1001}}", "less than or equal to 1000"),
        ("virtual_models: {v: {}}", "virtual_models.v.model: Field required"),
        ("virtual_models: {v: {model: m, name: w}}", "virtual_models.v.name: the key is the name"),
        ("virtual_models: {v: {model: m, fallbak: [n]}}", "v.fallbak: there is no such setting; did you mean fall"),
        ("virtual_models: {v: {model: v}}", "v cannot stand for itself"),
        ("virtual_models: {v: {model: w}, w: {model: m}}", "the virtual model v names w"),
        ("virtual_models: {w: {model: m}, v: {model: m, fallback: [w]}}", "v names w, which is virtual too"),
        ("virtual_models: {v: {model: m, set: {model: n}}}", "`model` cannot be changed"),
        ("virtual_models: {v: {model: m, set: {seed: .nan}}}", "no NaN"),
        (
            "models: {m: {source: x}, v: {source: x}}\nvirtual_models: {v: {model: m}}",
            "virtual_models.v: a model has this name already",
        ),
    ],
)
def test_faults_name_the_file_the_place_and_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file=file)
    assert str(file) in caught.value.message
    assert message in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_settings(file=tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_file(tmp_path / "binary.yaml")
    assert read_file(write(tmp_path, "")) == {}


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_PROT", "1")
    with pytest.raises(ConfigError, match="SHOAL_PROT: there is no such variable; did you mean SHOAL_PORT"):
        load_settings()


def test_what_is_handed_over_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"models": {"a": {"source": "x"}}, "simulated_devices": ["80GiB"]})
    spec = ModelSpec(name="b", source="y", args=("--flag", "word for word"))
    handover = Handover(settings, Path("/etc/shoal.yaml"), (spec,))
    monkeypatch.setenv("SHOAL_PORT", "9")  # a variable must not change it again on the way
    assert Handover.restore(handover.dump()) == handover


@pytest.mark.parametrize("name", ["", " a", "a\n", "a\0b", "/a", "a/", "a//b", "..", "x" * 201, "a\u2028b", "\ud800"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse_spec({"name": name, "source": "x"})


@pytest.mark.parametrize("name", ["a", "org/model", "模型", "🐟", "<b>bold</b>", "مرحبا", "a b", "x" * 200])
def test_names_that_can_be(name: str) -> None:
    assert parse_spec({"name": name, "source": "x"}).name == name


def test_a_long_state_folder_gets_a_short_runtime_folder(tmp_path: Path) -> None:
    paths = find_paths(Settings(state_dir=tmp_path / ("x" * 200)))
    assert len(str(paths.runtime)) < 60
    assert paths.runtime != find_paths(Settings(state_dir=tmp_path / ("y" * 200))).runtime


def test_a_runtime_folder_that_is_too_long_is_refused(tmp_path: Path) -> None:
    from shoal.errors import ShoalError

    with pytest.raises(ShoalError, match="too long for Unix sockets"):
        find_paths(Settings(runtime_dir=Path("/tmp") / ("x" * 90)))


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x", False)]
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@given(st.integers(0, 2**50))
def test_sizes_round_trip_as_integers(size: int) -> None:
    assert parse_bytes(size) == size
    assert parse_bytes(str(size)) == size
    assert format_bytes(size)


@pytest.mark.parametrize("value", [-1, True, "x", "", "1 XB", "-3GiB", None, 1.5j])
def test_what_is_not_a_size(value: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (59.4, "59 s"), (95, "1 min 35 s"), (3700, "1 h 1 min")]
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
