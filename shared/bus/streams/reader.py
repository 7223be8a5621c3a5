"""
Reads a topic alone: XREAD over all its queues, on a connection of its own.

The read position lives in memory and is written by `commit`, about a second later and when the reader is closed;
what lies behind the written position is deleted from the streams in the same step. So a topic holds what its
reader has not dealt with, plus about a second.

The blocking read is a task that outlives a cancelled `fetch`: the next one takes its result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from shared.backoff import Backoff
from shared.bus.port import Received
from shared.bus.streams.entries import decode_entries, note_foreign
from shared.bus.streams.link import Argument, Exchanges, call
from shared.bus.streams.scripts import COMMIT, stream_keys
from shared.errors import BusError, BusUnavailable, PushfleetError
from shared.logs import OncePerSecond, get_log

_BLOCK_S = 5.0
_COMMIT_EVERY_S = 1.0
_MOST_RECORDS = 512
_FETCH_BYTES = 4 * 1024 * 1024

_log = get_log("bus")

Positions = dict[int, bytes]


class StreamsTopicReader:
    """The `TopicReader` of Redis streams. Made by `StreamsBus.open_reader`."""

    __slots__ = (
        "_closed",
        "_committed",
        "_count",
        "_keys",
        "_link",
        "_marker",
        "_noisy",
        "_on_close",
        "_positions",
        "_reading",
        "_shared_link",
        "_topic",
        "_writer",
        "_written",
    )

    def __init__(
        self,
        topic: str,
        marker: bytes,
        positions: list[bytes],
        *,
        own_link: Exchanges,
        shared_link: Exchanges,
        on_close: Callable[[StreamsTopicReader], None],
    ) -> None:
        """`positions` are the ids to go on behind, one a queue; `own_link` is used by nobody else."""
        self._topic = topic
        self._marker = marker
        self._keys = {key: queue for queue, key in enumerate(stream_keys(marker, len(positions)))}
        self._positions: Positions = dict(enumerate(positions))
        self._committed = dict(self._positions)
        self._written = dict(self._positions)
        self._count = _MOST_RECORDS
        self._link = own_link
        self._shared_link = shared_link
        self._on_close = on_close
        self._noisy = OncePerSecond()
        self._reading: asyncio.Task[tuple[list[Received], Positions]] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def topic(self) -> str:
        return self._topic

    async def fetch(self) -> list[Received]:
        """See TopicReader. Raises BusUnavailable when the reader is closed."""
        if self._closed:
            raise BusUnavailable(f"{self._topic}: the reader is closed")
        reading = self._reading
        if reading is None:
            reading = self._reading = asyncio.create_task(self._read(), name=f"read {self._topic}")
        await asyncio.wait((reading,))
        if reading.cancelled():
            raise BusUnavailable(f"{self._topic}: the reader is closed")
        self._reading = None
        records, moved = reading.result()
        self._positions.update(moved)
        return records

    def commit(self) -> None:
        """See TopicReader."""
        self._committed = dict(self._positions)
        if self._writer is None and self._committed != self._written and not self._closed:
            self._writer = asyncio.create_task(self._write_later(), name=f"commit {self._topic}")

    async def close(self) -> None:
        """See TopicReader. The last commit is given up, with a log line, when the bus does not take it."""
        if self._closed:
            return
        self._closed = True
        tasks = [task for task in (self._reading, self._writer) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        try:
            await self._write()
        except PushfleetError as error:
            _log.warning("last commit not written", topic=self._topic, reason=str(error))
        finally:
            await self._link.close()
            self._on_close(self)

    async def _read(self) -> tuple[list[Received], Positions]:
        moved: Positions = {}
        backoff = Backoff()
        while True:
            try:
                reply = await self._link.wait(self._command(moved), wait_s=_BLOCK_S)
            except (BusUnavailable, BusError) as error:
                if self._noisy.due():
                    _log.warning("read failed", topic=self._topic, reason=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            records: list[Received] = []
            for key, entries in reply or ():
                queue = self._keys[key]
                found, foreign = decode_entries(queue, entries)
                if foreign:
                    note_foreign(self._topic, foreign)
                records += found
                moved[queue] = entries[-1][0]
            if records:
                self._fit_count(records)
                return records, moved

    def _command(self, moved: Positions) -> tuple[Argument, ...]:
        ids = [moved.get(queue) or position for queue, position in self._positions.items()]
        return (
            *(b"XREAD", b"COUNT", self._count, b"BLOCK", int(_BLOCK_S * 1000), b"STREAMS"),
            *self._keys,
            *ids,
        )

    def _fit_count(self, records: list[Received]) -> None:
        """Ask for about as many records as fit into one fetch, going by the size of the last ones."""
        mean = sum(len(record.body) for record in records) // len(records) + 1
        self._count = max(1, min(_MOST_RECORDS, _FETCH_BYTES // mean))

    async def _write_later(self) -> None:
        while self._committed != self._written:
            await asyncio.sleep(_COMMIT_EVERY_S)
            with suppress(PushfleetError):
                await self._write()
        self._writer = None

    async def _write(self) -> None:
        committed = self._committed
        moved: list[Argument] = []
        for queue, entry_id in committed.items():
            if entry_id != self._written[queue]:
                moved += (queue, entry_id)
        if moved:
            await self._shared_link.exchange([call(COMMIT, self._marker, *moved)])
            self._written = committed
