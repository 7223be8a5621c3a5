"""
The outbox: lines that wait in Redis while the bus is away.

One stream for the namespace, bounded in entries and bytes, of (topic, lines) in the order they were to be published.
From the moment a publish fails until the outbox is empty again everything goes through it, so that what is sent to one
target stays in order. A send is answered 200 when its lines are in it: they are as safe there as its message is in the
inbox.

One dispatcher at a time, under a lock, publishes from its head: topic by topic in order, with backoff while the bus is
away, taking out what the bus holds. A dispatcher that is killed in between leaves entries that are published once more;
nodes know the messages.

A dispatcher that had no failure itself learns within a second that the outbox is not empty. In that second it may
publish past what another one has put in: such a message overtakes an older one of the same target. Nothing else changes
the order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from dispatcher.lock import Lock
from dispatcher.metrics import OUTBOX_BYTES, OUTBOX_DROPPED, OUTBOX_ENTRIES, OUTBOX_PUBLISHED
from shared.backoff import Backoff
from shared.errors import BusUnavailable, PushfleetError, RecordTooLarge, TopicMissing
from shared.logs import OncePerSecond, get_log
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_ADD = Script(_LUA / "outbox_add.lua")
_READ = Script(_LUA / "outbox_read.lua")
_DONE = Script(_LUA / "outbox_done.lua")
_MOST_ENTRIES = 100_000
_ENTRIES_A_STEP = 256
_BYTES_A_STEP = 4 << 20
_LOOK_S = 1.0
_LOCK_S = 20.0  # longer than a publish may take
_log = get_log("outbox")

Line = tuple[str, bytes]
"""The target, which chooses the queue ("": the first), and the line."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Line])


class OutboxFull(BusUnavailable):
    code = "outbox_full"


class ToBus(Protocol):
    """Publishes lines. Raises BusUnavailable, TopicMissing, RecordTooLarge."""

    async def __call__(self, topic: str, lines: Sequence[Line]) -> None: ...


class Entry(msgspec.Struct):
    """One publish that waits."""

    id: bytes
    topic: str
    lines: bytes


class Outbox:
    """`in_use`: everything goes through it. `full`: it took nothing when it was last asked."""

    __slots__ = (
        "_bytes_key",
        "_complaint",
        "_key",
        "_lock",
        "_most_bytes",
        "_store",
        "_task",
        "_wake",
        "full",
        "in_use",
    )

    def __init__(self, store: Store, *, most_bytes: int) -> None:
        self.in_use = False
        self.full = False
        self._store = store
        self._key, self._bytes_key = store.keys.outbox
        self._most_bytes = most_bytes
        self._lock = Lock(store, "outbox", life_s=_LOCK_S)
        self._wake = asyncio.Event()
        self._complaint = OncePerSecond()
        self._task: asyncio.Task[None] | None = None

    def start(self, to_bus: ToBus) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(to_bus), name="outbox")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        try:
            async with asyncio.timeout(1.0):
                await self._lock.release()
        except (PushfleetError, TimeoutError):
            return  # it expires

    async def add(self, topic: str, lines: Sequence[Line], *, force: bool) -> bool:
        """
        Put lines in; False, and nothing done, when it is empty and `force` is not set.

        Raises OutboxFull, StoreUnavailable.
        """
        args = (int(force), _MOST_ENTRIES, self._most_bytes, topic, _encoder.encode(lines))
        added = await self._store.run(_ADD, (self._key, self._bytes_key), args)
        self.full = added == -1
        if self.full:
            raise OutboxFull("the bus is away and the outbox is full; try again", retry_after_s=5)
        self.in_use = bool(added)
        if added:
            self._wake.set()
        return self.in_use

    # -- publishing ------------------------------------------------------------------------------------------

    async def _run(self, to_bus: ToBus) -> None:
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                left = await self._step(to_bus)
            except PushfleetError as error:
                if self._complaint.due():
                    _log.warning("outbox_waits", reason=str(error))
                await asyncio.sleep(backoff.next_s())
                continue
            except Exception:
                _log.exception("outbox_failed")
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            if not left:
                await self._until_woken()

    async def _until_woken(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _step(self, to_bus: ToBus) -> bool:
        """Publish the oldest entries, if it is this dispatcher's turn; whether there is more to do at once."""
        if not self._lock.token and not await self._look():
            return False
        if not await self._lock.hold():
            return False
        entries = await self._oldest()
        if not entries:
            await self._lock.release()
            return False
        return await self._publish_some(entries, to_bus)

    async def _publish_some(self, entries: list[Entry], to_bus: ToBus) -> bool:
        by_topic: dict[str, list[Entry]] = {}
        for entry in entries:
            by_topic.setdefault(entry.topic, []).append(entry)
        outcomes = await asyncio.gather(*(self._publish_topic(to_bus, *each) for each in by_topic.items()))
        left = await self._take_out([entry.id for published, _ in outcomes for entry in published])
        for _, error in outcomes:
            if error is not None:
                raise error
        return left

    async def _take_out(self, ids: list[bytes]) -> bool:
        """Whether there is more. What another took the lock for stays, and is published once more."""
        if not ids:
            return True
        names = (self._key, self._bytes_key, self._lock.key)
        left, size = await self._store.run(_DONE, names, (self._lock.token, *ids))
        if left >= 0:
            self._note(left, size)
        return bool(left)

    async def _publish_topic(
        self, to_bus: ToBus, topic: str, entries: list[Entry]
    ) -> tuple[list[Entry], BusUnavailable | None]:
        """Those that are dealt with, and why the others are not."""
        lines = [line for entry in entries for line in _decoder.decode(entry.lines)]
        try:
            await to_bus(topic, lines)
        except BusUnavailable as error:
            return [], error
        except TopicMissing:
            OUTBOX_DROPPED.labels("topic missing").inc(len(lines))  # its node ended; the inboxes have what is durable
        except RecordTooLarge:
            OUTBOX_DROPPED.labels("too large").inc(len(lines))
        else:
            OUTBOX_PUBLISHED.inc(len(lines))
        return entries, None

    async def _look(self) -> int:
        """The number of entries."""
        entries: int
        entries, size = await self._store.run(_READ, (self._key, self._bytes_key), (0, 0))
        self._note(entries, size)
        return entries

    async def _oldest(self) -> list[Entry]:
        answer = await self._store.run(_READ, (self._key, self._bytes_key), (_ENTRIES_A_STEP, _BYTES_A_STEP))
        self._note(answer[0], answer[1])
        return [Entry(answer[i], answer[i + 1].decode(), answer[i + 2]) for i in range(2, len(answer), 3)]

    def _note(self, entries: int, size: int) -> None:
        OUTBOX_ENTRIES.set(entries)
        OUTBOX_BYTES.set(size)
        self.in_use = entries > 0
        if size < self._most_bytes and entries < _MOST_ENTRIES:
            self.full = False
