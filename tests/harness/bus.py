"""Small words for tests of the bus: records of texts, reading and sharing with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shared.bus import Bus, Received, Record, SharedReader, TopicReader

DEADLINE_S = 60.0


def records_of(*bodies: str) -> list[Record]:
    return [Record(body.encode()) for body in bodies]


def bodies_of(records: Sequence[Received]) -> list[str]:
    return [record.body.decode() for record in records]


def numbered(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


async def read(reader: TopicReader, count: int) -> list[Received]:
    """The next `count` records or a few more."""
    got: list[Received] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(got) < count:
            got += await reader.fetch()
    return got


async def take(reader: SharedReader, count: int) -> list[Received]:
    """Exactly the next `count` records, not acknowledged."""
    got: list[Received] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(got) < count:
            got += await reader.fetch(count - len(got))
    return got


@asynccontextmanager
async def reading(bus: Bus, topic: str) -> AsyncIterator[TopicReader]:
    reader = await bus.open_reader(topic)
    try:
        yield reader
    finally:
        await reader.close()


@asynccontextmanager
async def sharing(bus: Bus, topic: str, *, invisible_s: float = 60.0) -> AsyncIterator[SharedReader]:
    reader = await bus.open_shared(topic, f"{topic}-group", invisible_s=invisible_s)
    try:
        yield reader
    finally:
        await reader.close()


def now_ms() -> int:
    return time.time_ns() // 1_000_000
