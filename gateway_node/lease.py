"""
The lease: this node tells Redis that it lives, a few times a lease.

Only a node with a lease is offered to clients and sent records. While Redis is away the sessions stay, and renewing
goes on; when the lease turns out to have been lost, `lost` is called so that all sessions are registered again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.backoff import Backoff
from shared.errors import StoreUnavailable
from shared.logs import OncePerSecond, get_log
from shared.registry import Lease, Registry

_log = get_log("lease")


class LeaseKeeper:
    """`describe` gives the lease as it is now. `held` is whether the last renewal went well."""

    __slots__ = ("_complaint", "_describe", "_life_s", "_lost", "_node_id", "_registry", "_taken", "held")

    def __init__(
        self,
        registry: Registry,
        node_id: str,
        life_s: float,
        describe: Callable[[], Lease],
        lost: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._node_id = node_id
        self._life_s = life_s
        self._describe = describe
        self._lost = lost
        self._complaint = OncePerSecond()
        self._taken = False
        self.held = False

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff(0.1, min(2.0, self._life_s / 3))
        while True:
            if await self._renewed():
                backoff.reset()
                await asyncio.sleep(self._life_s / 4)
            else:
                await asyncio.sleep(backoff.next_s())

    async def renew_now(self) -> None:
        """What `describe` gives has changed."""
        if self._taken:
            await self._renewed()

    async def release(self) -> None:
        """Nobody is sent here from now on."""
        self.held = False
        try:
            async with asyncio.timeout(3.0):
                await self._registry.release(self._node_id, self._describe().epoch)
        except (StoreUnavailable, TimeoutError):
            _log.warning("lease_not_released", reason="Redis does not answer; it lapses by itself")

    async def _renewed(self) -> bool:
        try:
            continued = await self._registry.renew(self._node_id, self._describe(), life_s=self._life_s)
        except StoreUnavailable as error:
            self.held = False
            if self._complaint.due():
                _log.warning("lease_not_renewed", reason=str(error))
            return False
        if not continued and self._taken:
            _log.warning("lease_was_lost", effect="all sessions are registered again")
            self._lost()
        self._taken = self.held = True
        return True
