"""
Delivery times: moves records whose time has come into their queues.

Whoever reads a topic drives its delays, so a topic that nobody reads costs nothing. One task a bus asks for all
watched topics in one exchange, when the next known record is due and at least each tenth of a second, since any
publisher may add an earlier one. The server's clock decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from shared.backoff import Backoff
from shared.bus.streams.link import Exchanges, call
from shared.bus.streams.scripts import DUE
from shared.errors import BusError, BusUnavailable
from shared.logs import OncePerSecond, get_log

_EVERY_S = 0.1
_MOST_AT_ONCE = 64

_log = get_log("bus")


class Delays:
    """The task that moves due records of the topics that are watched."""

    __slots__ = ("_link", "_noisy", "_task", "_watched")

    def __init__(self, link: Exchanges) -> None:
        self._link = link
        self._watched: Counter[bytes] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._noisy = OncePerSecond()

    def watch(self, marker: bytes) -> None:
        """Move the due records of this topic until `unwatch` was called as often."""
        self._watched[marker] += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="bus delays")

    def unwatch(self, marker: bytes) -> None:
        self._watched[marker] -= 1
        if self._watched[marker] <= 0:
            del self._watched[marker]

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await asyncio.sleep(await self._move())
            except (BusUnavailable, BusError) as error:
                if self._noisy.due():
                    _log.warning("delayed records not moved", reason=str(error))
                await asyncio.sleep(backoff.next_s())
            else:
                backoff.reset()

    async def _move(self) -> float:
        """Seconds until the next look."""
        if not self._watched:
            return _EVERY_S
        commands = [call(DUE, marker, _MOST_AT_ONCE) for marker in self._watched]
        soonest = [wait_ms / 1000 for wait_ms in await self._link.exchange(commands) if wait_ms >= 0]
        return min(_EVERY_S, *soonest) if soonest else _EVERY_S
