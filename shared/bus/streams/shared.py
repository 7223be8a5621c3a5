"""
Shares a topic with others: a consumer group on each queue, XREADGROUP on a connection of its own.

What was given to a member and not acknowledged for `invisible_s` is claimed by whichever member looks next
(XAUTOCLAIM, at least once a second). Acknowledged records are deleted. A member that is closed makes what it holds
claimable at once; one that crashed leaves its name, which the others remove after ten minutes.

The blocking read is a task that outlives a cancelled `fetch`: what it brings waits for the next one, and is left
to be claimed when it waited too long.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from shared.backoff import Backoff
from shared.batching import Batcher
from shared.bus.port import Received
from shared.bus.streams.entries import Place, decode_entries, note_foreign
from shared.bus.streams.link import DEADLINE_S, Argument, Command, Exchanges, call
from shared.bus.streams.scripts import ACK, JOIN, LEAVE, SWEEP, stream_keys
from shared.errors import BusError, BusUnavailable, PushfleetError
from shared.logs import OncePerSecond, get_log

_SWEEP_EVERY_S = 60.0
_GONE_MS = 600_000
_CLAIMABLE_MS = 86_400_000
_ACKS = 1000

_log = get_log("bus")


class StreamsSharedReader:
    """The `SharedReader` of Redis streams. Made by `StreamsBus.open_shared`, which made the group."""

    __slots__ = (
        "_acks",
        "_claim_at",
        "_claim_every_s",
        "_closed",
        "_cursors",
        "_group",
        "_invisible_ms",
        "_keys",
        "_link",
        "_marker",
        "_name",
        "_noisy",
        "_on_close",
        "_reading",
        "_ready",
        "_ready_until",
        "_shared_link",
        "_sweep_at",
        "_topic",
    )

    def __init__(
        self,
        topic: str,
        marker: bytes,
        queues: int,
        group: str,
        *,
        invisible_s: float,
        own_link: Exchanges,
        shared_link: Exchanges,
        on_close: Callable[[StreamsSharedReader], None],
    ) -> None:
        """`own_link` is used by nobody else."""
        self._topic = topic
        self._marker = marker
        self._keys = {key: queue for queue, key in enumerate(stream_keys(marker, queues))}
        self._group = group.encode()
        self._name = secrets.token_hex(8).encode()
        self._invisible_ms = int(invisible_s * 1000)
        self._claim_every_s = min(1.0, max(0.05, invisible_s / 4))
        self._claim_at = 0.0
        self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        self._cursors = [b"0-0"] * queues
        self._ready: deque[Received] = deque()
        self._ready_until = 0.0
        self._reading: asyncio.Task[list[Received]] | None = None
        self._link = own_link
        self._shared_link = shared_link
        self._acks: Batcher[Place, None] = Batcher("bus ack", self._send_acks, most=_ACKS)
        self._on_close = on_close
        self._noisy = OncePerSecond()
        self._closed = False

    @property
    def topic(self) -> str:
        return self._topic

    async def fetch(self, most: int) -> list[Received]:
        """See SharedReader. Raises BusUnavailable when the reader is closed."""
        while not self._closed:
            if time.monotonic() > self._ready_until:
                self._ready.clear()
            if self._ready:
                return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
            reading = self._reading
            if reading is None:
                reading = self._reading = asyncio.create_task(self._read(most), name=f"share {self._topic}")
            await asyncio.wait((reading,))
            if reading is self._reading and not reading.cancelled():
                self._reading = None
                self._ready.extend(reading.result())
        raise BusUnavailable(f"{self._topic}: the reader is closed")

    async def ack(self, records: Sequence[Received]) -> None:
        """See SharedReader. Raises BusUnavailable."""
        places = [record.handle for record in records if isinstance(record.handle, Place)]
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._acks.submit(places)
        except TimeoutError:
            raise BusUnavailable(f"{self._topic}: acknowledgement not answered") from None

    async def close(self) -> None:
        """See SharedReader."""
        if self._closed:
            return
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        self._ready.clear()
        await self._acks.close()
        leave = call(LEAVE, self._marker, self._group, self._name, len(self._keys), _CLAIMABLE_MS)
        try:
            with suppress(PushfleetError):
                await self._shared_link.exchange([leave], deadline_s=1.0)
        finally:
            await self._link.close()
            self._on_close(self)

    async def _read(self, most: int) -> list[Received]:
        backoff = Backoff()
        while True:
            try:
                records = await self._read_once(most)
            except BusUnavailable:
                await asyncio.sleep(backoff.next_s())
            except BusError as error:
                # NOGROUP: the server lost its data, or the topic was dropped; it may be made again.
                if self._noisy.due():
                    _log.warning("shared read failed", topic=self._topic, reason=str(error))
                await asyncio.sleep(backoff.next_s())
                with suppress(PushfleetError):
                    await self._link.exchange([call(JOIN, self._marker, self._group)])
            else:
                backoff.reset()
                if records:
                    self._ready_until = time.monotonic() + self._invisible_ms / 2000
                    return records

    async def _read_once(self, most: int) -> list[Received]:
        now = time.monotonic()
        if now >= self._claim_at:
            self._claim_at = now + self._claim_every_s
            records = await self._claim(most)
            if records:
                return records
        wait_s = max(0.001, self._claim_at - now)
        command: Command = (
            *(b"XREADGROUP", b"GROUP", self._group, self._name),
            *(b"COUNT", max(1, most // len(self._keys)), b"BLOCK", max(1, int(wait_s * 1000)), b"STREAMS"),
            *self._keys,
            *(b">",) * len(self._keys),
        )
        reply = await self._link.wait(command, wait_s=wait_s)
        return await self._take([(self._keys[key], entries) for key, entries in reply or ()])

    async def _claim(self, most: int) -> list[Received]:
        """What others hold for too long, and, once a minute, the names of members that are gone."""
        count = max(1, most // len(self._keys))
        commands: list[Command] = [
            (b"XAUTOCLAIM", key, self._group, self._name, self._invisible_ms, self._cursors[queue], b"COUNT", count)
            for key, queue in self._keys.items()
        ]
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
            commands.append(call(SWEEP, self._marker, self._group, len(self._keys), _GONE_MS))
        replies = await self._link.exchange(commands)
        found: list[tuple[int, Any]] = []
        for queue in range(len(self._keys)):
            self._cursors[queue] = replies[queue][0]
            found.append((queue, replies[queue][1]))
        return await self._take(found)

    async def _take(self, found: Sequence[tuple[int, Any]]) -> list[Received]:
        records: list[Received] = []
        for queue, entries in found:
            decoded, foreign = decode_entries(queue, entries)
            records += decoded
            if foreign:
                note_foreign(self._topic, foreign)
                await self._send_acks(foreign)
        return records

    async def _send_acks(self, places: Sequence[Place]) -> list[None]:
        arguments: list[Argument] = [self._group]
        for place in places:
            arguments += place
        await self._shared_link.exchange([call(ACK, self._marker, *arguments)])
        return [None] * len(places)
