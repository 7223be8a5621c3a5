"""
What is known of each broker from the last exchange with it: for `Bus.connected`, and for choosing a master.

A broker that did not answer counts as failed until it does; the bus's keeper asks failed brokers again every
couple of seconds, so nobody else has to find out with a record in hand.
"""

from __future__ import annotations

import asyncio


class Health:
    """One for each bus."""

    __slots__ = ("_brokers", "_name_servers", "failure")

    def __init__(self) -> None:
        self._brokers: dict[str, bool] = {}
        self._name_servers = True
        self.failure = asyncio.Event()
        """Set when something failed; the keeper clears it."""

    @property
    def connected(self) -> bool:
        """Whether some broker answered last, or, where none was asked yet, a name server."""
        return any(self._brokers.values()) if self._brokers else self._name_servers

    @property
    def all_good(self) -> bool:
        return self._name_servers and all(self._brokers.values())

    def is_failed(self, address: str) -> bool:
        return not self._brokers.get(address, True)

    def note_broker(self, address: str, good: bool) -> None:
        """The outcome of an exchange with a broker."""
        self._brokers[address] = good
        if not good:
            self.failure.set()

    def note_name_servers(self, good: bool) -> None:
        """Whether any name server answered a question of ours."""
        self._name_servers = good
        if not good:
            self.failure.set()

    def keep_only(self, addresses: set[str]) -> None:
        """Forget brokers that are no part of the cluster any more."""
        for address in self._brokers.keys() - addresses:
            del self._brokers[address]
