"""What tools have held back of devices, by connection and holder, and when each is answered. No I/O but the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

from . import messages as m
from .connection import Connection
from .ledger import Device, Ledger


class Reserving:
    """The reservations of all connections. `measure` has the devices measured at once; None: nobody measures them."""

    def __init__(self, ledger: Ledger, measure: Callable[[], None] | None) -> None:
        self._ledger = ledger
        self._measure = measure
        self._holders: dict[Connection, set[tuple[Device, str]]] = {}
        self._unanswered: list[tuple[Device, Connection]] = []

    def reserve(self, connection: Connection, device: Device, message: m.Reserve) -> bool:
        """Do what the message says, and answer it; True: once `measured` says so, and nothing is to be decided before.

        What has just been given back for it must not be asked back a second time. Raises LedgerError.
        """
        owner = connection, message.holder
        if message.size:
            self._ledger.hold_back(device, owner, message.size, arriving=message.arriving)
            self._holders.setdefault(connection, set()).add((device, message.holder))
        else:
            self._ledger.arrived(device, owner)
        if self._measure is None:
            connection.send(m.Done())
            return False
        self._measure()
        if message.arriving or not message.size:
            connection.send(m.Done())
            return False
        self._unanswered.append((device, connection))
        return True

    def measured(self, but: Set[Device] = frozenset()) -> None:
        """The devices were measured, `but` these."""
        for device, connection in self._unanswered:
            if device not in but:
                connection.send(m.Done())
        self._unanswered = [one for one in self._unanswered if one[0] in but]

    def gone(self, connection: Connection) -> Iterable[Device]:
        """A connection is gone, and with it what it held back; of which devices."""
        self._unanswered = [one for one in self._unanswered if one[1] is not connection]
        held = self._holders.pop(connection, set())
        for device, holder in held:
            self._ledger.hold_back(device, (connection, holder), 0)
        return {device for device, _ in held}
