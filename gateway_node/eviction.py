"""
Eviction: sessions that end because somebody else says so, on this node or another.

A session that PUSH_SESSION_POLICY replaced is out of its client's route already. One on this node is closed at once,
one elsewhere by a `close` line on its node's topic. Should that line never come, the sweep of the other node finds the
session without a route and ends it (reconcile.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from gateway_node.backlog import Backlog
from gateway_node.hub import Hub
from gateway_node.session import Session
from shared.bus import Bus, Record
from shared.errors import CloseCode, TopicMissing
from shared.ids import node_of_session, node_topic
from shared.record import close_line, decode_close

_MOST_WAITING = 100_000


class Eviction:
    """Ends sessions; owned by app.py."""

    __slots__ = ("_bus", "_elsewhere", "_hub", "_namespace")

    def __init__(self, hub: Hub, bus: Bus, *, namespace: str) -> None:
        self._hub = hub
        self._bus = bus
        self._namespace = namespace
        self._elsewhere: Backlog[str] = Backlog("evict", self._tell, most=64, most_waiting=_MOST_WAITING)

    def replaced(self, session_ids: Iterable[str]) -> None:
        """End these, wherever they are, with 4003."""
        for session_id in session_ids:
            session = self._hub.by_id.get(session_id.encode())
            if session is None:
                self._elsewhere.add(session_id)
            else:
                self.end_replaced(session)

    def end_replaced(self, session: Session) -> None:
        session.connection.close(CloseCode.REPLACED, "replaced by a newer session")

    def close_line(self, envelope: bytes) -> None:
        """A line told to close a session. Raises ValueError when it cannot be read."""
        close = decode_close(envelope)
        session = self._hub.by_id.get(close.session_id.encode())
        if session is not None:
            session.connection.close(close.code, close.reason)

    async def close(self, within_s: float) -> None:
        await self._elsewhere.close(within_s)

    async def _tell(self, session_ids: list[str]) -> None:
        for session_id in session_ids:
            topic = node_topic(self._namespace, node_of_session(session_id))
            line = close_line(session_id, CloseCode.REPLACED, "replaced by a newer session")
            try:
                queue = crc32(session_id.encode()) % await self._bus.queue_count(topic)
                await self._bus.publish(topic, [Record(line, queue=queue)])
            except TopicMissing:
                continue  # its node is gone, and so is the session
