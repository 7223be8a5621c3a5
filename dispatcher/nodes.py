"""
The nodes that live, as this dispatcher knows them, and which routes count.

The table of leases is in memory. One task reads it anew each second, and at once when somebody asks: a route may name
a node that started a moment ago. Who asks gets a table that was read after the question, and all who ask meanwhile
share one reading. What a reading found dead is remembered, so that routes of a node that died cost no further
readings; such routes are taken out of Redis in the background, while the janitor (janitor.py) works through all of
that node's.

A route is taken out only with the epoch it was seen with: a node that was silent for longer than its lease comes back
with another one and registers its sessions again.

While Redis is away the last table serves for three leases.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from dispatcher.flow import Flow
from dispatcher.metrics import LIVE_NODES, STALE_ROUTES_REMOVED
from shared.errors import StoreUnavailable
from shared.ids import node_of_session, node_topic
from shared.logs import OncePerSecond, get_log
from shared.registry import Lease, Node, Registry
from shared.store import Script, Store

_NODES = Script(Path(__file__).parent / "lua" / "nodes.lua")
_EVERY_S = 1.0
_ANSWER_S = 5.0
_MOST_REMEMBERED = 10_000
_MOST_IN_A_CALL = 500
_log = get_log("dispatcher")
_lease_decoder = msgspec.json.Decoder(Lease)


class LiveNodes:
    """`await start()`, then ask; `await close()`. `flow` is told what was read."""

    __slots__ = (
        "_asked",
        "_complaint",
        "_dead",
        "_lease_s",
        "_nodes",
        "_read_at",
        "_registry",
        "_stale",
        "_store",
        "_table",
        "_task",
        "_topic_prefix",
        "_waiting",
        "flow",
    )

    def __init__(
        self, store: Store, registry: Registry, *, namespace: str, lease_s: float, max_lag_s: float = 10.0
    ) -> None:
        self.flow = Flow(max_lag_s)
        self._store = store
        self._registry = registry
        self._topic_prefix = namespace
        self._lease_s = lease_s
        self._nodes: tuple[Node, ...] = ()
        self._table: dict[str, tuple[str, str]] = {}  # nodeId -> (epoch, topic)
        self._dead: dict[tuple[str, str], None] = {}  # (nodeId, epoch)
        self._stale: dict[tuple[str, str, str], None] = {}  # (clientId, sessionId, epoch) to be taken out of routes
        self._read_at = float("-inf")
        self._asked = asyncio.Event()
        self._waiting: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._complaint = OncePerSecond()

    async def start(self) -> None:
        """Read the table and keep it fresh from now on. Raises StoreUnavailable."""
        await self._read()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="live nodes")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    def topic_of(self, session_id: str, epoch: str) -> str | None:
        """The topic of the session's node; "" when that node is dead; None when only a fresh table can tell."""
        node_id = node_of_session(session_id)
        known = self._table.get(node_id)
        if known is not None and known[0] == epoch:
            return known[1]
        return "" if (node_id, epoch) in self._dead else None

    def live(self) -> tuple[Node, ...]:
        """The nodes with a live lease. Raises StoreUnavailable when the last table is too old to be believed."""
        if time.monotonic() - self._read_at > 3 * self._lease_s:
            raise StoreUnavailable("Redis does not answer, and nobody knows any more which nodes live; try again")
        return self._nodes

    def topics(self) -> list[str]:
        """The topics of all nodes with a live lease. Raises StoreUnavailable as `live`."""
        self.live()
        return [topic for _, topic in self._table.values()]

    async def refresh(self) -> None:
        """Return when a reading that began after this call is done. Raises StoreUnavailable."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
            self._asked.set()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await asyncio.shield(self._waiting)
        except TimeoutError:
            raise StoreUnavailable("Redis does not answer in time; try again") from None

    def refresh_soon(self) -> None:
        """As `refresh`, without waiting for it."""
        self._asked.set()

    def found_dead(self, client_id: str, session_id: str, epoch: str) -> None:
        """A route whose node `topic_of` still does not know after a refresh: remember, and take it out in time."""
        self._dead[node_of_session(session_id), epoch] = None
        if len(self._dead) > _MOST_REMEMBERED:
            del self._dead[next(iter(self._dead))]
        if len(self._stale) < _MOST_REMEMBERED:
            self._stale[client_id, session_id, epoch] = None

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_EVERY_S):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            waiting, self._waiting = self._waiting, None
            try:
                await self._read()
            except Exception as error:
                self._failed(error, waiting)
                continue
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
            try:
                await self._remove_stale()
            except Exception as error:
                self._failed(error, None)

    def _failed(self, error: Exception, waiting: asyncio.Future[None] | None) -> None:
        """The task goes on whatever happened: without it no node that starts would ever be known."""
        if self._complaint.due():
            if isinstance(error, StoreUnavailable):
                _log.warning("redis_unavailable", reason=str(error))
            else:
                _log.error("nodes_not_read", exc_info=error)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
            waiting.exception()  # nobody may be left to take it

    async def _read(self) -> None:
        keys = self._store.keys
        began = time.monotonic()
        answer = await self._store.run(_NODES, (keys.node_ids,), (keys.lease(""),))
        nodes = []
        for place in range(0, len(answer), 2):
            try:
                nodes.append(Node(answer[place].decode(), _lease_decoder.decode(answer[place + 1])))
            except ValueError:  # not JSON of that form, or not even UTF-8
                _log.warning("bad_lease", node_id=answer[place].decode(errors="replace"))
        self._nodes = tuple(nodes)
        self._table = {node.node_id: (node.lease.epoch, node_topic(self._topic_prefix, node.node_id)) for node in nodes}
        for node in nodes:
            self._dead.pop((node.node_id, node.lease.epoch), None)
        self.flow.observe(nodes)
        self._read_at = began
        LIVE_NODES.set(len(nodes))

    async def _remove_stale(self) -> None:
        while self._stale:
            sessions = list(self._stale)[:_MOST_IN_A_CALL]
            removed = await self._registry.unregister(sessions)
            for session in sessions:
                del self._stale[session]
            STALE_ROUTES_REMOVED.inc(removed)  # of the others the janitor was faster, or their node has come back
