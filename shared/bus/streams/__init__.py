"""
The bus on Redis streams (Redis 7 or Valkey): the embedded default, and for small sites that run no RocketMQ.

It keeps the promises of the port as far as the server keeps what it answered: with `appendonly yes` and
`appendfsync everysec` a crash of the machine may cost the last second. A topic holds what was not dealt with (`reader`,
`shared`); only one that was made with `most_records` is trimmed by length. Keys and scripts are described in `scripts`.

Links: one for publishing, one for short calls, one for each open reader, whose blocking reads hold up nobody else.
A link is a connection, on a cluster one to each master that it has to do with. All are made when first needed.

Through Sentinels and on a cluster a replica that takes over may lack the last moments of what its master answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from shared.bus.port import Record
from shared.bus.streams.delays import Delays
from shared.bus.streams.link import Command, call, open_link
from shared.bus.streams.publisher import Publisher
from shared.bus.streams.reader import StreamsTopicReader
from shared.bus.streams.scripts import DROP, JOIN, marker_key
from shared.bus.streams.shared import StreamsSharedReader
from shared.bus.streams.site import Site
from shared.errors import RecordTooLarge, TopicMissing

__all__ = ["StreamsBus"]

MAX_RECORD_BYTES = 4 * 1024 * 1024
"""The same limit as a RocketMQ broker's default, so that a site can move between the two."""

_COUNT_KEPT_S = 10.0
_MOST_COUNTS = 10_000


class StreamsBus:
    """The `Bus` of Redis streams."""

    __slots__ = ("_counts", "_delays", "_link", "_namespace", "_publisher", "_readers", "_site")

    def __init__(self, site: Site, namespace: str) -> None:
        self._site = site
        self._namespace = namespace
        self._link = open_link(site)
        self._publisher = Publisher(open_link(site), namespace)
        self._delays = Delays(self._link)
        self._readers: set[StreamsTopicReader | StreamsSharedReader] = set()
        self._counts: dict[str, tuple[int, float]] = {}

    @classmethod
    def from_url(cls, url: str, *, namespace: str) -> StreamsBus:
        """
        A URL as shared.redis_url has it; `namespace` begins every key.

        Nothing is connected yet. Raises ValueError.
        """
        return cls(Site(url), namespace)

    @property
    def max_record_bytes(self) -> int:
        return MAX_RECORD_BYTES

    @property
    def connected(self) -> bool:
        return self._site.connected

    async def ensure_topic(self, topic: str, *, queues: int = 1, most_records: int = 0) -> None:
        """See Bus. A topic that is there keeps its number of queues; it does not change while it lives."""
        marker = self._marker(topic)
        commands: list[Command] = [(b"SET", marker, queues, b"NX")]
        if most_records:
            commands.append((b"SET", marker + b":most", most_records))
        await self._link.exchange(commands)

    async def drop_topic(self, topic: str) -> None:
        self._counts.pop(topic, None)
        await self._link.exchange([call(DROP, self._marker(topic))])

    async def queue_count(self, topic: str) -> int:
        known = self._counts.get(topic)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        reply = (await self._link.exchange([(b"GET", self._marker(topic))]))[0]
        if reply is None:
            self._counts.pop(topic, None)
            raise TopicMissing(f"no topic {topic}")
        if len(self._counts) >= _MOST_COUNTS:
            self._counts.clear()
        self._counts[topic] = (int(reply), time.monotonic() + _COUNT_KEPT_S)
        return int(reply)

    async def publish(self, topic: str, records: Sequence[Record]) -> None:
        """See Bus. Raises Overloaded too, when too many records wait; none was taken then."""
        for record in records:
            if len(record.body) > MAX_RECORD_BYTES:
                raise RecordTooLarge(f"{len(record.body)} bytes, at most {MAX_RECORD_BYTES}")
        try:
            await self._publisher.publish(topic, records)
        except TopicMissing:
            self._counts.pop(topic, None)
            raise

    async def open_reader(self, topic: str) -> StreamsTopicReader:
        marker = self._marker(topic)
        count, flat = await self._link.exchange([(b"GET", marker), (b"HGETALL", marker + b":position")])
        if count is None:
            raise TopicMissing(f"no topic {topic}")
        written = dict(zip(map(int, flat[::2]), flat[1::2], strict=True))
        reader = StreamsTopicReader(
            topic,
            marker,
            [written.get(queue, b"0-0") for queue in range(int(count))],
            own_link=open_link(self._site),
            shared_link=self._link,
            on_close=self._forget,
        )
        self._remember(reader)
        return reader

    async def open_shared(self, topic: str, group: str, *, invisible_s: float = 60.0) -> StreamsSharedReader:
        marker = self._marker(topic)
        queues = (await self._link.exchange([call(JOIN, marker, group.encode())]))[0]
        if queues is None:
            raise TopicMissing(f"no topic {topic}")
        reader = StreamsSharedReader(
            topic,
            marker,
            queues,
            group,
            invisible_s=invisible_s,
            own_link=open_link(self._site),
            shared_link=self._link,
            on_close=self._forget,
        )
        self._remember(reader)
        return reader

    async def close(self) -> None:
        await self._publisher.close()
        await self._delays.close()
        await asyncio.gather(*(reader.close() for reader in self._readers))
        await self._link.close()
        await self._site.close()

    def _marker(self, topic: str) -> bytes:
        return marker_key(self._namespace, topic)

    def _remember(self, reader: StreamsTopicReader | StreamsSharedReader) -> None:
        self._readers.add(reader)
        self._delays.watch(self._marker(reader.topic))

    def _forget(self, reader: StreamsTopicReader | StreamsSharedReader) -> None:
        self._readers.discard(reader)
        self._delays.unwatch(self._marker(reader.topic))
