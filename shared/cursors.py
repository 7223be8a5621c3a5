"""
Cursors: for each client and each of its audiences the order up to which the client acknowledged.

They lie together in one hash a client, which so is also the list of its groups. A client's first registration begins
its cursor for everyone; joining a group begins one there. Nodes *move* cursors forward as acknowledgements come, in
batches; one that is moved too late costs messages that come once more, under the same messageId.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_MOVE = Script(_LUA / "cursors_move.lua")
_READ = Script(_LUA / "cursors_read.lua")
VERSION = b"#"


@dataclass(frozen=True, slots=True)
class Memberships:
    """A client's cursors by audience, and how often its memberships have changed."""

    version: int
    cursors: dict[str, int]


def read_memberships(answer: list[Any]) -> Memberships:
    """From the client's hash: field, value, ..."""
    version = 0
    cursors: dict[str, int] = {}
    for i in range(0, len(answer), 2):
        if answer[i] == VERSION:
            version = int(answer[i + 1])
        else:
            cursors[answer[i].decode()] = int(answer[i + 1])
    return Memberships(version, cursors)


class Cursors:
    """Cursors in Redis. Each call takes a batch; all raise StoreUnavailable."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, client_ids: Sequence[str]) -> list[Memberships]:
        """The audiences of each client."""

        async def read_some(some: Sequence[str]) -> list[Memberships]:
            names = [self._store.keys.audiences(client_id) for client_id in some]
            return [read_memberships(answer) for answer in await self._store.run(_READ, names, ())]

        return await self._store.split(client_ids, str, read_some)

    async def move(self, moves: Sequence[tuple[str, str, int]]) -> int:
        """(clientId, audience, order); how many have moved. None moves back."""

        async def move_some(some: Sequence[tuple[str, str, int]]) -> int:
            names = [self._store.keys.audiences(client_id) for client_id, _, _ in some]
            args = [word for _, audience, order in some for word in (audience, f"{order:016d}")]
            moved: int = await self._store.run(_MOVE, names, args)
            return moved

        return sum(await self._store.parts(moves, lambda move: move[0], move_some))
