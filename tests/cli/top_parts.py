"""What the API says of a fleet, for tests of `shoal top`."""

from __future__ import annotations

from typing import Any

from shoal.cli import top_view
from shoal.cli.top_rows import Looking
from shoal.cli.top_state import Fleet
from shoal.fleet.spec import ModelSpec
from tests.cli.scripted import device, memory

View = dict[str, Any]
NOW = 1_800_000_000.0
STRANGE = ["[b]bold[/b]", "🐟 fish", "x" * 200, "\u202eשלום", "a\x1b[31mred", "tab\tand\nline", "👨‍👩‍👧", "~" * 79]


def model(name: str, *instances: View, state: str = "", created_at: float = NOW - 100, **spec: Any) -> View:
    """A ModelView. A name that no model may have is put in as it is."""
    full = ModelSpec(name="m", source="toy", engine="simulated", **spec).model_dump(mode="json") | {"name": name}
    state = state or (instances[0]["state"] if instances else "unloaded")
    return {
        "name": name, "origin": "api", "created_at": created_at, "desired": len(instances), "state": state,
        "spec": full, "instances": list(instances),
    }  # fmt: skip


def lease(device: str = "cuda:0", **fields: Any) -> View:
    """A LeaseView."""
    view: View = dict.fromkeys(("rank", "lease", "backed", "used", "cached", "floor", "missing", "waiting"), 0)
    return view | {"device": device, "ceiling": None, "recalled": None} | fields


def elastic(weights: int, used: int, cached: int, *, held: int | None = None, **terms: Any) -> View:
    """A MemoryView of an instance on cuda:0."""
    one = lease(lease=used + cached, backed=used + cached, used=used, cached=cached, **terms)
    return memory(
        weights=weights, lease=used + cached, backed=used + cached, used=used, cached=cached, leases=[one],
        held={} if held is None else {"cuda:0": held},
    )  # fmt: skip


def fleet(*models: View, devices: tuple[View, ...] = (device("cuda:0"),), now: float = NOW) -> Fleet:
    """What is known after a snapshot."""
    status = {
        "version": "1.2.3", "started_at": NOW - 60, "relays": 1, "store": {"ok": True}, "memory": {"ok": True},
    }  # fmt: skip
    known = Fleet()
    known.take("snapshot", {"status": status, "devices": list(devices), "models": list(models)}, now)
    return known


def shown(known: Fleet, width: int = 80, height: int = 22, now: float = NOW, **chosen: Any) -> list[str]:
    """The lines between the head and the keys."""
    return [line.plain for line in top_view.body(known, Looking(**chosen), width, height, now)]


def message(at: float, text: str, **fields: Any) -> View:
    return {"at": at, "level": "info", "kind": "x", "model": None, "instance": None, "message": text} | fields
