"""
Natural batching: while one call is in flight the next batch gathers.

There is no timer. An idle system sends a batch of one at once; a busy one sends what came in meanwhile, so the
cost of a round trip is shared by more items the busier it gets. Order of submission is kept. The queue is
bounded: beyond `most_waiting` items `submit` raises Overloaded and takes nothing.

A caller that is cancelled while its items wait takes them back; once a call has them they are carried out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from shared.errors import Overloaded, Unavailable
from shared.metrics import BATCH_SIZE, BATCH_WAITING

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """
    Gathers items of many callers into one call.

    `call` takes a list of items and returns one result an item, in order; what it raises is raised to each
    caller of that batch. A call has at most `most` items; only a job that is larger is split over several calls.
    """

    __slots__ = (
        "_call",
        "_closed",
        "_given_up",
        "_jobs",
        "_most",
        "_most_waiting",
        "_name",
        "_runner",
        "_size",
        "_waiting",
        "_waiting_gauge",
    )

    def __init__(
        self,
        name: str,
        call: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        most: int = 512,
        most_waiting: int = 100_000,
    ) -> None:
        self._name = name
        self._call = call
        self._most = most
        self._most_waiting = most_waiting
        self._jobs: deque[tuple[Sequence[Item], asyncio.Future[list[Result]]]] = deque()
        self._waiting = 0
        self._runner: asyncio.Task[None] | None = None
        self._closed = False
        self._given_up: Exception = Unavailable(f"{name}: given up")
        self._size = BATCH_SIZE.labels(name)
        self._waiting_gauge = BATCH_WAITING.labels(name)

    @property
    def waiting(self) -> int:
        """Items that no call has taken yet."""
        return self._waiting

    def submit(self, items: Sequence[Item]) -> asyncio.Future[list[Result]]:
        """
        A future of one result an item. `items` must not change until it is done.

        Raises Overloaded when too many wait (one job is taken whatever its size), Unavailable after `close`.
        """
        future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        if not items:
            future.set_result([])
            return future
        if self._closed:
            raise Unavailable(f"{self._name}: closed")
        if self._waiting + len(items) > self._most_waiting and self._waiting:
            raise Overloaded(f"{self._name}: {self._waiting} waiting")
        self._jobs.append((items, future))
        self._waiting += len(items)
        if self._runner is None:
            # A context of its own: the first caller's log fields are not those of the whole batch.
            self._runner = asyncio.create_task(self._run(), name=f"batch {self._name}", context=Context())
            self._runner.add_done_callback(self._ended)
        return future

    async def close(self) -> None:
        """Take no more, and wait until what was submitted is done."""
        self._closed = True
        if self._runner is not None:
            await asyncio.wait((self._runner,))

    async def give_up(self, error: Exception) -> None:
        """Take no more, and raise `error` to all whose items are not done; a call under way is cancelled."""
        self._closed = True
        self._given_up = error
        self._fail(self._drain(), error)
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait((self._runner,))

    async def _run(self) -> None:
        while jobs := self._take():
            await self._send(jobs)
        self._runner = None

    def _ended(self, runner: asyncio.Task[None]) -> None:
        """When the runner is cancelled, be it before its first step, nobody is left waiting."""
        if self._runner is runner:
            self._runner = None
            self._fail(self._drain(), self._given_up)

    def _take(self) -> list[tuple[Sequence[Item], asyncio.Future[list[Result]]]]:
        """Whole jobs that somebody still waits for, up to the batch's size (at least one job); none at the end."""
        jobs: list[tuple[Sequence[Item], asyncio.Future[list[Result]]]] = []
        size = 0
        while self._jobs:
            items, future = self._jobs[0]
            if jobs and size + len(items) > self._most:
                break
            self._waiting -= len(items)
            if not future.done():
                size += len(items)
                jobs.append((items, future))
            self._jobs.popleft()
        if jobs:
            self._size.observe(size)
        self._waiting_gauge.set(self._waiting)
        return jobs

    def _drain(self) -> list[tuple[Sequence[Item], asyncio.Future[list[Result]]]]:
        jobs = list(self._jobs)
        self._jobs.clear()
        self._waiting = 0
        self._waiting_gauge.set(0)
        return jobs

    async def _send(self, jobs: list[tuple[Sequence[Item], asyncio.Future[list[Result]]]]) -> None:
        items = list(jobs[0][0]) if len(jobs) == 1 else [item for job in jobs for item in job[0]]
        try:
            results: list[Result] = []
            for start in range(0, len(items), self._most):
                results += await self._call(items[start : start + self._most])
            if len(results) != len(items):
                raise RuntimeError(f"{self._name}: {len(results)} results for {len(items)} items")
        except asyncio.CancelledError:
            self._fail(jobs, self._given_up)
            raise
        except Exception as error:
            self._fail(jobs, error)
            return
        start = 0
        for part, future in jobs:
            if not future.done():
                future.set_result(results[start : start + len(part)])
            start += len(part)

    def _fail(self, jobs: Sequence[tuple[Sequence[Item], asyncio.Future[list[Result]]]], error: Exception) -> None:
        for _, future in jobs:
            if not future.done():
                future.set_exception(error)
