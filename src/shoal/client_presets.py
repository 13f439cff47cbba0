"""The part of the client that saves and applies presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

Json = dict[str, Any]


class Asking(Protocol):
    """What this part needs of the client."""

    def _json(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, params: Mapping[str, str] | None = None
    ) -> Json: ...

    def _send(self, method: str, path: str) -> Any: ...


class PresetCalls:
    """A part of `Client`."""

    def presets(self: Asking) -> list[Json]:
        """Every preset, as PresetView."""
        return list(self._json("GET", "/presets")["presets"])

    def preset(self: Asking, name: str) -> Json:
        """One preset, as PresetView."""
        return self._json("GET", f"/presets/{quote(name, safe='')}")

    def save_preset(
        self: Asking, name: str, *, description: str | None = None, replace: bool = False, fix_devices: bool = False
    ) -> Json:
        """Save what runs and sleeps now."""
        body = {"name": name, "description": description, "replace": replace, "fix_devices": fix_devices}
        return self._json("POST", "/presets", body=body)

    def remove_preset(self: Asking, name: str) -> None:
        """Forget a preset; what runs goes on."""
        self._send("DELETE", f"/api/v1/presets/{quote(name, safe='')}")

    def export_preset(self: Asking, name: str) -> str:
        """A preset as YAML."""
        return str(self._send("GET", f"/api/v1/presets/{quote(name, safe='')}/export").text)

    def import_preset(self: Asking, yaml: str, *, name: str | None = None, replace: bool = False) -> Json:
        """Keep a preset that is given as YAML; under another `name`, if one is given."""
        return self._json("POST", "/presets/import", body={"yaml": yaml, "name": name, "replace": replace})

    def plan_preset(self: Asking, name: str, *, exclusive: bool = True) -> Json:
        """What applying a preset would do. Nothing is changed."""
        params = {"exclusive": "true" if exclusive else "false"}
        return self._json("GET", f"/presets/{quote(name, safe='')}/plan", params=params)

    def apply_preset(self: Asking, name: str, *, exclusive: bool = True) -> Json:
        """Begin to apply a preset; the run, as RunView."""
        return self._json("POST", f"/presets/{quote(name, safe='')}/apply", body={"exclusive": exclusive})

    def preset_schedules(self: Asking) -> list[Json]:
        """When presets are applied, as ScheduleView; the next to come first."""
        return list(self._json("GET", "/preset-schedules")["schedules"])

    def schedule_preset(self: Asking, name: str, cron: str, *, zone: str = "UTC", exclusive: bool = True) -> Json:
        """Have a preset applied at the times of a cron expression; the preset, as PresetView."""
        body = {"cron": cron, "zone": zone, "exclusive": exclusive}
        return self._json("POST", f"/presets/{quote(name, safe='')}/schedules", body=body)

    def unschedule_preset(self: Asking, name: str, cron: str | None = None) -> Json:
        """Have a preset not applied at the times of this expression any more; at none, if none is given."""
        params = None if cron is None else {"cron": cron}
        return self._json("DELETE", f"/presets/{quote(name, safe='')}/schedules", params=params)

    def preset_run(self: Asking) -> Json:
        """The run under way, or the last one."""
        return self._json("GET", "/presets/runs/current")

    def cancel_preset_run(self: Asking) -> Json:
        """Have the run begin no further step; a second time, have it not wait for those under way."""
        return self._json("POST", "/presets/runs/current/cancel", body={})
