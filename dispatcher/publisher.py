"""
The publisher: lines of deliveries in, records on node topics out.

Each topic has a *lane* while there is something for it: one publish is in flight, and what comes meanwhile goes out
with the next one, joined into NDJSON records of at most 256 KB. A line goes to the queue that its target hashes to, so
what is sent to one target stays in order. Lanes that have nothing left are dropped. What waits is bounded in bytes.

While the bus is away, and until what waited for it is published, lines go to the outbox instead (outbox.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from zlib import crc32

from dispatcher.outbox import Line, Outbox
from shared.bus.port import Bus, Record
from shared.errors import BodyTooLarge, BusUnavailable, Overloaded
from shared.metrics import BATCH_SIZE, BATCH_WAITING
from shared.record import join_lines

_RECORD_BYTES = 256_000
_PUBLISH_BYTES = 1_000_000
_MOST_WAITING_BYTES = 256 << 20


class Publisher:
    """Publishes lines to node topics over `bus`, or puts them into the outbox."""

    __slots__ = ("_bus", "_lanes", "_most_line_bytes", "_outbox", "_waiting")

    def __init__(self, bus: Bus, outbox: Outbox) -> None:
        self._bus = bus
        self._outbox = outbox
        self._lanes: dict[str, _Lane] = {}
        self._most_line_bytes = bus.max_record_bytes
        self._waiting = 0

    def submit(self, topic: str, lines: Sequence[Line]) -> asyncio.Future[None]:
        """
        Done when the bus holds all `lines`; it may be left waiting for without harm.

        Raises Overloaded or BodyTooLarge at once; the future raises TopicMissing or BusUnavailable.
        """
        size = 0
        for _, line in lines:
            if len(line) > self._most_line_bytes:
                raise BodyTooLarge(f"an envelope of {len(line)} bytes, at most {self._most_line_bytes}", field="msg")
            size += len(line) + 1
        if self._waiting + size > _MOST_WAITING_BYTES:
            raise Overloaded("the bus is too slow for what is sent")
        self._waiting += size
        lane = self._lanes.get(topic)
        if lane is None:
            lane = self._lanes[topic] = _Lane(self, topic)
        return lane.add(lines, size)

    async def close(self) -> None:
        """Wait until what was submitted is published or has failed."""
        while self._lanes:
            await asyncio.wait([lane.task for lane in self._lanes.values()])

    async def publish(self, topic: str, lines: Sequence[Line]) -> None:
        """Raises TopicMissing, RecordTooLarge; with the bus away OutboxFull, StoreUnavailable."""
        outbox, away = self._outbox, not self._bus.connected
        if (outbox.in_use or away) and await outbox.add(topic, lines, force=away):
            return
        try:
            await self.to_bus(topic, lines)
        except BusUnavailable:
            await outbox.add(topic, lines, force=True)

    async def to_bus(self, topic: str, lines: Sequence[Line]) -> None:
        """Past the outbox. Raises TopicMissing, RecordTooLarge, BusUnavailable."""
        queues = await self._bus.queue_count(topic)
        if queues == 1:
            records = [Record(body) for body in _bodies([line for _, line in lines])]
        else:
            by_queue: dict[int, list[bytes]] = {}
            for target, line in lines:
                queue = crc32(target.encode()) % queues if target else 0
                by_queue.setdefault(queue, []).append(line)
            records = [Record(body, queue=queue) for queue, some in by_queue.items() for body in _bodies(some)]
        await self._bus.publish(topic, records)

    def taken(self, size: int, count: int) -> None:
        """Lines left the queue of a lane."""
        self._waiting -= size
        _SIZE.observe(count)
        _WAITING.set(self._waiting)

    def drop(self, topic: str) -> None:
        """A lane has nothing left."""
        del self._lanes[topic]


class _Job:
    __slots__ = ("done", "lines", "size")

    def __init__(self, lines: Sequence[Line], size: int, done: asyncio.Future[None]) -> None:
        self.lines = lines
        self.size = size
        self.done = done


class _Lane:
    """What waits for one topic, and the task that publishes it."""

    __slots__ = ("_jobs", "_publisher", "_topic", "task")

    def __init__(self, publisher: Publisher, topic: str) -> None:
        self._publisher = publisher
        self._topic = topic
        self._jobs: deque[_Job] = deque()
        self.task = asyncio.create_task(self._run(), name=f"publish {topic}")

    def add(self, lines: Sequence[Line], size: int) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.append(_Job(lines, size, done))
        return done

    async def _run(self) -> None:
        jobs: list[_Job] = []
        try:
            while self._jobs:
                jobs = self._take()
                await self._publish(jobs)
        finally:
            for job in (*jobs, *self._jobs):
                job.done.cancel()
            self._publisher.drop(self._topic)

    async def _publish(self, jobs: list[_Job]) -> None:
        try:
            lines = jobs[0].lines if len(jobs) == 1 else [line for job in jobs for line in job.lines]
            await self._publisher.publish(self._topic, lines)
        except Exception as error:
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)
                    job.done.exception()  # marks it as seen: its sender may have gone
            return
        for job in jobs:
            if not job.done.done():
                job.done.set_result(None)

    def _take(self) -> list[_Job]:
        """Whole jobs up to the size of a publish, at least one."""
        jobs = [self._jobs.popleft()]
        size, count = jobs[0].size, len(jobs[0].lines)
        while self._jobs and size + self._jobs[0].size <= _PUBLISH_BYTES:
            job = self._jobs.popleft()
            jobs.append(job)
            size += job.size
            count += len(job.lines)
        self._publisher.taken(size, count)
        return jobs


def _bodies(lines: list[bytes]) -> list[bytes]:
    """Records of at most `_RECORD_BYTES`, or of one line that is longer."""
    bodies: list[bytes] = []
    start, size = 0, 0
    for place, line in enumerate(lines):
        size += len(line) + 1
        if size > _RECORD_BYTES and place > start:
            bodies.append(join_lines(lines[start:place]))
            start, size = place, len(line) + 1
    bodies.append(join_lines(lines[start:]))
    return bodies


_SIZE = BATCH_SIZE.labels("bus")
_WAITING = BATCH_WAITING.labels("bus")
