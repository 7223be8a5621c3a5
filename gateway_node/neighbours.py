"""
Neighbours: lines to sessions on other nodes, put on those nodes' topics.

The topic of a node follows from the sessionId alone. Lines wait while the bus is away, bounded; one whose node has
gone is let go, since its session went with it. A line may come twice, or not at all: what it asks for has to be such
that a second time does nothing and that a sweep finds what was lost.
"""

from __future__ import annotations

from zlib import crc32

from gateway_node.backlog import Backlog
from shared.bus import Bus, Record
from shared.errors import TopicMissing
from shared.ids import client_of_session, node_of_session, node_topic
from shared.record import join_lines

_MOST_WAITING = 100_000


class Neighbours:
    """Owned by app.py."""

    __slots__ = ("_bus", "_lines", "_namespace")

    def __init__(self, bus: Bus, *, namespace: str) -> None:
        self._bus = bus
        self._namespace = namespace
        self._lines: Backlog[tuple[str, bytes]] = Backlog(
            "neighbours", self._tell, most=256, most_waiting=_MOST_WAITING
        )

    def tell(self, session_id: str, line: bytes) -> None:
        """Put the line on the topic of the session's node."""
        self._lines.add((session_id, line))

    async def close(self, within_s: float) -> None:
        await self._lines.close(within_s)

    async def _tell(self, lines: list[tuple[str, bytes]]) -> None:
        """One record a queue of each topic concerned."""
        topics: dict[str, list[tuple[str, bytes]]] = {}
        for session_id, line in lines:
            topics.setdefault(node_topic(self._namespace, node_of_session(session_id)), []).append((session_id, line))
        for topic, of_topic in topics.items():
            try:
                await self._publish(topic, of_topic)
            except TopicMissing:
                continue  # its node is gone, and so are the sessions

    async def _publish(self, topic: str, lines: list[tuple[str, bytes]]) -> None:
        queues = await self._bus.queue_count(topic)
        bodies: dict[int, list[bytes]] = {}
        for session_id, line in lines:
            queue = crc32(client_of_session(session_id).encode()) % queues
            bodies.setdefault(queue, []).append(line)
        await self._bus.publish(topic, [Record(join_lines(body), queue=queue) for queue, body in bodies.items()])
