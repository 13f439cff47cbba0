"""Every setting of `shoal serve`: flags over `SHOAL_…` variables over the YAML file over the defaults here."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from platformdirs import user_cache_path, user_data_path
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shoal.fleet.spec import EngineKind, ModelSpec
from shoal.fleet.virtual import VirtualSpec, chain
from shoal.memory.sizes import Amount
from shoal.units import ByteSize, Duration

PREFIX = "SHOAL_"


def _amount(text: str) -> str:
    Amount.parse(text)  # the broker reads it again, once it knows the device
    return text


AmountText = Annotated[str, BeforeValidator(str), AfterValidator(_amount)]
"""Bytes, or a part of a device: `2GiB`, `80%`."""


class Settings(BaseSettings):
    """How `shoal serve` runs. `docs/settings.md` lists every field; a test keeps it complete."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it.")
    insecure: bool = Field(False, description="Allow an address beyond loopback although nothing asks for a key.")
    hosts: tuple[str, ...] = Field(
        (),
        description="Names by which a proxy on this machine publishes Shoal, such as shoal.example. Under them nobody "
        "gets to the admin side without signing in.",
    )
    state_dir: Path = Field(
        default_factory=lambda: user_data_path("shoal"), description="Folder of the database and the logs."
    )
    runtime_dir: Path | None = Field(
        None,
        description="Folder of sockets and process records. Default: one per state folder under /tmp/shoal-UID.",
    )
    engines_dir: Path = Field(
        default_factory=lambda: user_cache_path("shoal") / "engines", description="Folder of engine environments."
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL, such as postgresql+psycopg://…; default: SQLite in the state folder."
    )
    engine: EngineKind = Field("vllm", description="The engine of models that name none.")
    restore: bool = Field(True, description="At start, load again the models that were loaded at the last stop.")
    keep_engines: bool = Field(False, description="Leave engines running when `shoal serve` is stopped.")

    max_body: ByteSize = Field(64 * 2**20, ge=1024, description="Largest request body; beyond it 413.")
    header_timeout: float = Field(15, gt=0, description="Seconds that a client may take to send its headers.")
    body_timeout: float = Field(60, gt=0, description="Seconds without a byte that end a client's upload with 408.")
    connect_timeout: float = Field(5, gt=0, description="Seconds that connecting to an engine may take.")
    idle_timeout: float = Field(75, gt=0, description="Seconds that a client's connection may idle.")
    response_timeout: float = Field(
        0, ge=0, description="Seconds that an engine may be silent while it answers, beyond which 504; 0 for ever."
    )
    request_timeout: float = Field(
        0, ge=0, description="Seconds from a request's arrival to its end, beyond which 504; 0 for ever."
    )
    hold_timeout: float = Field(
        600, ge=0, description="Seconds that a request may wait for its model to be loaded, beyond which 503."
    )
    queue_timeout: float = Field(
        600, gt=0, description="Seconds that a request may wait for its turn at a model that serves, beyond which 429."
    )
    queue_length: int = Field(1000, ge=0, description="Requests that may wait for one model, beyond which 429.")
    age_bound: float = Field(
        30, gt=0, description="Seconds that a request waits in its priority class before it goes up one."
    )
    fair_reserve: float = Field(
        0.125,
        ge=0,
        le=0.5,
        description="Part of the requests that a model may run at once that is kept at least, while tenants share it, "
        "for those that run less than their share; 0 for none.",
    )
    max_connections: int = Field(10_000, ge=1, description="Connections of clients, beyond which 503.")
    tenant_headers: tuple[str, ...] = Field(
        ("x-openwebui-user-id",),
        description="Headers that name the tenant of a request without a key; without any of them its address does.",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins of web pages that may call the inference paths, such as https://chat.example; `*` all."
    )
    otlp_endpoint: str | None = Field(
        None, description="URL of an OpenTelemetry collector (OTLP over HTTP) that gets a trace of every request."
    )
    relay: Literal["native", "aiohttp"] = Field("native", description="Which relay carries the requests.")
    relay_workers: int = Field(1, ge=1, le=64, description="Relay processes that share the port.")

    drain_timeout: float = Field(
        30, ge=0, description="Seconds that an unload, or the end of Shoal, gives to running requests."
    )
    stop_timeout: float = Field(10, ge=0, description="Seconds between SIGTERM and SIGKILL to an engine.")
    health_interval: float = Field(2, gt=0, description="Seconds between two looks at a running engine.")
    hang_timeout: float = Field(
        120,
        gt=0,
        description="Seconds without an answer, or without a step while requests run, after which an engine "
        "counts as hung and is restarted.",
    )
    restart_limit: int = Field(5, ge=0, description="Crashes in a row after which an instance is given up.")
    restart_delay: float = Field(1, ge=0, description="Seconds before the first restart; doubled each time.")
    restart_delay_max: float = Field(60, ge=0, description="Longest wait before a restart, in seconds.")
    restart_reset: float = Field(300, gt=0, description="Seconds of service after which crashes are forgotten.")

    memory_socket: Path | None = Field(
        None,
        description="Socket of a memory broker that runs already, such as one of `shoal memory broker`. Default: Shoal "
        "runs its own.",
    )
    memory_limits: dict[str, AmountText] = Field(
        default_factory=dict,
        description="Most of a device that all elastic KV caches on it may take together, such as {cuda:0: 60GiB} or "
        "{host: 50%}. Default: what weights and others leave.",
    )
    memory_headroom: AmountText = Field(
        "3%", description="What elastic KV caches leave free of each device, for peaks of other use: 3%, or 2GiB."
    )
    memory_wait: float = Field(
        60,
        ge=0,
        description="Seconds that a start may wait for the memory broker, and for a device to have free what the "
        "model needs.",
    )

    host_memory: AmountText = Field(
        "50%",
        description="Most of the host's memory for weights of models that sleep, and for copies of those that will: "
        "`64GiB`, or a part of it. What is not free is not used, whatever this says.",
    )
    patience: Duration = Field(
        10,
        ge=0,
        description="Seconds that a request waits for models in use to fall idle; then one of them gives way all the "
        "same.",
    )
    min_awake: Duration = Field(5, ge=0, description="Seconds that a model that came stays, at least.")
    switches: int = Field(60, ge=1, description="How often models may give way on one device within a minute.")

    log_bytes: ByteSize = Field(32 * 2**20, ge=65536, description="Bytes of log kept per instance, in two files.")
    history: int = Field(200, ge=0, description="Ended instances kept, with their logs.")
    events_kept: int = Field(10_000, ge=100, description="Events kept in the database.")
    usage_kept: int = Field(400, ge=1, le=100_000, description="Days for which usage is kept.")
    simulated_devices: tuple[ByteSize, ...] = Field(
        (), description="Sizes of pretended devices for the simulated engine, such as [80GiB, 80GiB]."
    )
    models: dict[str, ModelSpec] = Field(default_factory=dict, description="Models that exist at start, by name.")
    virtual_models: dict[str, VirtualSpec] = Field(
        default_factory=dict, description="Names that stand for other models, with requests changed on the way."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_models(cls, data: Any) -> Any:
        """`models: {name: {…}}`: the key is the name, and the `engine` setting is the default engine."""
        if not isinstance(data, dict):
            return data
        models = _named("models", data.get("models"), {"engine": data.get("engine", "vllm")})
        virtual = _named("virtual_models", data.get("virtual_models"), {})
        return {**data, **models, **virtual}

    @field_validator("tenant_headers")
    @classmethod
    def _lower_case(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.strip().lower() for name in names)

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("has to be an http:// or https:// URL, such as http://127.0.0.1:4318")
        return endpoint

    @field_validator("state_dir", "runtime_dir", "engines_dir", "memory_socket")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - keeps symlinks

    @model_validator(mode="after")
    def _limits_are_for_its_own(self) -> Settings:
        if self.memory_socket is not None and self.memory_limits:
            raise ValueError(
                "memory_limits are for Shoal's own memory broker, and memory_socket names another; leave one of them "
                "out, and give that broker its limits with `shoal memory limit`"
            )
        return self

    @model_validator(mode="after")
    def _only_one_relay_traces(self) -> Settings:
        if self.otlp_endpoint is not None and self.relay != "native":
            raise ValueError(f"otlp_endpoint: the {self.relay} relay makes no traces; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _virtual_models_lead_to_real_ones(self) -> Settings:
        specs = list(self.virtual_models.values())
        for n, spec in enumerate(specs):
            if spec.name in self.models:
                raise ValueError(f"virtual_models.{spec.name}: a model has this name already; take another one")
            if (fault := chain(spec, specs[:n])) is not None:
                raise ValueError(f"virtual_models.{spec.name}: {fault}")
        return self

    @property
    def exposed(self) -> bool:
        """Whether others than this machine can connect and are to be asked for a key."""
        return not is_loopback(self.host) and not self.insecure


def _named(field: str, given: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """A mapping by name, its keys put into what they name; nothing if it is none, which is then refused as it is."""
    if not isinstance(given, dict):
        return {}
    named: dict[str, Any] = {}
    for name, spec in given.items():
        if isinstance(spec, dict):
            if spec.get("name", name) != name:
                raise ValueError(f"{field}.{name}.name: the key is the name; leave `name` out")
            named[str(name)] = {**defaults, **spec, "name": str(name)}
        else:
            named[str(name)] = spec
    return {field: named}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
