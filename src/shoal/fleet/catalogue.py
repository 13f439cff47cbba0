"""The models that a fleet knows: kept, saved, and told of when they change."""

from __future__ import annotations

import dataclasses

from shoal.errors import ConflictError, NotFoundError
from shoal.fleet.effects import Effects
from shoal.fleet.life import Life
from shoal.fleet.records import Event as Note
from shoal.fleet.snapshot import Fleet
from shoal.fleet.state import Instance, Model


class Catalogue:
    """The models of a fleet, which the manager alone changes."""

    def __init__(self, fleet: Fleet, effects: Effects, life: Life) -> None:
        self._fleet, self._effects, self._life = fleet, effects, life

    def get(self, name: str) -> Model:
        """A model by its name. Raises NotFoundError."""
        model = self._fleet.models.get(name)
        if model is None:
            raise NotFoundError(
                f"there is no model {name}; `shoal models ls` lists them", code="model_not_found", param="model"
            )
        return model

    def to_change(self, name: str) -> Model:
        """The same, for somebody who changes it by hand. Raises ConflictError if the configuration file declares it."""
        model = self.get(name)
        if model.origin == "file":
            raise ConflictError(
                f"{model.spec.name} is declared in the configuration file; change it there, then `shoal reload`",
                code="declared_in_file",
            )
        return model

    def put(self, model: Model) -> None:
        """Keep a model that is new or has changed."""
        self._fleet.models[model.spec.name] = model
        self._effects.save_model(model)
        self._life.dirty.add(model.spec.name)
        self._life.routes_changed = True

    def drop(self, name: str) -> None:
        """Forget a model, and its instances, which have ended."""
        for instance in list(self._fleet.instances.of(name)):
            self._life.forget(instance.id)
        del self._fleet.models[name]
        self._fleet.leaving.discard(name)
        self._fleet.context_lengths.pop(name, None)
        self._effects.delete_model(name)
        self._effects.publish("model_removed", {"name": name})
        self._life.routes_changed = True
        self.say("model_removed", f"{name} was removed", name)

    def want_one_less(self, model: Model | None) -> None:
        """One of its instances ends for good: the next start is not to load it."""
        if model is not None and model.desired:
            self.put(dataclasses.replace(model, desired=model.desired - 1))

    def want_no_sleeper(self, instance: Instance) -> None:
        """One that sleeps and nobody wants awake is about to end: the next start is not to load it."""
        if instance.sleeps and instance.id not in self._fleet.rouse:
            self.want_one_less(self._fleet.models.get(instance.model))

    def say(self, kind: str, message: str, model: str, level: str = "info") -> None:
        """Keep an event of a model."""
        self._life.say(Note(self._effects.now(), level, kind, message, model, None))
