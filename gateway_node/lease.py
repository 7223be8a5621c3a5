"""
The lease: this node tells Redis that it lives, about once a second.

Only a node with a lease is offered to clients and sent records. While Redis is away the sessions stay and renewing goes
on. A lease that lapsed is not renewed but taken again under a new epoch: what was routed to the old one is nobody's any
more, so `lost` is called and every session is suspended until it is registered again.

`alive` is the node's own view, by a clock that goes on while the process is stopped or the machine sleeps: from the
moment the last renewal was asked for, for as long as a lease lives. A node that is not alive delivers nothing, since
its clients may be elsewhere by now and their messages acknowledged there.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from shared.backoff import Backoff
from shared.errors import StoreUnavailable
from shared.logs import OncePerSecond, get_log
from shared.registry import Held, Lease, Registry

_RENEW_S = 1.0
_log = get_log("lease")


def _clock_s() -> float:
    """Counts on while the machine is suspended, unlike time.monotonic (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseKeeper:
    """
    `describe` gives the lease for an epoch as it is now.

    `lost(kept)` is called when the lease was lost and taken again; `kept`: Redis still has what it held. `drain_asked`
    is called with each renewal: the request to drain (JSON), b"" while there is none.
    """

    __slots__ = (
        "_again",
        "_complaint",
        "_describe",
        "_drain_asked",
        "_ends",
        "_life_s",
        "_lost",
        "_node_id",
        "_registry",
        "_released",
        "_renewing",
        "_store_id",
        "_taken",
        "_times_taken",
        "epoch",
    )

    def __init__(
        self,
        registry: Registry,
        node_id: str,
        life_s: float,
        describe: Callable[[str], Lease],
        lost: Callable[[bool], None],
        drain_asked: Callable[[bytes], None],
    ) -> None:
        self.epoch = uuid.uuid4().hex
        self._registry = registry
        self._node_id = node_id
        self._life_s = life_s
        self._describe = describe
        self._lost = lost
        self._drain_asked = drain_asked
        self._complaint = OncePerSecond()
        self._taken = False
        self._times_taken = 0
        self._released = False
        self._renewing = asyncio.Lock()
        self._store_id = b""
        self._ends = 0.0
        self._again = asyncio.Event()

    def alive(self) -> bool:
        """Whether others believe so."""
        return _clock_s() < self._ends

    async def until_alive(self) -> None:
        while not self.alive():
            self._again.clear()
            await self._again.wait()

    async def run(self) -> None:
        """Until cancelled, or the lease is given back."""
        backoff = Backoff(0.1, min(1.0, self._life_s / 4))
        while not self._released:
            if await self._renewed():
                backoff.reset()
                await asyncio.sleep(min(_RENEW_S, self._life_s / 4))
            else:
                await asyncio.sleep(backoff.next_s())

    async def renew_now(self) -> None:
        """Tell what `describe` gives now, if the lease is held."""
        if self._taken:
            await self._renewed()

    async def release(self, *, clean: bool) -> None:
        """Nobody is sent here from now on. `clean`: see Registry.release."""
        self._released = True
        try:
            async with asyncio.timeout(3.0), self._renewing:  # a renewal behind the release would take it again
                await self._registry.release(self._node_id, self.epoch, clean=clean)
        except (StoreUnavailable, TimeoutError):
            _log.warning("lease_not_released", reason="Redis does not answer; it lapses by itself")
        finally:
            self._ends = 0.0

    async def _renewed(self) -> bool:
        async with self._renewing:
            if self._released:
                return True
            try:
                return (self._taken and await self._renew_held()) or await self._take()
            except StoreUnavailable as error:
                if self._complaint.due():
                    _log.warning("lease_not_renewed", reason=str(error))
            except Exception:  # without this task the node would be dead to all, for good
                _log.exception("lease_not_renewed")
            return False

    async def _renew_held(self) -> bool:
        began = _clock_s()
        renewal = await self._registry.renew(self._node_id, self._describe(self.epoch), life_s=self._life_s)
        if renewal.held is not Held.YES:
            return False
        self._keep_until(began + self._life_s, renewal.drain)
        return True

    async def _take(self) -> bool:
        """Under a new epoch, unless this is the first time."""
        if self._taken:
            self._taken = False
            self._ends = 0.0
            self.epoch = uuid.uuid4().hex
        began = _clock_s()
        renewal = await self._registry.take(self._node_id, self._describe(self.epoch), life_s=self._life_s)
        if renewal.held is not Held.YES:
            if self._complaint.due():
                _log.warning("lease_not_taken", reason="a dispatcher is cleaning up behind this node's last start")
            return False
        self._taken = True
        self._times_taken += 1
        if self._times_taken > 1:
            _log.warning("lease_was_lost", effect="all sessions are registered again")
            self._lost(renewal.store_id == self._store_id)
        self._store_id = renewal.store_id
        self._keep_until(began + self._life_s, renewal.drain)
        return True

    def _keep_until(self, ends: float, drain: bytes) -> None:
        self._ends = ends
        self._again.set()
        self._drain_asked(drain)
