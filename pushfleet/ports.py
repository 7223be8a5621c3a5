"""
Ports on loopback: the one that is wanted, or the next one up that is free.

Between the choice of a port and the moment a child listens on it, another cluster on this machine could choose the
same one. So a chosen port is reserved among ourselves for as long as this process lives: on Linux, by an abstract Unix
socket of its name (unix(7)), which nothing has to remove.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

_HOST = "127.0.0.1"
_TRIES = 200


class NoFreePort(Exception):
    """None of the ports above the wanted one is free."""


class PortPicker:
    """Hands out each port once. `say` hears about every wanted port that was taken."""

    __slots__ = ("_given", "_reserved", "_say")

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._given: set[int] = set()
        self._reserved: list[socket.socket] = []

    def pick(self, wanted: int, what: str) -> int:
        """A free port for `what`: `wanted` (0: any) if it can be had. Raises NoFreePort."""
        for port in range(wanted, wanted + _TRIES):
            if port in self._given or port > 65_535:
                continue
            found = bindable(port)
            if found and self._reserve(found):
                if wanted not in (0, found):
                    self._say(f"port {wanted} is taken: {what} gets {found}")
                self._given.add(found)
                return found
        raise NoFreePort(f"no free port from {wanted} up for {what}")

    def close(self) -> None:
        """Others may choose these ports again."""
        for reservation in self._reserved:
            reservation.close()
        self._reserved.clear()

    def _reserve(self, port: int) -> bool:
        """False if another process of ours has it."""
        if sys.platform != "linux":
            return True
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            reservation.bind(f"\0pushfleet-port-{port}")
        except OSError:
            reservation.close()
            return False
        self._reserved.append(reservation)
        return True


def bindable(port: int) -> int:
    """The port (a free one for 0) if a server could listen on it now, else 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
            probe.listen(1)
        except OSError:
            return 0
        return int(probe.getsockname()[1])
