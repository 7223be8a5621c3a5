"""A consumer of `push-presence` for tests: what it was told, and the wait for what it is to be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared.bus import TopicReader, open_bus
from shared.presence import PresenceEvent, decode_events, presence_topic

DEADLINE_S = 40.0


class Watcher:
    """Reads the topic from its beginning; `events` as they came."""

    def __init__(self, reader: TopicReader) -> None:
        self.events: list[PresenceEvent] = []
        self._reader = reader
        self._more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    def of(self, client_id: str) -> list[tuple[str, str, int]]:
        """(event, sessionId, sessions) in the order of the stamps, each once."""
        stamped = {event.stamp: event for event in self.events if event.client_id == client_id}
        ordered = [stamped[stamp] for stamp in sorted(stamped)]
        return [(event.event, event.session_id, event.sessions) for event in ordered]

    def online(self) -> dict[str, int]:
        """Sessions of each client by the event with its highest stamp; of those that have any."""
        last: dict[str, PresenceEvent] = {}
        for event in self.events:
            known = last.get(event.client_id)
            if known is None or known.stamp < event.stamp:
                last[event.client_id] = event
        return {client_id: event.sessions for client_id, event in last.items() if event.sessions}

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S), self._more:
            await self._more.wait_for(holds)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        await self._reader.close()

    async def _read(self) -> None:
        while True:
            for record in await self._reader.fetch():
                self.events += decode_events(record.body)
            async with self._more:
                self._more.notify_all()


@asynccontextmanager
async def watching(bus_url: str, namespace: str) -> AsyncIterator[Watcher]:
    """With a bus of its own, as a business system has."""
    bus = open_bus(bus_url, namespace=namespace)
    watcher = Watcher(await bus.open_reader(presence_topic(namespace)))
    try:
        yield watcher
    finally:
        await watcher.close()
        await bus.close()
