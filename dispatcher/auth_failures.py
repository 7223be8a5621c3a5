"""
Requests without a good key, by the address they come from.

Each address has a token bucket of one second; one that has used it up is answered 429 instead of 401, and its JWTs are
not verified unless they were good before, so that a flood of guesses is no flood of signatures. A good API key passes
all the same: it is found by one hash, and who shares an address with a guesser is not to suffer for it.

The addresses are bounded: the one that failed the longest ago is forgotten. Of an IPv6 address the first 64 bits count,
as one host has all the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from dispatcher.metrics import REFUSED
from shared.addresses import counted_as
from shared.errors import Overloaded
from shared.logs import OncePerSecond, get_log

_MOST_ADDRESSES = 10_000
_log = get_log("callers")


class AuthFailures:
    """`rate`: failures a second that an address may have; 0 is no bound."""

    __slots__ = ("_buckets", "_complaint", "_now", "_rate", "_unsaid")

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}
        self._complaint = OncePerSecond()
        self._unsaid = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def check(self, address: str) -> None:
        """Raises Overloaded for an address that has used up its failures."""
        if not self._rate:
            return
        level = self._level(counted_as(address))
        if level < 1.0:
            REFUSED.labels("auth_failures").inc()
            raise Overloaded(
                f"over {self._rate:g} requests a second without a good key",
                retry_after_s=max(1, math.ceil((1.0 - level) / self._rate)),
            )

    def count(self, address: str, reason: str) -> None:
        """One that failed. Raises Overloaded when it was one too many."""
        REFUSED.labels("unauthorized").inc()
        self._unsaid += 1
        if self._complaint.due():
            _log.warning("unauthorized", address=address, reason=reason[:200], requests=self._unsaid)
            self._unsaid = 0
        if not self._rate:
            return
        self.check(address)
        host = counted_as(address)
        level = self._level(host) - 1.0
        if self._buckets.pop(host, None) is None and len(self._buckets) >= _MOST_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[host] = (level, self._now())

    def _level(self, host: str) -> float:
        most = max(self._rate, 1.0)
        known = self._buckets.get(host)
        if known is None:
            return most
        level, then = known
        return min(most, level + (self._now() - then) * self._rate)
