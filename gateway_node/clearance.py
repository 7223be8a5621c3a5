"""
Clearance: who sends to many sessions lets others have their turn in between, and waits while nothing is to be sent.

That is while the sockets cannot keep up (pacing.py), and while the node's lease is not alive (lease.py).
"""

from __future__ import annotations

import asyncio

from gateway_node.delivery import Delivery
from gateway_node.fanout import Fanout
from gateway_node.lease import LeaseKeeper
from gateway_node.pacing import Pacing

# What comes for one client is handed on from task to task, a turn of the loop each, from the bus's socket to the
# client's. With one turn a slice it would wait for as many slices. A turn in which there is nothing to do costs a us.
_TURNS = 8


class Clearance:
    """Shared by all who send."""

    __slots__ = ("_delivery", "_fanout", "_lease", "_one", "_pacing")

    def __init__(self, lease: LeaseKeeper, pacing: Pacing, delivery: Delivery, fanout: Fanout) -> None:
        self._lease = lease
        self._pacing = pacing
        self._delivery = delivery
        self._fanout = fanout
        self._one = asyncio.Lock()

    async def turn(self) -> None:
        """What else there is to do gets its turns."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await self.until_clear()

    async def until_clear(self) -> None:
        """Wait until more may be sent."""
        self._pacing.handed_out = self._fanout.handed_out
        if self._pacing.is_due():
            async with self._one:
                await self._pacing.until_room()
        if not self._lease.alive():
            await self._lease.until_alive()
        self._delivery.now = asyncio.get_running_loop().time()
