"""`shoal sleep` and `shoal wake`: ask, then follow the event stream until it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.loading import ENDED, interruptible, views
from shoal.cli.shell import AsJson, DetailedError, ModelName, Url, connect

if TYPE_CHECKING:
    from shoal.client import Client

View = Mapping[str, Any]
ON_THE_WAY = ("draining", "waking")


def sleep(
    name: ModelName,
    level: Annotated[int, typer.Option(min=1, max=2, help="1 keeps the weights in host memory, 2 drops them.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Do not wait for running requests.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it sleeps.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Put a model to sleep: let its running requests end, then take its memory off the devices."""
    with connect(url) as client:
        view: View = client.sleep(name, level=level, force=force)
        if wait:
            view = _follow(client, name, view, lambda one: one["state"] == "draining", "goes on falling asleep")
    if wait and (awake := [one for one in _live(view) if one["state"] != "sleeping"]):
        raise _undone(f"{name} does not sleep", awake[0])
    if wait and not _live(view):
        raise DetailedError(f"{name} ended while it was to sleep", code="stopped", hint="see shoal events")
    _tell(view, as_json, f"{name} sleeps" if wait else f"{name} is {view['state']}")


def wake(
    name: ModelName,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it serves.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Wake a model that sleeps."""
    with connect(url) as client:
        view: View = client.wake(name)
        if wait:
            view = _follow(client, name, view, _wakes, "goes on waking")
    if wait and (asleep := [one for one in _live(view) if one["state"] != "ready"]):
        raise _undone(f"{name} is not awake", asleep[0])
    _tell(view, as_json, f"{name} is ready" if wait else f"{name} is {view['state']}")


def _follow(client: Client, name: str, view: View, unsettled: Callable[[View], bool], words: str) -> View:
    """The model once none of its instances is on its way."""
    if any(map(unsettled, _live(view))):
        with interruptible(f"{name} {words}; see shoal ps"):
            for view in views(client, name):
                if not any(map(unsettled, _live(view))):
                    break
    return view


def _wakes(instance: View) -> bool:
    return instance["state"] in ON_THE_WAY or bool(instance["wanted_awake"])


def _live(view: View) -> list[View]:
    return [one for one in view["instances"] if one["state"] not in ENDED]


def _undone(what: str, instance: View) -> DetailedError:
    reason = instance.get("reason") or instance["state"]
    return DetailedError(
        f"{what}: {instance['id']} is {instance['state']} ({reason})",
        code=f"is_{instance['state']}",
        hint="see shoal events",
        instance=instance["id"],
    )


def _tell(view: View, as_json: bool, words: str) -> None:
    from shoal.cli.output import print_json, stdout

    if as_json:
        print_json(view)
        return
    reasons = {one["reason"] for one in _live(view) if one["reason"]}
    stdout().print(f"{words}: {reasons.pop()}." if len(reasons) == 1 else f"{words}.")
