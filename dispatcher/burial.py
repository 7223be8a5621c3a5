"""
What Redis knows of dead nodes, and the scripts that clean it up under the janitor's lock.

Each start of a node, under an epoch of its own, is remembered until nothing is left of it. A start that does not hold
the lease is dead for good: its node comes back under another epoch. A dead start leaves *routes*, which are found by
the index of its node's sessions and taken out only where they still have the dead epoch. If its node has no lease at
all it leaves a *topic*. While that is emptied and deleted a mark keeps the node from taking its lease.

Leases, starts and the mark change only under the lock's token. Routes need none: what compares epochs cannot go wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared.ids import client_of_session
from shared.keys import PARTITIONS
from shared.registry import Registry
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_DEAD = Script(_LUA / "starts_dead.lua")
_BEGIN = Script(_LUA / "burial_begin.lua")
_END = Script(_LUA / "burial_end.lua")
_STOP = Script(_LUA / "burial_stop.lua")
_INDEX = Script(_LUA / "index.lua")
_MOST_STARTS = 1000
_SESSIONS_A_SLICE = 256


class LockLost(Exception):
    """Another dispatcher is the janitor now."""


@dataclass(frozen=True, slots=True)
class DeadNode:
    """
    The dead starts of one node, by epoch.

    `ended_s`: how long ago the last of their leases was to end; negative when it was given back before.
    """

    node_id: str
    epochs: tuple[str, ...]
    ended_s: float


async def dead_nodes(store: Store) -> list[DeadNode]:
    """Nodes of which something may be left. Raises StoreUnavailable."""
    keys = store.keys
    answer = await store.run(_DEAD, (keys.starts,), (keys.lease(""), _MOST_STARTS))
    epochs: dict[str, list[str]] = {}
    ended: dict[str, float] = {}
    for place in range(0, len(answer), 3):
        node_id = answer[place].decode()
        epochs.setdefault(node_id, []).append(answer[place + 1].decode())
        ended[node_id] = min(ended.get(node_id, float("inf")), answer[place + 2] / 1000)
    return [DeadNode(node_id, tuple(some), ended[node_id]) for node_id, some in epochs.items()]


class Burials:
    """What is done under the lock, with one token. All raise StoreUnavailable."""

    __slots__ = ("_lock_key", "_registry", "_store", "_token")

    def __init__(self, store: Store, registry: Registry, *, lock_key: str, token: int) -> None:
        self._store = store
        self._registry = registry
        self._lock_key = lock_key
        self._token = token

    async def clean_routes(self, dead: DeadNode) -> int:
        """Take out the routes of the dead epochs, and entries of the index that have no route. How many routes."""
        removed = 0
        for partition in range(PARTITIONS):
            index = self._store.keys.at(partition, dead.node_id)
            cursor = b"0"
            while True:
                cursor, found = await self._store.run(_INDEX, (index,), (cursor, _SESSIONS_A_SLICE))
                removed += await self._clean_some([session.decode() for session in found], dead.epochs)
                if cursor == b"0":
                    break
        return removed

    async def begin(self, node_id: str, *, life_s: float) -> bool:
        """Set or keep the mark; False, and nothing done, when the node has a lease. Raises LockLost."""
        keys = self._store.keys
        names = (self._lock_key, keys.lease(node_id), keys.burial(node_id))
        return await self._guarded(_BEGIN, names, (self._token, int(life_s * 1000)))

    async def end(self, dead: DeadNode, *, buried: bool) -> bool:
        """
        Forget the dead starts; `buried`: the topic is gone, too. Raises LockLost.

        False, and nothing done, when it is not buried and its node has no lease.
        """
        keys, node_id = self._store.keys, dead.node_id
        names = (
            *(self._lock_key, keys.lease(node_id), keys.starts),
            *(keys.burial(node_id), keys.node_ids, keys.drain(node_id)),
        )
        return await self._guarded(_END, names, (self._token, node_id, int(buried), *dead.epochs))

    async def stop(self, node_id: str) -> None:
        """The burial is broken off."""
        await self._store.run(_STOP, (self._store.keys.burial(node_id),), (self._token,))

    async def _clean_some(self, session_ids: list[str], epochs: tuple[str, ...]) -> int:
        removed = 0
        for epoch in epochs if session_ids else ():
            removed += await self._registry.unregister(
                [(client_of_session(session_id), session_id, epoch) for session_id in session_ids]
            )
        return removed

    async def _guarded(self, script: Script, names: tuple[str, ...], args: tuple[object, ...]) -> bool:
        answer = await self._store.run(script, names, args)
        if answer < 0:
            raise LockLost
        return bool(answer)
