"""`shoal serve`: one command, one port."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]…", help="Models to load: a folder, a hub id, or NAME=SOURCE."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file of settings and models.", envvar="SHOAL_CONFIG")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 8000); 0 takes a free one.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond loopback although nothing asks for a key.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Folder of the database and the logs.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine of models that name none: vllm or simulated.")] = None,
    keep_engines: Annotated[
        bool | None, typer.Option("--keep-engines", help="Leave engines running when Shoal is stopped.")
    ] = None,
    restore: Annotated[
        bool | None,
        typer.Option("--restore/--no-restore", help="Load again what was loaded at the last stop (default)."),
    ] = None,
    relay: Annotated[
        str | None, typer.Option(metavar="native|aiohttp", help="Which relay carries requests (default native).")
    ] = None,
    relay_workers: Annotated[
        int | None, typer.Option(metavar="N", help="Relay processes that share the port (default 1).")
    ] = None,
    hold_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long a request may wait for its model to be loaded (default 600)."),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Host memory for models that sleep: 64GiB, or a part of it (default 50%)."),
    ] = None,
    cors_origins: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", metavar="ORIGIN", help="Let this origin's web pages call the endpoint; * all."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; `shoal config schema` lists them."),
    ] = None,
) -> None:
    """Serve models behind one OpenAI-compatible endpoint until Ctrl-C."""
    from shoal.config import ConfigError, Handover, config_file, load_settings, parse_spec
    from shoal.errors import ShoalError
    from shoal.supervisor import serve as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s supervisor %(levelname)s %(message)s")
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "insecure": insecure,
        "state_dir": state_dir,
        "engine": engine,
        "keep_engines": keep_engines,
        "restore": restore,
        "relay": relay,
        "relay_workers": relay_workers,
        "hold_timeout": hold_timeout,
        "host_memory": host_memory,
        "cors_origins": cors_origins,
    }
    try:
        for option in options or []:
            key, equals, value = option.partition("=")
            if not equals:
                raise ConfigError(f"--set {option}: write it as KEY=VALUE")
            flags[key] = value
        settings = load_settings(flags, file=config)
        named = tuple(
            parse_spec({**named_model(text), "engine": settings.engine, "load_on_start": True}) for text in models or []
        )
        if twice := {spec.name for spec in named} & set(settings.models):
            raise ConfigError(f"{', '.join(sorted(twice))}: named both on the command line and in the file")
        if len({spec.name for spec in named}) < len(named):
            raise ConfigError("two models on the command line have one name; write them as NAME=SOURCE")
        run(Handover(settings, config or config_file(), named, flags), announce)
    except ShoalError as error:
        typer.echo(f"shoal: {error.message}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


def named_model(text: str) -> dict[str, str]:
    """The name and source in `NAME=SOURCE`, or a source that names itself by its last part."""
    name, equals, source = text.partition("=")
    if equals and name and "/" not in name:
        return {"name": name, "source": source}
    if Path(text).expanduser().is_dir():
        return {"name": Path(text).expanduser().resolve().name, "source": str(Path(text).expanduser().resolve())}
    return {"name": text.rstrip("/"), "source": text}


def announce(url: str) -> None:
    """Say where it serves."""
    typer.echo(f"Shoal serves on {url}   (endpoint {url}/v1, page {url}/, API {url}/api/docs)   Ctrl-C stops it")
