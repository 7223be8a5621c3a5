"""Daily quotas of callers, counted in Redis over all dispatchers, in batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dispatcher.callers import Caller
from dispatcher.metrics import REFUSED
from shared.batching import Batcher
from shared.errors import Overloaded
from shared.store import Script, Store

_QUOTA = Script(Path(__file__).parent / "lua" / "quota.lua")
_LIFE_S = 2 * 86_400


class Quotas:
    """Counts the sends of callers with a quota. A send counts when it is accepted for sending, whatever follows."""

    __slots__ = ("_batch", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batch: Batcher[Caller, int] = Batcher("quota", self._count)

    async def take(self, caller: Caller, count: int) -> int:
        """Count sends; how many of `count` had room. Raises StoreUnavailable."""
        room = sum(await self._batch.submit((caller,) * count))
        if room < count:
            REFUSED.labels("quota").inc(count - room)
        return room

    async def close(self) -> None:
        await self._batch.close()

    async def _count(self, callers: list[Caller]) -> list[int]:
        day = time.strftime("%Y%m%d", time.gmtime())
        quota = self._store.keys.quota

        async def count_some(some: Sequence[Caller]) -> list[int]:
            names = [quota(caller.id, day) for caller in some]
            room: list[int] = await self._store.run(_QUOTA, names, (_LIFE_S, *(caller.quota for caller in some)))
            return room

        return await self._store.split(callers, lambda caller: f"{caller.id}/{day}", count_some)


def used_up(caller: Caller) -> Overloaded:
    """What a send over the quota is answered, until midnight UTC."""
    wait_s = 86_400 - int(time.time()) % 86_400
    return Overloaded(f"{caller.name}: {caller.quota} sends a day are used up", retry_after_s=wait_s)
