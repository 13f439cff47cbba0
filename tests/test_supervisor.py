"""What `shoal serve` looks at before it starts anything."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from shoal.gateway.__main__ import parse_arguments
from shoal.settings import Settings
from shoal.supervisor import StartError, relay_settings, require_tracing

COLLECTOR = "http://127.0.0.1:4318"


def test_traces_need_packages_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    require_tracing(Settings(otlp_endpoint=COLLECTOR))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    require_tracing(Settings())
    with pytest.raises(StartError, match=r"pip install 'shoal\[tracing\]'"):
        require_tracing(Settings(otlp_endpoint=COLLECTOR))


def test_a_parent_package_that_is_missing_is_the_same_error() -> None:
    code = f"""
import sys
sys.modules["opentelemetry"] = None
from shoal.settings import Settings
from shoal.supervisor import StartError, require_tracing
try:
    require_tracing(Settings(otlp_endpoint={COLLECTOR!r}))
except StartError as error:
    print(error.message)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("otlp_endpoint: the packages that send traces are not installed")


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://", "", "http://[::1"])
def test_a_collector_is_named_by_a_url(url: str) -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        Settings(otlp_endpoint=url)


def test_the_other_relay_makes_no_traces() -> None:
    with pytest.raises(ValidationError, match="the aiohttp relay makes no traces"):
        Settings(otlp_endpoint=COLLECTOR, relay="aiohttp")


def test_relays_take_what_they_are_given() -> None:
    given = relay_settings(Settings(otlp_endpoint=COLLECTOR, relay_workers=3, cors_origins=("https://a.test",)))
    argv = ["--fd", "3", "--controller", "c", "--relay-socket", "r", "--table", "t", "--settings", json.dumps(given)]
    config = parse_arguments(argv).config
    assert config.otlp_endpoint == COLLECTOR
    assert config.relay_workers == 3
    assert config.cors_origins == ("https://a.test",)
