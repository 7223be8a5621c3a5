"""
Turns: what a session asks for is begun in its order. Pure.

Messages overlap: they keep their order by themselves (lookups.py). What changes a group is alone: it begins when the
messages before it have been looked up, and what comes after it waits until it is done, so that a client may join a
group and write to it in one breath.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from shared.errors import Overloaded

_MOST_WAITING = 256


@dataclass(slots=True)
class _Lane:
    running: int = 0
    alone: bool = False
    waiting: deque[tuple[bool, Callable[[], bool]]] = field(default_factory=deque)

    def is_free(self, alone: bool) -> bool:
        return not self.alone and not (alone and self.running)


class Turns:
    """The turns of all sessions, by sessionId; nothing is kept for one that has none under way."""

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes: dict[bytes, _Lane] = {}

    def is_idle(self, session_id: bytes) -> bool:
        return session_id not in self._lanes

    def take(self, session_id: bytes, start: Callable[[], bool], *, alone: bool = False) -> None:
        """
        Call `start` when it is its turn, now or later; it tells whether it is under way, to be ended by `done`.

        Raises Overloaded when too much of the session waits.
        """
        lane = self._lanes.setdefault(session_id, _Lane())
        if len(lane.waiting) >= _MOST_WAITING:
            raise Overloaded(f"{_MOST_WAITING} frames of this session are waiting")
        lane.waiting.append((alone, start))
        self._go_on(session_id, lane)

    def done(self, session_id: bytes) -> None:
        """What was under way has come to its end."""
        lane = self._lanes[session_id]
        lane.running -= 1
        lane.alone = False
        self._go_on(session_id, lane)

    def _go_on(self, session_id: bytes, lane: _Lane) -> None:
        while lane.waiting and lane.is_free(lane.waiting[0][0]):
            alone, start = lane.waiting.popleft()
            if start():
                lane.running += 1
                lane.alone = alone
        if not lane.running and not lane.waiting:
            self._lanes.pop(session_id, None)
