"""The part of the client that saves and applies presets."""

from __future__ import annotations

from shoal.client_http import API, HttpClient, Json, quoted


class PresetCalls(HttpClient):
    """A part of `Client`."""

    def presets(self) -> list[Json]:
        """Every preset, as PresetView."""
        return list(self._json("GET", "/presets")["presets"])

    def preset(self, name: str) -> Json:
        """One preset, as PresetView."""
        return self._json("GET", f"/presets/{quoted(name)}")

    def save_preset(
        self, name: str, *, description: str | None = None, replace: bool = False, fix_devices: bool = False
    ) -> Json:
        """Save what runs and sleeps now."""
        body = {"name": name, "description": description, "replace": replace, "fix_devices": fix_devices}
        return self._json("POST", "/presets", body=body)

    def remove_preset(self, name: str) -> None:
        """Forget a preset; what runs goes on."""
        self._send("DELETE", f"{API}/presets/{quoted(name)}")

    def export_preset(self, name: str) -> str:
        """A preset as YAML."""
        return str(self._send("GET", f"{API}/presets/{quoted(name)}/export").text)

    def import_preset(self, yaml: str, *, name: str | None = None, replace: bool = False) -> Json:
        """Keep a preset that is given as YAML; under another `name`, if one is given."""
        return self._json("POST", "/presets/import", body={"yaml": yaml, "name": name, "replace": replace})

    def plan_preset(self, name: str, *, exclusive: bool = True) -> Json:
        """What applying a preset would do. Nothing is changed."""
        params = {"exclusive": "true" if exclusive else "false"}
        return self._json("GET", f"/presets/{quoted(name)}/plan", params=params)

    def apply_preset(self, name: str, *, exclusive: bool = True) -> Json:
        """Begin to apply a preset; the run, as RunView."""
        return self._json("POST", f"/presets/{quoted(name)}/apply", body={"exclusive": exclusive})

    def preset_schedules(self) -> list[Json]:
        """When presets are applied, as ScheduleView; the next to come first."""
        return list(self._json("GET", "/preset-schedules")["schedules"])

    def schedule_preset(self, name: str, cron: str, *, zone: str = "UTC", exclusive: bool = True) -> Json:
        """Have a preset applied at the times of a cron expression; the preset, as PresetView."""
        body = {"cron": cron, "zone": zone, "exclusive": exclusive}
        return self._json("POST", f"/presets/{quoted(name)}/schedules", body=body)

    def unschedule_preset(self, name: str, cron: str | None = None) -> Json:
        """Have a preset not applied at the times of this expression any more; at none, if none is given."""
        params = None if cron is None else {"cron": cron}
        return self._json("DELETE", f"/presets/{quoted(name)}/schedules", params=params)

    def preset_run(self) -> Json:
        """The run under way, or the last one."""
        return self._json("GET", "/presets/runs/current")

    def cancel_preset_run(self) -> Json:
        """Have the run begin no further step; a second time, have it not wait for those under way."""
        return self._json("POST", "/presets/runs/current/cancel", body={})
