"""
The janitor: cleans up behind nodes that died.

    look (each dispatcher, twice a lease) -> lock -> for each dead node: routes -> mark -> empty its topic -> delete it

One dispatcher at a time does it, under a lock with a fencing token. Whatever is left undone, because the janitor was
killed, the bus is away or Redis does not answer, is found again by the next look, of this dispatcher or another.

A node whose lease another start holds has come back: only the routes of the dead starts go. One without a lease is
*buried*: a mark in Redis keeps it from taking its lease while its topic is read to the end (reroute.py) and deleted. A
node that wakes up meanwhile waits, then makes its topic anew. The bus knows no lock; a janitor that was itself stopped
for longer than the mark lives, right before it deletes, may delete the topic of a node that is back. That node makes it
again with its next sweep, and nothing that is stored is lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from dispatcher.burial import Burials, DeadNode, LockLost, dead_nodes
from dispatcher.lock import Lock
from dispatcher.metrics import NODES_BURIED, REROUTED, ROUTES_CLEANED
from dispatcher.reroute import Reroute
from shared.bus.port import Bus
from shared.errors import PushfleetError, StoreUnavailable, TopicMissing
from shared.ids import node_topic
from shared.logs import OncePerSecond, get_log
from shared.registry import Registry
from shared.store import Store

_AT_ONCE = 8
_NOTICE_S = 1.5  # dispatchers read the leases each second, and a publish takes a moment
_MARK_S = 20.0  # longer than deleting a topic may take
_MARK_AGAIN_S = 3.0
_DROP_S = 12.0
_EMPTY_S = 30.0
_log = get_log("janitor")


class _CameBack(Exception):
    """The node has a lease."""


@dataclass(frozen=True, slots=True)
class Janitor:
    """What it works with. `await run()` until cancelled."""

    store: Store
    registry: Registry
    bus: Bus
    reroute: Reroute
    namespace: str
    lease_s: float

    async def run(self) -> None:
        """Look and clean up, for ever."""
        lock = Lock(self.store, "janitor", life_s=max(2.0, self.lease_s / 2))
        complaint = OncePerSecond()
        while True:
            try:
                await self.look(lock)
            except StoreUnavailable as error:
                if complaint.due():
                    _log.warning("janitor_waits", reason=str(error))
            except Exception:
                _log.exception("janitor_failed")
            await asyncio.sleep(self.lease_s * random.uniform(0.25, 0.5))

    async def look(self, lock: Lock) -> None:
        """Clean up behind all nodes that are dead now, unless another dispatcher does. Raises StoreUnavailable."""
        if not await dead_nodes(self.store) or not await lock.hold():
            return
        try:
            await _Turn(self, lock).run(await dead_nodes(self.store))
        finally:
            with suppress(PushfleetError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await lock.release()


class _Turn:
    """The work while the lock is held with one token."""

    def __init__(self, janitor: Janitor, lock: Lock) -> None:
        self._janitor = janitor
        self._lock = lock
        self._burials = Burials(janitor.store, janitor.registry, lock_key=lock.key, token=lock.token)
        self._began = time.monotonic()

    async def run(self, dead: list[DeadNode]) -> None:
        """Until all is done that can be, or the lock is lost."""
        waiting = deque(dead)
        workers = [asyncio.create_task(self._work(waiting), name="bury") for _ in dead[:_AT_ONCE]]
        keeper = asyncio.create_task(self._keep_lock(workers), name="janitor lock")
        try:
            await asyncio.gather(*workers, return_exceptions=True)
        finally:
            for task in (keeper, *workers):
                task.cancel()
            await asyncio.gather(keeper, *workers, return_exceptions=True)

    async def _keep_lock(self, workers: list[asyncio.Task[None]]) -> None:
        token = self._lock.token
        while True:
            await asyncio.sleep(self._lock.life_s / 3)
            try:
                await self._lock.hold()
            except StoreUnavailable:
                continue
            if self._lock.token != token:
                _log.warning("janitor_lock_lost")
                for worker in workers:
                    worker.cancel()
                return

    async def _work(self, waiting: deque[DeadNode]) -> None:
        while waiting:
            dead = waiting.popleft()
            try:
                await self._clean_up(dead)
            except PushfleetError as error:
                _log.warning("burial_waits", node_id=dead.node_id, reason=str(error))
            except TimeoutError:
                _log.warning("burial_waits", node_id=dead.node_id, reason="the bus is too slow")
            except LockLost:
                _log.warning("janitor_lock_lost")
                waiting.clear()
            except Exception:
                _log.exception("burial_failed", node_id=dead.node_id)

    async def _clean_up(self, dead: DeadNode) -> None:
        routes = await self._burials.clean_routes(dead)
        ROUTES_CLEANED.inc(routes)
        if await self._burials.end(dead, buried=False):
            _log.info("start_cleaned", node_id=dead.node_id, routes=routes)
            return
        if not self._janitor.bus.connected:
            return  # it will be, and then the node is looked at again
        await self._until_noticed(dead)
        try:
            await self._bury(dead, routes)
        except _CameBack:
            await self._burials.end(dead, buried=False)
            _log.info("start_cleaned", node_id=dead.node_id, routes=routes)

    async def _until_noticed(self, dead: DeadNode) -> None:
        """Until every dispatcher knows that the node is dead; nothing is published to it any more."""
        known_s = max(0.0, dead.ended_s) + time.monotonic() - self._began
        await asyncio.sleep(max(0.0, min(_NOTICE_S, self._janitor.lease_s) - known_s))

    async def _bury(self, dead: DeadNode, routes: int) -> None:
        buried = False
        try:
            topic, rerouted = await self._bury_topic(dead.node_id)
            buried = await self._burials.end(dead, buried=True)
        finally:
            if not buried:
                await self._stop(dead.node_id)
        NODES_BURIED.inc()
        _log.info("node_buried", node_id=dead.node_id, routes=routes, rerouted=rerouted, topic=topic)

    async def _bury_topic(self, node_id: str) -> tuple[str, int]:
        """What became of the topic, and how many lines of it went elsewhere."""
        janitor = self._janitor
        topic = node_topic(janitor.namespace, node_id)
        marked_at = float("-inf")

        async def go_on(after_s: float = _MARK_AGAIN_S) -> None:
            nonlocal marked_at
            now = time.monotonic()
            if now - marked_at >= after_s:
                if not await self._burials.begin(node_id, life_s=_MARK_S):
                    raise _CameBack
                marked_at = now

        await go_on()
        rerouted, state = 0, "deleted"
        try:
            async with asyncio.timeout(_EMPTY_S):
                rerouted = await janitor.reroute.empty(topic, go_on)
        except TopicMissing:
            state = "missing"
        REROUTED.inc(rerouted)
        await go_on(0.0)
        async with asyncio.timeout(_DROP_S):
            await janitor.bus.drop_topic(topic)  # also when it is missing: its read position may be left
        return state, rerouted

    async def _stop(self, node_id: str) -> None:
        with suppress(PushfleetError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._burials.stop(node_id)
