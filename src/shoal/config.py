"""Reading settings: where each value comes from, and errors that help.

A key that does not exist is an error that names the nearest one: a misspelt limit must not be a missing limit.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from pydantic_settings.sources import InitSettingsSource

from shoal.errors import ShoalError
from shoal.fleet.spec import ModelSpec
from shoal.fleet.virtual import VirtualSpec
from shoal.settings import PREFIX, Settings

# Variables that other parts of Shoal read: the client, and what runs beside or inside an engine.
_ENGINE_VARIABLES = ("ENGINE", "FLOOR", "CEILING", "PRIORITY", "ELASTIC", "FIXED", "PATIENCE", "PAGE", "STATS")
OTHER_VARIABLES = frozenset(
    {"SHOAL_URL", "SHOAL_USER", "SHOAL_PASSWORD", "SHOAL_CONFIG", "SHOAL_FLEET", "SHOAL_INSTANCE"}
    | {f"SHOAL_MEMORY_{word}" for word in _ENGINE_VARIABLES}
)

_INNER: dict[str, type[BaseModel]] = {"models": ModelSpec, "virtual_models": VirtualSpec}
"""What stands under a setting that is a mapping by name."""


class ConfigError(ShoalError):
    """The settings cannot be used; the message names each fault and where it stands."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400, code="invalid_settings")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice")
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises ConfigError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    try:
        data = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path}: has to be a mapping of settings, such as `port: 8000`")
    return data


def parse_yaml(text: str) -> Any:
    """What YAML says. Raises ConfigError with the place of a fault; a key that stands twice is one."""
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError) as error:  # nested without end, or a date that there is not
        raise ConfigError(f"is not YAML that can be read: {error}") from None


def load_settings(flags: Mapping[str, Any] | None = None, *, file: Path | None = None) -> Settings:
    """Settings from flags (those not None), variables, and a file, in that order of precedence.

    `SHOAL_CONFIG` names the file if no flag does. Raises ConfigError.
    """
    file = file or config_file()
    from_file = read_file(file) if file is not None else {}
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    _refuse_unknown_variables(os.environ)

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=from_file)

    try:
        merged = Loaded(**given)
    except ValidationError as error:
        raise ConfigError(_where(file) + explain(error, Settings)) from None
    return Settings.model_construct(**{name: getattr(merged, name) for name in Settings.model_fields})


def config_file() -> Path | None:
    """The file that `SHOAL_CONFIG` names."""
    named = os.environ.get("SHOAL_CONFIG")
    return Path(named) if named else None


@dataclass(frozen=True, slots=True)
class Handover:
    """What `shoal serve` hands to its controller: settings, where they came from, and models named on the command
    line. `flags` go before the file again whenever it is read anew."""

    settings: Settings
    config_file: Path | None = None
    models: tuple[ModelSpec, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> str:
        """JSON for the child's environment."""
        return json.dumps(
            {
                "settings": self.settings.model_dump(mode="json"),
                "config_file": str(self.config_file) if self.config_file else None,
                "models": [model.model_dump(mode="json") for model in self.models],
                "flags": dict(self.flags),
            },
            default=str,
        )

    @classmethod
    def restore(cls, text: str) -> Handover:
        """What `dump` wrote."""
        data = json.loads(text)
        file = data["config_file"]
        return cls(
            Settings(**data["settings"]),
            Path(file) if file else None,
            tuple(ModelSpec.model_validate(model) for model in data["models"]),
            data["flags"],
        )


def parse_spec(data: Mapping[str, Any]) -> ModelSpec:
    """A model's settings from untrusted data. Raises ConfigError that names each fault."""
    try:
        return ModelSpec.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(explain(error, ModelSpec)) from None


def parse_virtual(data: Mapping[str, Any]) -> VirtualSpec:
    """A virtual model's settings from untrusted data. Raises ConfigError that names each fault."""
    try:
        return VirtualSpec.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(explain(error, VirtualSpec)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Each fault of a validation error in a line of its own, with the nearest key for an unknown one."""
    lines = []
    for fault in error.errors(include_url=False):
        path = [str(part) for part in fault["loc"]]
        where = ".".join(path)
        if fault["type"] == "extra_forbidden":
            inner = _INNER.get(path[0], model) if len(path) > 1 else model
            lines.append(f"{where}: there is no such setting{suggest(path[-1], inner.model_fields)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {message}" if where else message)
    return "; ".join(lines)


def suggest(word: str, known: Iterable[str]) -> str:
    """`", did you mean …?"`, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _where(file: Path | None) -> str:
    return f"{file}: " if file is not None else ""


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for name in environ:
        # Those for tests are theirs alone.
        ours = name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_")
        if ours and name.upper().split("__")[0] not in known:
            raise ConfigError(f"{name}: there is no such variable{suggest(name, known)}")
