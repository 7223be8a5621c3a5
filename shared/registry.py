"""
The registry: which nodes live, and which session of a client is where.

A node holds a *lease* in Redis that it renews; when it stops, the lease expires. Each start of a node has an *epoch*
of its own. A *route* says that a session is on a node of an epoch; it counts only while that node has a live lease
with the same epoch, so a node that died takes its routes with it without anybody removing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shared.inbox import SLICE, Slice, read_slice
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_REGISTER = Script(_LUA / "register.lua", SLICE)
_UNREGISTER = Script(_LUA / "unregister.lua")
_RENEW = Script(_LUA / "renew.lua")
_RELEASE = Script(_LUA / "release.lua")


class Lease(msgspec.Struct, frozen=True):
    """What a node tells of itself with each renewal."""

    epoch: str
    url: str
    connections: int = 0
    weight: int = 1
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """A node with a live lease."""

    node_id: str
    lease: Lease


class Registry:
    """Leases and routes in Redis. Each call takes a batch; all raise StoreUnavailable."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    async def renew(self, node_id: str, lease: Lease, *, life_s: float) -> bool:
        """Renew or take the lease. False when this epoch did not hold it until now."""
        keys = self._store.keys
        held = await self._store.run(
            _RENEW,
            (keys.lease(node_id), keys.node_ids),
            (node_id, lease.epoch, int(life_s * 1000), msgspec.json.encode(lease)),
        )
        return bool(held)

    async def release(self, node_id: str, epoch: str) -> None:
        """Give the lease back; nobody is sent to this node from now on."""
        keys = self._store.keys
        await self._store.run(_RELEASE, (keys.lease(node_id), keys.node_ids), (node_id, epoch))

    async def register(
        self, node_id: str, epoch: str, sessions: Sequence[tuple[str, str]], *, most: int, most_bytes: int
    ) -> list[Slice]:
        """Register sessions (clientId, sessionId) and read their inboxes, in one step."""
        keys = self._store.keys
        names: list[str] = []
        for client_id, _ in sessions:
            inbox, route = keys.inbox_and_route(client_id)
            names += (route, inbox, keys.last(client_id))
        args = (node_id, epoch, most, most_bytes, *(session_id for _, session_id in sessions))
        return [read_slice(answer) for answer in await self._store.run(_REGISTER, names, args)]

    async def unregister(self, sessions: Sequence[tuple[str, str]]) -> None:
        """Remove sessions (clientId, sessionId) from their clients' routes."""
        await self._store.run(
            _UNREGISTER,
            [self._store.keys.route(client_id) for client_id, _ in sessions],
            [session_id for _, session_id in sessions],
        )
