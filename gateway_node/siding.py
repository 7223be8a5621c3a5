"""
The siding: where lines of audiences wait for the fan-out, beside the way of all other lines of the topic.

To go through thousands of sessions takes a while, and what came for one client behind that is not held up by it. So the
order of a topic holds among audiences' lines, and among the others, but not between the two. Lines of one audience that
wait go together. The siding is bounded: a full one holds up the consumer, and with it the topic.

A record may be committed while lines of it are in the siding: what is stored lies in a timeline, and the cursors of its
readers have not moved; what is not stored was for sessions that end with this process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from shared.logs import get_log
from shared.record import AudienceLine

_MOST_LINES = 256
_MOST_BYTES = 1 << 20
_log = get_log("siding")

Send = Callable[[Sequence[AudienceLine]], Awaitable[None]]


class Siding:
    """Owned by the consumer, which runs `run` as a task. `send` is given lines of one audience."""

    __slots__ = ("_bytes", "_changed", "_lines", "_room", "_send", "_settled")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lines: deque[tuple[AudienceLine, float]] = deque()  # with when it came
        self._bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._settled = asyncio.Event()
        self._settled.set()

    async def put(self, lines: Sequence[AudienceLine]) -> None:
        """Behind those that wait, once there is room."""
        await self._room.wait()
        now = asyncio.get_running_loop().time()
        for line in lines:
            self._lines.append((line, now))
            self._bytes += len(line.template)
        if len(self._lines) >= _MOST_LINES or self._bytes >= _MOST_BYTES:
            self._room.clear()
        self._settled.clear()
        self._changed.set()

    @property
    def is_empty(self) -> bool:
        """Whether everything that came is with its sessions."""
        return self._settled.is_set()

    def oldest(self) -> float:
        """When the first of those that are not sent yet came (event loop clock, s); there is one."""
        return self._lines[0][1]

    async def settled(self) -> None:
        await self._settled.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._lines:
                lines = self._next()
                try:
                    await self._send(lines)
                except Exception:
                    _log.exception("fan_out_failed", lines=len(lines))
                self._drop(len(lines))
            self._settled.set()

    def _next(self) -> list[AudienceLine]:
        """Those in front that are of one audience; they stay until they are sent."""
        audience = self._lines[0][0].audience
        lines: list[AudienceLine] = []
        for line, _ in self._lines:
            if line.audience != audience:
                break
            lines.append(line)
        return lines

    def _drop(self, count: int) -> None:
        for _ in range(count):
            line, _came = self._lines.popleft()
            self._bytes -= len(line.template)
        if len(self._lines) < _MOST_LINES and self._bytes < _MOST_BYTES:
            self._room.set()
