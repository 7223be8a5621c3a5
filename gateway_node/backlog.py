"""
A backlog: work for Redis that must be done in the end, and may wait while Redis is away.

Items gather while one call is in flight. A call that finds Redis away is made again, with jittered backoff, until it
succeeds. The backlog is bounded: beyond `most_waiting` the oldest items are let go and counted, so `call` must be such
that losing an item costs work and not messages (a retirement that is lost brings a message once more).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gateway_node.metrics import BACKLOG_LET_GO
from shared.backoff import Backoff
from shared.errors import Unavailable
from shared.logs import get_log
from shared.metrics import BATCH_SIZE

Item = TypeVar("Item")
_log = get_log("backlog")


class Backlog(Generic[Item]):
    """See the module. `call` may be given the same items again."""

    __slots__ = (
        "_added",
        "_call",
        "_done",
        "_items",
        "_most",
        "_most_waiting",
        "_name",
        "_runner",
        "_size",
        "_waiters",
    )

    def __init__(
        self,
        name: str,
        call: Callable[[list[Item]], Awaitable[object]],
        *,
        most: int = 512,
        most_waiting: int = 1_000_000,
    ) -> None:
        self._name = name
        self._call = call
        self._most = most
        self._most_waiting = most_waiting
        self._items: deque[Item] = deque()
        self._added = 0
        self._done = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._size = BATCH_SIZE.labels(name)

    def __len__(self) -> int:
        return self._added - self._done

    def add(self, item: Item) -> None:
        if len(self._items) >= self._most_waiting:
            self._items.popleft()
            self._done += 1
            BACKLOG_LET_GO.labels(self._name).inc()
        self._items.append(item)
        self._added += 1
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name=f"backlog {self._name}")

    async def settled(self) -> None:
        """Return when all that was added until now is done."""
        if self._done == self._added:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._added, future))
        await future

    async def close(self, within_s: float) -> None:
        """Finish what was added, or give it up after `within_s`."""
        runner = self._runner
        if runner is None:
            return
        await asyncio.wait((runner,), timeout=within_s)
        if not runner.done():
            runner.cancel()
            await asyncio.wait((runner,))

    async def _run(self) -> None:
        backoff = Backoff()
        try:
            while self._items:
                batch = [self._items.popleft() for _ in range(min(self._most, len(self._items)))]
                self._size.observe(len(batch))
                while not await self._tried(batch):  # noqa: ASYNC110 - it waits for Redis, which tells nobody
                    await asyncio.sleep(backoff.next_s())
                backoff.reset()
                self._done += len(batch)
                self._wake()
        finally:
            self._runner = None

    async def _tried(self, batch: list[Item]) -> bool:
        try:
            await self._call(batch)
        except Unavailable:
            return False
        except Exception:
            _log.exception("backlog_call_failed", backlog=self._name, items=len(batch))
        return True

    def _wake(self) -> None:
        while self._waiters and self._waiters[0][0] <= self._done:
            future = self._waiters.popleft()[1]
            if not future.done():
                future.set_result(None)
