"""
Cursor moves: what clients acknowledged of their audiences, to Redis in batches.

A cursor that may have moved is marked. One pass works out where the marked ones stand and tells Redis; what comes
meanwhile is for the next one. Between two passes there is forty times as long as one takes, from a tenth of a second to
two: moving cursors is a small part of what a message to everyone costs, and of what Redis does. A call that hung (a
link was cut off, and it was tried again for seconds) kept nobody busy: of each no more than a tenth of a second counts.
Where a session ends is told at once: its client may come back in a moment. What a node that is killed had not told
costs messages that come once more, under the same messageId.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from time import monotonic

from gateway_node.audience import Audience, Cursor
from gateway_node.backlog import Backlog
from gateway_node.metrics import CURSORS_MOVED
from shared.backoff import Backoff
from shared.cursors import Cursors
from shared.errors import Unavailable
from shared.logs import get_log

_LEAST_PAUSE_S = 0.1
_MOST_PAUSE_S = 2.0
_PAUSE_SHARE = 40
_MOST_BUSY_S = 0.1
_BATCH = 256
_TURN = 250
_log = get_log("cursors")


class CursorMoves:
    """Owned by app.py, which runs `run` as a task."""

    __slots__ = ("_audiences", "_cursors", "_ends", "_marked", "_pending", "_settled", "_work")

    def __init__(self, cursors: Cursors) -> None:
        self._cursors = cursors
        self._marked: set[Cursor] = set()
        self._audiences: set[Audience] = set()
        self._ends: Backlog[tuple[str, str, int]] = Backlog("cursors", self._move)
        self._pending: dict[tuple[str, str], int] = {}
        self._work = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def mark(self, cursor: Cursor) -> None:
        """It may have moved."""
        self._marked.add(cursor)
        self._wake()

    def mark_plain(self, audience: Audience) -> None:
        """Those of its live sessions that do not acknowledge may have moved."""
        self._audiences.add(audience)
        self._wake()

    def last(self, cursor: Cursor) -> None:
        """Its session ends: where it stands now is final."""
        self._marked.discard(cursor)
        key = (cursor.session.client_id, cursor.audience.name)
        if (self._note(cursor) and cursor.lasting) or key in self._pending:
            self._ends.add((*key, self._pending.pop(key)))

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff()
        while True:
            if not self._marked and not self._audiences and not self._pending:
                self._settled.set()
                self._work.clear()
            await self._work.wait()
            try:
                busy_s = await self._pass()
                backoff.reset()
                await asyncio.sleep(min(_MOST_PAUSE_S, max(_LEAST_PAUSE_S, _PAUSE_SHARE * busy_s)))
            except Unavailable:
                await asyncio.sleep(backoff.next_s())
            except Exception:
                _log.exception("cursors_not_moved")
                await asyncio.sleep(backoff.next_s())

    async def finish(self) -> None:
        """Return when all that was marked until now is told; sessions that go on may mark more."""
        await asyncio.gather(self._settled.wait(), self._ends.settled())

    async def close(self, within_s: float) -> None:
        """Tell what is left, for as long as that takes no longer than `within_s`."""
        await self._ends.close(within_s)
        try:
            async with asyncio.timeout(within_s):
                await self._pass()
        except (TimeoutError, Unavailable):
            _log.warning("cursors_not_moved", cursors=len(self._pending))

    def _wake(self) -> None:
        self._settled.clear()
        self._work.set()

    async def _pass(self) -> float:
        """For how many seconds it kept somebody busy."""
        began = monotonic()
        await self._collect()
        busy_s = monotonic() - began
        while self._pending:
            batch = list(islice(self._pending.items(), _BATCH))
            began = monotonic()
            await self._move([(client, name, order) for (client, name), order in batch])
            busy_s += min(_MOST_BUSY_S, monotonic() - began)
            for key, order in batch:
                if self._pending.get(key) == order:
                    del self._pending[key]
        return busy_s

    async def _move(self, moves: list[tuple[str, str, int]]) -> None:
        CURSORS_MOVED.inc(await self._cursors.move(moves))

    async def _collect(self) -> None:
        """From what is marked to what is pending; what is not known to its end yet stays marked."""
        marked, self._marked = self._marked, set()
        audiences, self._audiences = self._audiences, set()
        for audience in audiences:
            marked.update(audience.plain.values())
        for place, cursor in enumerate(marked):
            if not place % _TURN:
                await asyncio.sleep(0)
            moved = self._note(cursor)
            if _is_being_sent_to(cursor) or (not moved and _waits_for_kernel(cursor)):
                self._marked.add(cursor)

    def _note(self, cursor: Cursor) -> bool:
        """Whether it has moved. One that was taken away moves no more."""
        if cursor.session not in cursor.audience.members:
            return False
        order = cursor.acknowledged()
        if order <= cursor.saved:
            return False
        cursor.saved = order
        if cursor.lasting:  # another session of the client may be further
            key = (cursor.session.client_id, cursor.audience.name)
            self._pending[key] = max(order, self._pending.get(key, 0))
        return True


def _is_being_sent_to(cursor: Cursor) -> bool:
    """Others still get what it may have acknowledged already; until they have, it stands before that."""
    return cursor.live and cursor.audience.done < cursor.audience.head


def _waits_for_kernel(cursor: Cursor) -> bool:
    session = cursor.session
    return not session.ack and session.connection.outbox_bytes > 0 and session in cursor.audience.members
