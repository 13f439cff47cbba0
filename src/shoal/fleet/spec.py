"""What a model is: the settings that a user gives it, checked once, kept verbatim everywhere."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shoal.units import ByteSize, Duration, format_bytes

EngineKind = Literal["vllm", "simulated"]
Elastic = Literal["auto", "required", "off"]
Sleep = Literal["auto", "off"]
TERMS = ("floor", "ceiling", "priority")
"""Settings that running instances take over at once, through the memory broker."""
RESIDENCY = ("pin", "sleep_after", "unload_after")
"""Settings of the residency policy."""
LIVE = ("instances", "load_on_start", "on_request", "max_concurrency", *RESIDENCY, *TERMS)
"""Settings that need no new start: those of the fleet and of requests, and `TERMS`."""
WORKING_SET = 256 * 2**20
"""KV cache that an elastic instance has to find free at its start, if its floor is not more: enough to serve a little;
what it needs beyond comes from others as it is used."""
MAX_NAME = 200
MAX_SOURCE = 4096
MAX_ARGUMENTS = 65_536
"""Characters of all arguments and variables together; the kernel passes on no single one of more than 128 KiB."""


class ModelSpec(BaseModel):
    """A model's settings. Immutable: a change makes a new one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra={"x-live": list(LIVE)}
    )

    name: str = Field(description="The name that clients send as `model`.")
    source: str = Field(min_length=1, max_length=MAX_SOURCE, description="A local folder, or a Hugging Face hub id.")
    engine: EngineKind = Field("vllm", description="The software that runs it.")
    environment: str | None = Field(
        None,
        description="The engine environment to use (a name from `shoal engines ls`, or the path of a Python "
        "interpreter that has the engine). Default: the one installed for the model's device.",
    )
    devices: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "auto", description="Device ids such as `cuda:0` or `host`, or `auto`."
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="Over how many devices one instance is split.")
    context_length: int | None = Field(
        None, ge=1, le=10**9, description="Longest context in tokens. Default: the model's own."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="Data type of the weights.")
    kv_cache_memory: ByteSize | None = Field(
        None, le=2**50, description="A fixed KV cache of so many bytes per device, such as `1GiB`."
    )
    elastic: Elastic = Field(
        "auto",
        description="Whether the KV cache takes memory only while requests need it: `auto` where engine and model can, "
        "`required` or not at all, `off`.",
    )
    floor: ByteSize = Field(0, le=2**50, description="Bytes of KV cache per device that it can always get back.")
    ceiling: ByteSize | None = Field(
        None, ge=1, le=2**50, description="Bytes of KV cache per device that it may never exceed. Default: the device."
    )
    sleep: Sleep = Field(
        "auto",
        description="Whether it is started so that it can sleep: `auto` where its engine can (vLLM on GPUs), or `off`.",
    )
    priority: int = Field(100, ge=1, le=1000, description="Its weight when models compete for memory.")
    instances: int = Field(1, ge=1, le=64, description="How many instances a load starts.")
    load_on_start: bool = Field(False, description="Load when `shoal serve` starts.")
    on_request: bool = Field(
        True, description="Load it when a request asks for it, which waits meanwhile; also after `shoal unload`."
    )
    pin: bool = Field(
        False, description="It never gives way to other models and never leaves its devices for being idle."
    )
    sleep_after: Duration | None = Field(
        None,
        ge=0,
        description="Idle seconds, or such as `5m`, after which it leaves its devices: it sleeps, or is unloaded where "
        "it cannot. 0: at once. Default: never for that alone. A request's `keep_alive` goes before it.",
    )
    unload_after: Duration | None = Field(
        None,
        ge=0,
        description="Idle seconds, or such as `2h`, after which it is unloaded, awake or asleep. Default: never for "
        "that alone.",
    )
    max_concurrency: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="Requests that run at once over all its instances; more wait. Default: as many as the engines run.",
    )
    args: tuple[str, ...] = Field((), description="Further engine arguments, passed on word for word.")
    env: dict[str, str] = Field(default_factory=dict, description="Further environment variables of the engine.")
    port: int | None = Field(
        None, ge=1, le=65535, description="A fixed loopback port for the engine. Default: a Unix socket, never taken."
    )
    start_timeout: float = Field(1800, gt=0, description="Seconds that a start may take.")

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_name(name)

    @field_validator("source", "environment")
    @classmethod
    def _passable(cls, text: str | None) -> str | None:
        if text is not None:
            _refuse_unpassable(text)
        return text

    @field_validator("elastic", "sleep", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # `off` without quotes is a boolean in YAML

    @field_validator("args")
    @classmethod
    def _args(cls, args: tuple[str, ...]) -> tuple[str, ...]:
        for arg in args:
            _refuse_unpassable(arg)
        return args

    @field_validator("env")
    @classmethod
    def _env(cls, env: dict[str, str]) -> dict[str, str]:
        for key, value in env.items():
            _refuse_unpassable(key)
            _refuse_unpassable(value)
            if not key or "=" in key:
                raise ValueError(f"{key!r} is not an environment variable")
            if key.startswith("SHOAL_"):
                raise ValueError(f"{key} is set by Shoal itself")
        return env

    @model_validator(mode="after")
    def _together(self) -> ModelSpec:
        if sum(map(len, (*self.args, *self.env, *self.env.values()))) > MAX_ARGUMENTS:
            raise ValueError(f"args and env together may have {MAX_ARGUMENTS} characters at most")
        if self.port is not None and self.instances > 1:
            raise ValueError("a fixed port serves one instance only; leave out `port` or set `instances: 1`")
        if self.devices != "auto" and len(self.devices) != self.tensor_parallel:
            raise ValueError(
                f"{len(self.devices)} devices are named but tensor_parallel is {self.tensor_parallel}; "
                "they have to be equal"
            )
        self._check_memory()
        return self

    @property
    def may_be_elastic(self) -> bool:
        """Whether its KV cache may grow and shrink, as far as its settings say."""
        return self.elastic != "off" and self.kv_cache_memory is None

    @property
    def first_kv(self) -> int:
        """Bytes of KV cache per device that an elastic instance has to find free at its start."""
        return max(self.floor, WORKING_SET if self.ceiling is None else min(WORKING_SET, self.ceiling))

    def _check_memory(self) -> None:
        if self.elastic == "required" and self.kv_cache_memory is not None:
            raise ValueError(
                "kv_cache_memory is a fixed size, and elastic is required; leave kv_cache_memory out and set `ceiling`"
            )
        if not self.may_be_elastic and (self.floor or self.ceiling is not None):
            why = "elastic is off" if self.elastic == "off" else "kv_cache_memory fixes the size of the KV cache"
            raise ValueError(f"floor and ceiling are for elastic memory, but {why}; leave them out, or that")
        if self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(
                f"the floor of {format_bytes(self.floor)} is above the ceiling of {format_bytes(self.ceiling)}; "
                "lower the floor or raise the ceiling"
            )


def check_name(name: str) -> str:
    """A name that clients may send as `model`, in the one Unicode form that is kept. Raises ValueError."""
    name = unicodedata.normalize("NFC", name)
    if not name or name != name.strip() or len(name) > MAX_NAME:
        raise ValueError(f"a name has 1 to {MAX_NAME} characters and no blanks at its ends")
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise ValueError("a name cannot hold control characters or line breaks")
    if name in (".", "..") or "//" in name or name.startswith("/") or name.endswith("/"):
        raise ValueError("a name cannot be a path: no leading, trailing or doubled slash")
    return name


def _refuse_unpassable(text: str) -> None:
    """Raise ValueError for what no process can be given: NUL, and halves of characters that UTF-8 cannot write."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("a NUL or half a character (a lone surrogate) cannot be passed to an engine")
