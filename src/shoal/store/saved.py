"""What a start finds in the database."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.fleet.keys import KeyRecord
from shoal.fleet.moves import Move
from shoal.fleet.presets import PresetRecord
from shoal.fleet.profiles import Profile
from shoal.fleet.sessions import Session
from shoal.fleet.state import Instance, Model
from shoal.fleet.users import User
from shoal.fleet.virtual import Virtual


@dataclass(frozen=True, slots=True)
class Saved:
    """What a database held (ended instances and revoked keys too), and in a sentence each what could not be read."""

    models: list[Model] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    keys: list[KeyRecord] = field(default_factory=list)
    virtual: list[Virtual] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    presets: list[PresetRecord] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    users: list[User] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    keys_lost: bool = False
    """There may have been keys that could not be read: nobody can be asked for those, nor let in without."""
    users_lost: bool = False
    """There may have been users that could not be read: nobody is to be let in for want of them."""
    complete: bool = True
    """False: there may have been more. What is not in here is then no proof that nobody knows of it."""
