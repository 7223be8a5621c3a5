"""
The clients that are known: all that ever registered and are remembered still, online or not.

They lie in a set for each partition that registering adds to. A client whose audiences have expired (it is in no group
and has been away for 60 days) and that has no session is taken out when a page finds it.
"""

from __future__ import annotations

from pathlib import Path

from shared.keys import PARTITIONS
from shared.paging import PAGE, read_cursor, read_page
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_PAGE = Script(_LUA / "clients_page.lua", PAGE)
_COUNT = Script(_LUA / "clients_count.lua")


class KnownClients:
    """Those of the namespace. All raise StoreUnavailable."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    async def count(self) -> int:
        """How many there are, with those that are to be forgotten."""

        async def count_some(some: list[int]) -> int:
            count: int = await self._store.run(_COUNT, [self._store.keys.clients(partition) for partition in some], ())
            return count

        parts = [[partition] for partition in range(PARTITIONS)] if self._store.clustered else [[*range(PARTITIONS)]]
        return sum([await count_some(part) for part in parts])

    async def page(self, partition: int, cursor: str, limit: int) -> tuple[list[str], str]:
        """
        A page of about `limit` clients of a partition, and the cursor of the next: "" at first, and after the last.

        Whoever is known all the while is on a page; one may be on two.
        """
        scan, behind = read_cursor(cursor)
        return read_page(await self._store.run(_PAGE, (self._store.keys.clients(partition),), (scan, limit, behind)))
