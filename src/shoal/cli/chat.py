"""`shoal chat`: talk to a model through the endpoint that every client uses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from shoal.cli.shell import INTERRUPTED, AsJson, ModelName, Url, connect
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.client import Client

Messages = list[dict[str, str]]


def chat(
    name: ModelName,
    prompt: Annotated[
        str | None, typer.Argument(help="What to say; without it, a conversation. - reads standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Instructions before the conversation.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 always says the same.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, Ctrl-D leaves."""
    options = {"max_tokens": max_tokens, "temperature": temperature}
    options = {key: value for key, value in options.items() if value is not None}
    history: Messages = [{"role": "system", "content": system}] if system else []
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("the prompt is empty; say something", param_hint="PROMPT")
    if as_json and prompt is None:
        raise typer.BadParameter("--json needs a prompt", param_hint="PROMPT")
    with connect(url) as client:
        if prompt is None:
            _converse(client, name, history, options)
            return
        answer = Answer(client, name, [*history, {"role": "user", "content": prompt}], options)
        answer.write(silent=as_json)
        if as_json and not answer.interrupted:
            from shoal.cli.output import print_json

            print_json(answer.as_json())
        if answer.interrupted:
            raise typer.Exit(INTERRUPTED)


class Answer:
    """One answer as it arrives."""

    def __init__(self, client: Client, model: str, messages: Messages, options: dict[str, Any]) -> None:
        self.model = model
        self.text = ""
        self.reasoning = ""
        self.finish: str | None = None
        self.usage: dict[str, Any] | None = None
        self.interrupted = False
        self._stream = client.chat(model, messages, stream_options={"include_usage": True}, **options)

    def write(self, *, silent: bool = False) -> None:
        """Read to the end and write the text as it comes. Ctrl-C ends the answer, and with it the request."""
        tty = sys.stdout.isatty()
        with contextlib.closing(cast("Generator[dict[str, Any]]", self._stream)) as stream:
            try:
                for chunk in stream:
                    self.usage = chunk.get("usage") or self.usage
                    for choice in chunk.get("choices") or ():
                        delta = choice.get("delta") or {}
                        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
                        said = delta.get("content") or ""
                        if tty and not silent:
                            self._write_to_terminal(thought, said)
                        elif not silent:
                            print(said, end="", flush=True)
                        self.reasoning += thought
                        self.text += said
                        self.finish = choice.get("finish_reason") or self.finish
            except KeyboardInterrupt:
                self.interrupted = True
        if not silent:
            print(flush=True)
            if self.finish == "length":
                print("(cut off at the token limit; --max-tokens sets it)", file=sys.stderr)

    def _write_to_terminal(self, thought: str, said: str) -> None:
        from rich.text import Text

        from shoal.cli.output import plain, stdout

        out = stdout()
        if thought:
            out.print(Text(plain(thought), style="dim"), end="", soft_wrap=True)
        elif said and self.reasoning and not self.text:
            out.print()
        if said:
            out.print(Text(plain(said)), end="", soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        """The whole answer."""
        return {
            "model": self.model,
            "content": self.text,
            "reasoning": self.reasoning or None,
            "finish_reason": self.finish,
            "usage": self.usage,
        }


def _converse(client: Client, name: str, system: Messages, options: dict[str, Any]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing

    client.model(name)  # a misspelt name should fail before the first question is typed
    print(f"Talking to {name}. Ctrl-C stops an answer, /new starts afresh, Ctrl-D leaves.", file=sys.stderr)
    history = list(system)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)")
            continue
        if line == "/new":
            history = list(system)
            print("(a new conversation)")
        elif line in ("/exit", "/quit"):
            return
        elif line:
            asked = {"role": "user", "content": line}
            answer = Answer(client, name, [*history, asked], options)
            try:
                answer.write()
            except ShoalError as error:
                from shoal.cli.shell import report

                report(error, as_json=False)  # the conversation survives a failed answer
                continue
            if answer.text:
                history += [asked, {"role": "assistant", "content": answer.text}]
