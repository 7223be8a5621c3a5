"""
Publishing: the records of all callers, of all topics, in one exchange at a time.

While one exchange is under way the next gathers. A topic's records of one exchange are one script call, or several
of bounded size. A topic that is missing fails its own callers only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from shared.batching import Batcher
from shared.bus.port import Record
from shared.bus.streams.link import DEADLINE_S, Argument, Command, Exchanges, call
from shared.bus.streams.scripts import PUBLISH, marker_key
from shared.errors import BusUnavailable, TopicMissing

_MOST_RECORDS = 512
_MOST_WAITING = 50_000
CALL_BYTES = 4 * 1024 * 1024
EXCHANGE_BYTES = 16 * 1024 * 1024

Item = tuple[str, Record]


class Publisher:
    """Writes records to topics, in the order they were given."""

    __slots__ = ("_batches", "_link", "_namespace")

    def __init__(self, link: Exchanges, namespace: str) -> None:
        self._link = link
        self._namespace = namespace
        self._batches: Batcher[Item, bool] = Batcher(
            "bus publish", self._send, most=_MOST_RECORDS, most_waiting=_MOST_WAITING
        )

    async def publish(self, topic: str, records: Sequence[Record]) -> None:
        """Return when the server has them. Raises TopicMissing, BusUnavailable, Overloaded."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                stored = await self._batches.submit([(topic, record) for record in records])
        except TimeoutError:
            raise BusUnavailable(f"{topic}: publish was not answered") from None
        if not all(stored):
            raise TopicMissing(f"no topic {topic}")

    async def close(self) -> None:
        """Give up what is under way."""
        await self._batches.give_up(BusUnavailable("the bus is closed"))
        await self._link.close()

    async def _send(self, items: list[Item]) -> list[bool]:
        """For each item whether its topic exists."""
        missing: set[str] = set()
        for topics, commands in cut_exchanges(items, self._namespace):
            replies = await self._link.exchange(commands)
            missing.update(topic for topic, reply in zip(topics, replies, strict=True) if reply is None)
        return [topic not in missing for topic, _ in items]


def cut_exchanges(items: Sequence[Item], namespace: str) -> Iterator[tuple[list[str], list[Command]]]:
    """Script calls with the topic of each, cut into exchanges of bounded size."""
    topics: list[str] = []
    commands: list[Command] = []
    size = 0
    for topic, arguments, weight in cut_calls(items):
        if commands and size + weight > EXCHANGE_BYTES:
            yield topics, commands
            topics, commands, size = [], [], 0
        topics.append(topic)
        commands.append(call(PUBLISH, marker_key(namespace, topic), *arguments))
        size += weight
    yield topics, commands


def cut_calls(items: Sequence[Item]) -> Iterator[tuple[str, list[Argument], int]]:
    """Topic, arguments and bytes of each script call; a topic's records keep their order."""
    of_topic: dict[str, tuple[list[Argument], int]] = {}
    for topic, record in items:
        arguments, size = of_topic.get(topic) or ([], 0)
        if arguments and size + len(record.body) > CALL_BYTES:
            yield topic, arguments, size
            arguments, size = [], 0
        arguments += (record.queue, record.key.encode(), record.deliver_at_ms, record.body)
        of_topic[topic] = (arguments, size + len(record.body))
    for topic, (arguments, size) in of_topic.items():
        yield topic, arguments, size
