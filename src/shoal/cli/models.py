"""`shoal models`: declare, list, show and forget models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from shoal.cli.shell import AsJson, ModelName, Url, connect

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Declare, list, show and forget models.")
_TAIL = "shoal.engine_args"
_SIZES = ("kv_cache_memory", "floor", "ceiling")
_TIMES = ("sleep_after", "unload_after")

Floor = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="KV cache per device that it can always get back.", show_default=False),
]
Ceiling = Annotated[
    str | None, typer.Option(metavar="SIZE", help="KV cache per device that it may never exceed.", show_default=False)
]
Priority = Annotated[
    int | None, typer.Option(metavar="N", help="Its weight when models compete for memory.", show_default=False)
]
Pin = Annotated[
    bool | None,
    typer.Option("--pin/--no-pin", metavar="", help="Whether it never gives way and never leaves for being idle."),
]
SleepAfter = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Idle time after which it sleeps, as 5m; `none`: never.", show_default=False),
]
UnloadAfter = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Idle time after which it is unloaded; `none`: never.", show_default=False),
]


class TakesEngineArguments(TyperCommand):
    """A command whose arguments after `--` belong to the engine, word for word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what follows the first `--` apart from this command's own options."""
        head, tail = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
        ctx.meta[_TAIL] = tuple(tail)
        return super().parse_args(ctx, head)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Show in the usage line that engine arguments may follow."""
        return [*super().collect_usage_pieces(ctx), "[-- ENGINE_ARGUMENTS...]"]


def _pairs(values: list[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{value!r} is not NAME=VALUE", param_hint="--env")
        pairs[key] = rest
    return pairs


def _source(source: str) -> str:
    """A local folder as an absolute path: the server runs elsewhere. A hub id as it is."""
    path = Path(source).expanduser()
    if source.startswith((".", "~")) or path.is_dir():
        return str(path.resolve())
    return source


@app.command(cls=TakesEngineArguments)
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that clients send.", show_default=False)],
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="A local folder, or a Hugging Face hub id.")],
    engine: Annotated[
        str | None, typer.Option(metavar="TEXT", help="vllm or simulated; default: as configured.")
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="An engine environment (shoal engines ls), or a Python interpreter."),
    ] = None,
    devices: Annotated[
        list[str] | None,
        typer.Option(metavar="IDS", help="Such as cuda:0,cuda:1; repeatable. Default: auto."),
    ] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(metavar="N", help="Over how many devices one instance is split.")
    ] = None,
    context_length: Annotated[int | None, typer.Option(metavar="N", help="Longest context in tokens.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="TEXT", help="auto, bfloat16, float16 or float32.")] = None,
    kv_cache_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="A fixed KV cache per device, such as 1GiB.")
    ] = None,
    elastic: Annotated[
        str | None, typer.Option(metavar="TEXT", help="auto, required or off: KV cache that grows and shrinks.")
    ] = None,
    sleep: Annotated[
        str | None, typer.Option(metavar="TEXT", help="auto or off: whether it is started so that it can sleep.")
    ] = None,
    floor: Floor = None,
    ceiling: Ceiling = None,
    priority: Priority = None,
    instances: Annotated[int | None, typer.Option(metavar="N", help="How many instances a load starts.")] = None,
    load_on_start: Annotated[
        bool, typer.Option("--load-on-start", metavar="", help="Load when shoal serve starts.")
    ] = False,
    on_request: Annotated[
        bool | None,
        typer.Option("--on-request/--no-on-request", metavar="", help="Whether a request may have it loaded."),
    ] = None,
    pin: Pin = None,
    sleep_after: SleepAfter = None,
    unload_after: UnloadAfter = None,
    max_concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Requests that run at once over all instances; more wait.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="K=VALUE", help="An environment variable of the engine; repeatable.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="A fixed loopback port for the engine.")] = None,
    start_timeout: Annotated[float | None, typer.Option(metavar="N", help="Seconds that a start may take.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Declare a model. Arguments after -- go to the engine word for word."""
    ids = [part.strip() for value in devices or [] for part in value.split(",")]
    given: dict[str, Any] = {
        "name": name,
        "source": _source(source),
        "engine": engine,
        "environment": environment,
        "devices": None if not devices else "auto" if ids == ["auto"] else ids,
        "tensor_parallel": tensor_parallel if tensor_parallel or not ids or ids == ["auto"] else len(ids),
        "context_length": context_length,
        "dtype": dtype,
        "kv_cache_memory": kv_cache_memory,
        "elastic": elastic,
        "sleep": sleep,
        "floor": floor,
        "ceiling": ceiling,
        "priority": priority,
        "instances": instances,
        "load_on_start": load_on_start or None,
        "on_request": on_request,
        "pin": pin,
        "sleep_after": None if sleep_after == "none" else sleep_after,
        "unload_after": None if unload_after == "none" else unload_after,
        "max_concurrency": max_concurrency,
        "args": list(ctx.meta[_TAIL]) or None,
        "env": _pairs(env) if env else None,
        "port": port,
        "start_timeout": start_timeout,
    }
    with connect(url) as client:
        view, created = client.add_model({key: value for key, value in given.items() if value is not None})
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json(view)
    elif created:
        stdout().print(f"Added {name}. Load it: shoal load {_argument(name)}")
    else:
        stdout().print(f"{name} is there already, with these settings.")


@app.command("set")
def set_(
    name: ModelName,
    floor: Floor = None,
    ceiling: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="KV cache per device that it may never exceed; `none` takes it away."),
    ] = None,
    priority: Priority = None,
    pin: Pin = None,
    sleep_after: SleepAfter = None,
    unload_after: UnloadAfter = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Change a model's share of the memory, and how long it stays, while it runs."""
    given = {
        "floor": floor,
        "ceiling": ceiling,
        "priority": priority,
        "pin": pin,
        "sleep_after": sleep_after,
        "unload_after": unload_after,
    }
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not changes:
        raise typer.BadParameter(
            "say what to change: --floor, --ceiling, --priority, --pin, --sleep-after or --unload-after"
        )
    changes |= {key: None for key in ("ceiling", "sleep_after", "unload_after") if changes.get(key) == "none"}
    with connect(url) as client:
        view = client.change_model(name, changes)
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json(view)
        return
    spec = view["spec"]
    upper = "no ceiling" if spec["ceiling"] is None else f"ceiling {_value('ceiling', spec['ceiling'])}"
    stay = ["pinned"] if spec.get("pin") else []
    for key, verb in (("sleep_after", "sleeps"), ("unload_after", "is unloaded")):
        if spec.get(key) is not None:
            stay.append(f"{verb} once idle for {_value(key, spec[key])}")
    terms = [f"floor {_value('floor', spec['floor'])}", upper, f"priority {spec['priority']}", *stay]
    stdout().print(f"{name}: {', '.join(terms)}.")


@app.command("ls")
def ls(url: Url = None, as_json: AsJson = False) -> None:
    """List the models."""
    with connect(url) as client:
        models = client.models()
    from shoal.cli.output import print_json, state_text, stdout, table

    if as_json:
        print_json({"models": models})
    elif not models:
        stdout().print("No models yet. Add one: shoal models add NAME --source FOLDER_OR_HUB_ID")
    else:
        rows = []
        for model in models:
            ready = sum(instance["state"] == "ready" for instance in model["instances"])
            spec = model["spec"]
            rows.append([model["name"], state_text(model["state"]), f"{ready}/{model['desired']}", spec["engine"],
                         spec["source"]])  # fmt: skip
        stdout().print(table(["MODEL", "STATE", "READY", "ENGINE", "SOURCE"], rows))


@app.command()
def show(name: ModelName, url: Url = None, as_json: AsJson = False) -> None:
    """Show a model's settings and instances."""
    with connect(url) as client:
        model = client.model(name)
    from shoal.cli.output import clock, instance_note, pairs, print_json, state_text, stdout, table

    if as_json:
        print_json(model)
        return
    out = stdout()
    rows: list[tuple[str, Any]] = [
        ("model", model["name"]),
        ("state", state_text(model["state"])),
        ("wanted", f"{model['desired']} running"),
        ("declared", f"{clock(model['created_at'])} by {model['origin']}"),
    ]
    rows += [(key, _value(key, value)) for key, value in model["spec"].items() if key != "name" and value is not None]
    out.print(pairs([row for row in rows if row[1] != ""]))
    if model["instances"]:
        out.print()
        out.print(
            table(
                ["INSTANCE", "STATE", "DEVICES", ""],
                [
                    [one["id"], state_text(one["state"]), " ".join(one["devices"]), instance_note(one)]
                    for one in model["instances"]
                ],
            )
        )


@app.command("rm")
def rm(
    name: ModelName,
    unload: Annotated[bool, typer.Option("--unload", help="End its instances first.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Forget a model."""
    with connect(url) as client:
        client.remove_model(name, unload=unload)
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json({"removed": name})
    else:
        stdout().print(f"Removed {name}.")


def _value(key: str, value: Any) -> str:
    if key in _SIZES:
        from shoal.units import format_bytes

        return format_bytes(value)
    if key in _TIMES:
        from shoal.units import format_seconds

        return format_seconds(value)
    if isinstance(value, dict):
        return " ".join(f"{name}={part}" for name, part in value.items())
    if isinstance(value, list):
        import shlex

        return shlex.join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _argument(name: str) -> str:
    import shlex

    return shlex.quote(name)
