"""
Upstream: clients' business frames onto the `push-upstream` topic, in batches.

A frame is acknowledged (msgType 2) when the bus holds it. Frames of one client go to one queue, in their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from zlib import crc32

from shared.batching import Batcher
from shared.bus import Bus, Record
from shared.upstream import UpstreamSend, encode_upstream


class Upstream:
    """Publishes what clients send."""

    __slots__ = ("_batcher", "_bus", "_topic")

    def __init__(self, bus: Bus, topic: str) -> None:
        self._bus = bus
        self._topic = topic
        self._batcher: Batcher[tuple[str, UpstreamSend], None] = Batcher(
            "upstream", self._publish, most=256, most_waiting=10_000
        )

    def submit(self, client_id: str, send: UpstreamSend) -> asyncio.Future[list[None]]:
        """Done when the bus holds it. Raises Overloaded; the future carries BusUnavailable and other BusErrors."""
        return self._batcher.submit(((client_id, send),))

    async def close(self) -> None:
        await self._batcher.close()

    async def _publish(self, sends: list[tuple[str, UpstreamSend]]) -> Sequence[None]:
        queues = await self._bus.queue_count(self._topic)
        records = [
            Record(encode_upstream(send), key=send.request_id, queue=crc32(client_id.encode()) % queues)
            for client_id, send in sends
        ]
        await self._bus.publish(self._topic, records)
        return [None] * len(sends)
