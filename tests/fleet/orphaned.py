"""An instance as its record keeps it."""

from __future__ import annotations

from shoal.fleet.state import Instance, Rest
from shoal.fleet.state import InstanceState as S
from tests.fleet.fakes import spec

INSTANCE_RECORD = Instance(
    id="m-1",
    model="m",
    engine="simulated",
    state=S.SLEEPING,
    devices=("cuda:0",),
    created_at=1.0,
    changed_at=2.0,
    address="unix:/run/x/engine.sock",
    spec=spec("m", priority=7, env={"A": "ü"}),
    can_sleep=True,
    rest=Rest(1, "canary", 10, 2, 8),
)
