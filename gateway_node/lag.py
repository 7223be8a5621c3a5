"""
Lag: how far this node is behind with its topic, for the dispatchers to see in its lease. Pure.

It is the age of the record in hand, by the time at which the bus stored it. That is the clock of another machine. So
when the topic was empty for a moment, how old the next record seems is what the clocks differ by (the least of the last
few, since such a record may have waited, too); and nothing can be older than the moment in which there was nothing.
"""

from __future__ import annotations

from collections import deque

_KEPT = 8


class Lag:
    """Times are `now`: this node's clock in epoch s, one that does not jump."""

    __slots__ = ("_caught_up", "_differences", "_fresh", "_stored")

    def __init__(self, now: float) -> None:
        """A node that starts may find a topic that it left long ago."""
        self._differences: deque[float] = deque(maxlen=_KEPT)
        self._caught_up = float("-inf")
        self._fresh = False
        self._stored = now

    def caught_up(self, now: float) -> None:
        """There was nothing to read until now."""
        self._caught_up = self._stored = now
        self._fresh = True

    def handling(self, stored_ms: int, now: float) -> None:
        """A record is in hand that the bus stored at `stored_ms` (its epoch ms; 0: nobody knows)."""
        self._stored = stored_ms / 1000 if stored_ms else now
        if self._fresh:
            self._fresh = False
            self._differences.append(now - self._stored)

    def ms(self, now: float) -> int:
        """How old the record in hand, or the last one, is."""
        age = now - self._stored - min(self._differences, default=0.0)
        return max(0, int(1000 * min(age, now - self._caught_up)))
