"""
Arrivals: how many connections a second the node lets in.

When a node dies its clients come to the others at once. Beyond a rate they are refused with 503 and told to come back
in a few seconds, each at a time of its own, before anything costly is done for them: the sessions that are here go on
being served meanwhile.
"""

from __future__ import annotations

import random
from math import ceil

from gateway_node.metrics import REFUSED
from gateway_node.websocket import pace
from shared.errors import Unavailable

BURST_S = 2.0
_BACK_IN_S = (1, 5)
_MOST_FLOODS = 10_000
_REFUSED = REFUSED.labels("node_rate")


def come_again_s() -> int:
    """A Retry-After, another for each, so that those who are refused together do not come back together."""
    return random.randint(*_BACK_IN_S)


class Arrivals:
    """A token bucket of `rate` connections a second, two seconds' worth at once; 0 lets everybody in."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = rate * BURST_S
        self._at = 0.0

    def take(self, now: float) -> None:
        """One more. Raises Unavailable."""
        if not self._rate:
            return
        if now > self._at:
            self._left = min(self._rate * BURST_S, self._left + (now - self._at) * self._rate)
            self._at = now
        if self._left < 1.0:
            _REFUSED.inc()
            raise Unavailable("too many connections at once; come again", retry_after_s=come_again_s())
        self._left -= 1.0


class Floods:
    """
    Clients whose session was closed for flooding (4029): for five seconds they do not come back.

    A new session may send five seconds' worth at once, so who is closed and comes back at once would have no limit.
    """

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, client_id: str, now: float) -> None:
        """A session of the client flooded."""
        if len(self._until) < _MOST_FLOODS:
            self._until[client_id] = now + pace.BURST_S

    def check(self, client_id: str, now: float) -> None:
        """Raises Unavailable."""
        if self._until and (left_s := self._until.get(client_id, 0.0) - now) > 0:
            raise Unavailable("this client sent too much; come again", retry_after_s=ceil(left_s))

    def forget(self, now: float) -> None:
        """Those whose time is over."""
        if self._until:
            self._until = {client_id: until for client_id, until in self._until.items() if until > now}
