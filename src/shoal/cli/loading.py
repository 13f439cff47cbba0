"""`shoal load` and `shoal unload`: ask, then follow the event stream until it is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.shell import INTERRUPTED, AsJson, DetailedError, ModelName, Url, connect
from shoal.errors import NotFoundError, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client

ENDED = ("stopped", "failed")
_PATIENCE = 60.0  # seconds: the controller may restart while we wait
_LOG_LINES = 15

View = Mapping[str, Any]


def load(
    name: ModelName,
    instances: Annotated[
        int | None, typer.Option(min=1, max=64, help="How many should run.", show_default="as the model says")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it serves.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Load a model, and show how far it is."""
    with connect(url) as client:
        before = {one["id"] for one in client.instances(all_=True) if one["model"] == name and one["state"] in ENDED}
        view: View = client.load(name, instances=instances)
        if wait:
            view = _follow(client, name, before, quiet=as_json)
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json(view)
        return
    out = stdout()
    if wait:
        ready = [one for one in view["instances"] if one["state"] == "ready"]
        where = ", ".join(sorted({device for one in ready for device in one["devices"]}))
        out.print(f"{name} is ready" + (f" on {where}." if where else "."))
    elif view["state"] == "ready":
        out.print(f"{name} is ready.")
    else:
        out.print(f"{name} is {view['state']}. See how far it is: shoal ps")


def unload(
    name: ModelName,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for running requests.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Unload a model: let its running requests end, then stop its instances."""
    with connect(url) as client:
        view: View = client.unload(name, force=force)
        if wait and _live(view):
            with interruptible(f"{name} goes on stopping; see shoal ps"):
                for view in views(client, name):
                    if not _live(view):
                        break
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json(view)
    elif _live(view):
        stdout().print(f"{name} is {view['state']}. See how far it is: shoal ps")
    else:
        stdout().print(f"{name} is unloaded.")


def _live(view: View) -> list[View]:
    return [one for one in view["instances"] if one["state"] not in ENDED]


def judge(view: View, tracked: list[View]) -> View | bool:
    """How a load stands: True when enough instances are ready, the instance that ended it, or False: go on.

    A failed instance that will be started again does not end the load.
    """
    if sum(one["state"] == "ready" for one in tracked) >= max(1, view["desired"]):
        return True
    for one in tracked:
        if one["state"] in ENDED and not one.get("restart_at"):
            return one
    return False


def _follow(client: Client, name: str, before: set[str], *, quiet: bool) -> View:
    from shoal.cli.progress import Display

    with interruptible(f"{name} goes on loading; see shoal ps"), Display(quiet=quiet) as display:
        for view in views(client, name):
            tracked = [one for one in view["instances"] if one["id"] not in before]
            if len(tracked) < max(1, view["desired"]):  # ended ones may be left out of the view
                tracked = [one for one in client.instances(all_=True) if one["model"] == name]
                tracked = [one for one in tracked if one["id"] not in before]
            display.show(tracked)
            outcome = judge(view, tracked)
            if outcome is True:
                return view
            if outcome is not False:
                raise _failure(client, name, outcome)
    raise ShoalError(f"the event stream ended before {name} was loaded; see shoal ps", status=500, code="stream_ended")


def views(client: Client, name: str) -> Iterator[View]:
    """The model as it changes, from now on."""
    for event in client.events(patience=_PATIENCE):
        if event.kind == "snapshot":
            found = [model for model in event.data["models"] if model["name"] == name]
            if not found:
                raise NotFoundError(f"{name} was removed meanwhile")
            yield found[0]
        elif event.kind == "model" and event.data["name"] == name:
            yield event.data
        elif event.kind == "model_removed" and event.data["name"] == name:
            raise NotFoundError(f"{name} was removed meanwhile")


def _failure(client: Client, name: str, instance: View) -> DetailedError:
    failure = instance.get("failure")
    try:
        log = client.logs(instance["id"], tail=_LOG_LINES).splitlines()
    except ShoalError:
        log = []  # the failure itself matters more than its log
    if failure is None:
        message = f"{name} was stopped while it loaded"
        return DetailedError(message, code="stopped", hint=instance.get("reason") or "", instance=instance["id"])
    return DetailedError(
        f"{name} could not be loaded: {failure['message']}",
        code=failure["code"],
        hint=failure.get("hint") or "",
        instance=instance["id"],
        log=log,
    )


@contextmanager
def interruptible(words: str) -> Iterator[None]:
    """Say `words` when Ctrl-C ends the wait for something that goes on without it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{words}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
