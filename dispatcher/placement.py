"""
Placement: the node that a client should connect to.

Its last one if that lives and is not draining, else the least loaded by connections and weight. A node tells its
connections only with each renewal of its lease, so those sent to it since count as well, half of them forgotten with
each table of nodes: without that a crowd of clients would all be sent to one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dispatcher.nodes import LiveNodes
from shared.batching import Batcher
from shared.errors import Unauthorized, Unavailable
from shared.registry import Node
from shared.store import Script, Store

_LAST = Script(Path(__file__).parent / "lua" / "last.lua")


class Placement:
    """Chooses nodes for clients."""

    __slots__ = ("_last", "_live", "_nodes", "_sent", "_store")

    def __init__(self, store: Store, nodes: LiveNodes) -> None:
        self._store = store
        self._nodes = nodes
        self._last: Batcher[tuple[str, float | None], bytes | int | None] = Batcher("last node", self._read_last)
        self._live: tuple[Node, ...] = ()
        self._sent: dict[str, float] = {}

    async def choose(self, client_id: str, issued_s: float | None = None) -> tuple[str, str]:
        """
        (nodeId, url). `issued_s`: the `iat` (0: not said) of the token that the client asks with, None: it does not.

        Raises Unavailable when no node takes clients, Unauthorized when the token was revoked, StoreUnavailable.
        """
        (last,) = await self._last.submit(((client_id, issued_s),))
        if isinstance(last, int):
            raise Unauthorized("the token was revoked; get a new one")
        open_nodes = [node for node in self._nodes.live() if not node.lease.draining and node.lease.weight > 0]
        if not open_nodes:
            raise Unavailable("no node takes clients now; try again", retry_after_s=5)
        wanted = last.decode() if last else ""
        for node in open_nodes:
            if node.node_id == wanted:
                return _place(node)
        self._forget_half()
        node = min(open_nodes, key=self._load)
        self._sent[node.node_id] = self._sent.get(node.node_id, 0.0) + 1.0
        return _place(node)

    async def close(self) -> None:
        await self._last.close()

    def _load(self, node: Node) -> tuple[float, str]:
        load = (node.lease.connections + self._sent.get(node.node_id, 0.0)) / node.lease.weight
        return load, node.node_id

    def _forget_half(self) -> None:
        live = self._nodes.live()
        if live is not self._live:
            self._live = live
            self._sent = {node_id: sent / 2 for node_id, sent in self._sent.items() if sent > 0.5}

    async def _read_last(self, asked: list[tuple[str, float | None]]) -> list[bytes | int | None]:
        return await self._store.split(asked, lambda item: item[0], self._read_some)

    async def _read_some(self, asked: Sequence[tuple[str, float | None]]) -> list[bytes | int | None]:
        names = [self._store.keys.last(client_id) for client_id, _ in asked]
        args = ["" if issued_s is None else issued_s for _, issued_s in asked]
        answer: list[bytes | int | None] = await self._store.run(_LAST, names, args)
        return answer


def _place(node: Node) -> tuple[str, str]:
    return node.node_id, node.lease.url or f"ws://{node.node_id}/websocket"
