"""What loads of models have shown, and what their instances answer to the canary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fastapi import APIRouter
from pydantic import BaseModel

from shoal.api.context import Context
from shoal.fleet.canary import NONE, PROMPT
from shoal.fleet.profiles import Profile, settings_hash
from shoal.fleet.snapshot import Fleet

router = APIRouter(prefix="/api/v1", tags=["models"])
_TEXT = "text: "  # what `canary.ask` puts before an answer


class ProfileView(BaseModel):
    """What was measured of a model on one kind of device. Bytes are on one device, times Unix seconds; None: unseen."""

    model: str
    device: str
    current: bool
    """Measured with the settings that the model has now."""
    version: str
    """The engine's."""
    measured_at: float
    loads: int
    weights: int | None
    overhead: int | None
    """Beside weights and KV cache; the largest of the last loads."""
    kv_token: float | None
    """Bytes of one token of the KV cache."""
    load_seconds: float | None
    phases: Mapping[str, float]
    """Seconds of the last load, in the order they ran."""
    sleep_seconds: float | None
    wake_seconds: float | None
    asleep: int | None
    """What stays on a device while it sleeps."""
    host_copy: int | None
    """Bytes of the host's memory that an instance's weights have while it sleeps."""


class CanaryView(BaseModel):
    """What an instance answered to the canary before its first sleep."""

    model: str
    instance: str
    asked: bool
    completes: bool
    """Whether its engine completes text at all; false too while it was not asked."""
    answer: str | None


class Profiles(BaseModel):
    """Profiles, the one of the present settings and the newest first; the canary's prompt and the answers to it."""

    profiles: list[ProfileView]
    prompt: str
    canaries: list[CanaryView]


@router.get("/profiles")
async def list_profiles(controller: Context, model: str | None = None) -> Profiles:
    """What loads have shown, of one model if asked so: memory, times, and the answers to the canary."""
    return profiles(controller.manager.fleet, model)


def profiles(fleet: Fleet, model: str | None) -> Profiles:
    """What a fleet knows of one model, or of all."""
    chosen = [_view(fleet, one) for one in fleet.profiles.values() if model in (None, one.model)]
    chosen.sort(key=lambda one: (one.model, not one.current, -one.measured_at, one.device))
    answers = [
        CanaryView(
            model=one.model,
            instance=one.id,
            asked=one.rest.canary is not None,
            completes=one.rest.canary not in (None, NONE),
            answer=one.rest.canary.removeprefix(_TEXT) if one.rest.canary else None,
        )
        for one in sorted(fleet.instances.values(), key=lambda one: (one.model, one.created_at, one.id))
        if model in (None, one.model) and not one.state.ended
    ]
    return Profiles(profiles=chosen, prompt=PROMPT, canaries=answers)


def _view(fleet: Fleet, profile: Profile) -> ProfileView:
    model = fleet.models.get(profile.model)
    known = {field.name: getattr(profile, field.name) for field in dataclasses.fields(profile)}
    current = model is not None and settings_hash(model.spec) == profile.settings
    shown = {name: value for name, value in known.items() if name in ProfileView.model_fields}
    return ProfileView(**shown, overhead=profile.overhead, current=current)
