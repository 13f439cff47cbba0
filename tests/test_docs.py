"""What the documentation promises to list, it lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from shoal.config import OTHER_VARIABLES, load_settings
from shoal.fleet.spec import ModelSpec
from shoal.fleet.virtual import VirtualSpec
from shoal.settings import Settings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/settings.md").read_text()
FIELDS = {**Settings.model_fields, **ModelSpec.model_fields, **VirtualSpec.model_fields}


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_documented(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE)
    assert FIELDS[name].description


@pytest.mark.parametrize("name", sorted(OTHER_VARIABLES))
def test_every_variable_is_documented(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_no_setting_is_documented_that_does_not_exist() -> None:
    listed = set(re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE))
    assert listed == set(FIELDS)


def test_the_example_is_valid(tmp_path: Path) -> None:
    match = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    file = tmp_path / "shoal.yaml"
    file.write_text(match[1])
    settings = load_settings(file=file)
    assert set(settings.models) == set(yaml.safe_load(match[1])["models"])


def test_links_between_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_every_error_of_the_relay_is_documented() -> None:
    listed = set(re.findall(r"^\| \d{3} \| (.*?) \|", (ROOT / "docs/gateway.md").read_text(), re.MULTILINE))
    documented = {code for cell in listed for code in re.findall(r"`(\w+)`", cell)}
    raised = {"key_required", "invalid_key", "key_expired"}
    for module in (ROOT / "src/shoal/gateway").glob("*.py"):
        raised |= set(re.findall(r'\bcode="(\w+)"', module.read_text()))
    assert documented == raised


def test_every_argument_of_the_simulated_engine_is_documented() -> None:
    from shoal.engines.simulated.options import FAILURES, Options

    page = (ROOT / "docs/engines.md").read_text()
    controlled = {"model", "served_model_name", "uds", "host", "port", "access_log"}
    for name in Options.__dataclass_fields__.keys() - controlled:
        assert f"--{name.replace('_', '-')}" in page, name
    for mode in FAILURES:
        assert f"`{mode}" in page, mode
