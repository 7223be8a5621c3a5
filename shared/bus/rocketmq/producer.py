"""
Publishing: records wait in a lane for their queue, and a lane has one send in flight.

While a send is under way the next batch gathers, of one call's records or many calls', so an idle topic is sent
to at once and a busy one in large batches (request 320; a single record is request 310). One send at a time is
also what keeps the order: a broker works on the requests of one connection in parallel.

Records with a delivery time may share no batch with others; they go one by one, over several lanes, without order.

A send that fails is repeated, with jittered backoff, for as long as somebody waits for one of its records; so a
record may be stored twice. After a failure the route is asked for again and another master is preferred while the
queue's own does not answer. A record's unique key is drawn once, whatever number of times it is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from itertools import count

from shared.backoff import Backoff
from shared.bus.port import Record
from shared.bus.rocketmq import codes
from shared.bus.rocketmq.connection import Connections
from shared.bus.rocketmq.health import Health
from shared.bus.rocketmq.message_id import MessageIds
from shared.bus.rocketmq.route import Queue, Route, Routes
from shared.bus.rocketmq.wire import BATCH_OVERHEAD, encode_batch
from shared.errors import BusError, BusUnavailable, RecordTooLarge, TopicMissing
from shared.metrics import BATCH_SIZE

PUBLISH_S = 5.0
"""Deadline of a publish as a whole."""

MOST_RECORD_BYTES = 4 * 1024 * 1024
"""A broker's default `maxMessageSize`."""

_MOST_BATCH_BYTES = 1024 * 1024
_MOST_WAITING_BYTES = 64 * 1024 * 1024
_MOST_PROPERTY_BYTES = 32_767
_TIMED_LANES = 32
_MISSING_TRIES = 3
PRODUCER_GROUP = "pushfleet"

_SEPARATORS = str.maketrans("\x01\x02", "__")

_Entry = tuple[bytes, bytes]  # body, properties as on the wire


class _Job:
    """The records of one publish for one lane. `future` is done by the lane, or cancelled by who waited."""

    __slots__ = ("entries", "future", "reason", "stored", "taken")

    def __init__(self, entries: list[_Entry], future: asyncio.Future[None]) -> None:
        self.entries = entries
        self.future = future
        self.taken = 0
        self.stored = 0
        self.reason = "no answer"


_Part = tuple[_Job, list[_Entry]]  # those of a job's entries that go out in one send


class _Lane:
    __slots__ = ("jobs", "queue", "runner", "timed", "topic")

    def __init__(self, topic: str, queue: int, timed: bool) -> None:
        self.topic = topic
        self.queue = queue
        self.timed = timed
        self.jobs: deque[_Job] = deque()
        self.runner: asyncio.Task[None] | None = None


class _Attempt:
    """One send and what its tries met so far."""

    __slots__ = ("avoid", "backoff", "body", "code", "fields", "queue", "reason", "times_missing", "topic")

    def __init__(self, lane: _Lane, entries: list[_Entry]) -> None:
        self.topic = lane.topic
        self.queue = lane.queue
        self.code, self.fields, self.body = _request(lane.topic, entries)
        self.avoid: set[str] = set()
        self.times_missing = 0
        self.reason = ""
        self.backoff = Backoff(0.05, 0.5)

    def failed(self, address: str, reason: str) -> None:
        if address:
            self.avoid.add(address)
        self.reason = reason


class Producer:
    """One for each bus."""

    def __init__(self, routes: Routes, connections: Connections, health: Health) -> None:
        self._routes = routes
        self._connections = connections
        self._health = health
        self._ids = MessageIds()
        self._lanes: dict[tuple[str, int, int], _Lane] = {}
        self._next_timed_lane = count()
        self._waiting_bytes = 0
        self._closed = False
        self._batch_size = BATCH_SIZE.labels("rocketmq send")

    async def publish(self, topic: str, records: Sequence[Record]) -> None:
        """See `Bus.publish`."""
        if self._closed:
            raise BusUnavailable("the bus is closed")
        by_lane, size = self._sort(records)
        if self._waiting_bytes and self._waiting_bytes + size > _MOST_WAITING_BYTES:
            raise BusUnavailable(f"{self._waiting_bytes} bytes wait to be sent")
        self._waiting_bytes += size
        jobs = [self._submit(topic, lane, entries) for lane, entries in by_lane.items()]
        try:
            async with asyncio.timeout(PUBLISH_S):
                for job in jobs:
                    await job.future
        except TimeoutError as error:
            reason = next(job.reason for job in jobs if job.future.cancelled())
            raise BusUnavailable(f"{topic} did not take the records in time: {reason}") from error
        finally:
            self._waiting_bytes -= size
            for job in jobs:
                if not job.future.cancel() and not job.future.cancelled():
                    job.future.exception()  # only the first failure is raised

    async def close(self) -> None:
        """Give up what is under way: its callers get BusUnavailable."""
        self._closed = True
        runners = [lane.runner for lane in self._lanes.values() if lane.runner is not None]
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    # -- sorting and encoding

    def _sort(self, records: Sequence[Record]) -> tuple[dict[tuple[int, int], list[_Entry]], int]:
        """The entries by (queue, which timed lane; 0 is none), and their size. Raises RecordTooLarge."""
        by_lane: dict[tuple[int, int], list[_Entry]] = {}
        size = 0
        now_ms = int(time.time() * 1000)
        for record in records:
            body = record.body
            if len(body) > MOST_RECORD_BYTES:
                raise RecordTooLarge(f"a record of {len(body)} bytes; at most {MOST_RECORD_BYTES}")
            timed = record.deliver_at_ms > now_ms
            properties = _properties(record, self._ids.draw(now_ms), timed)
            size += len(body) + len(properties) + BATCH_OVERHEAD
            lane = (record.queue, 1 + next(self._next_timed_lane) % _TIMED_LANES if timed else 0)
            entries = by_lane.get(lane)
            if entries is None:
                by_lane[lane] = [(body, properties)]
            else:
                entries.append((body, properties))
        return by_lane, size

    def _submit(self, topic: str, place: tuple[int, int], entries: list[_Entry]) -> _Job:
        key = (topic, *place)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(topic, place[0], place[1] > 0)
        job = _Job(entries, asyncio.get_running_loop().create_future())
        lane.jobs.append(job)
        if lane.runner is None:
            lane.runner = asyncio.create_task(self._run(key, lane), name=f"publish {topic}")
        return job

    # -- sending

    async def _run(self, key: tuple[str, int, int], lane: _Lane) -> None:
        """Until the lane is empty; then it is forgotten."""
        parts: list[_Part] = []
        try:
            while parts := _take(lane):
                await self._send(lane, parts)
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            reason = BusUnavailable("the bus is closed") if cancelled else error
            for job in [*(job for job, _ in parts), *lane.jobs]:
                _fail(job, reason)
            raise
        finally:
            del self._lanes[key]

    async def _send(self, lane: _Lane, parts: list[_Part]) -> None:
        """Return when they are stored or refused for good (the jobs are told), or nobody waits any more."""
        entries = parts[0][1] if len(parts) == 1 else [entry for _, some in parts for entry in some]
        attempt = _Attempt(lane, entries)
        self._batch_size.observe(len(entries))
        while any(not job.future.done() for job, _ in parts):
            try:
                code = await self._try(attempt)
                if code in codes.STORED:
                    return _finish(parts)
                if code == codes.MESSAGE_ILLEGAL:
                    return await self._send_refused(lane, parts, attempt.reason)
                await self._routes.refresh_if_possible(lane.topic)
            except TopicMissing as error:
                for job, _ in parts:
                    _fail(job, error)
                return
            for job, _ in parts:
                job.reason = attempt.reason
            await asyncio.sleep(attempt.backoff.next_s())

    async def _try(self, attempt: _Attempt) -> int:
        """Send to one master: the response's code, or -1 if there was none. Raises TopicMissing."""
        address = ""
        try:
            route = await self._routes.get(attempt.topic)
            queue = self._choose(route, attempt)
            address = route.masters[queue.broker]
            attempt.fields["e"] = str(queue.queue_id)
            response = await self._connections.at(address).call(attempt.code, attempt.fields, attempt.body)
        except BusUnavailable as error:
            attempt.failed(address, str(error))
            return -1
        code = response.code
        if code not in codes.STORED:
            attempt.failed(address, f"{address} answered {code}: {response.remark[:200]}")
            attempt.times_missing += code == codes.TOPIC_NOT_EXIST
            if attempt.times_missing == _MISSING_TRIES:
                raise TopicMissing(f"there is no topic {attempt.topic}")
        # A batch that is too large is a plain error of the broker's system; only a single record is told apart.
        return codes.MESSAGE_ILLEGAL if code == codes.SYSTEM_ERROR and "size exceeded" in response.remark else code

    def _choose(self, route: Route, attempt: _Attempt) -> Queue:
        """The lane's own queue, or one of a master that has not failed, if there is any."""
        queues = route.writable
        if not queues:
            raise BusUnavailable(f"no queue of {attempt.topic} may be written")
        own = queues[attempt.queue % len(queues)]
        if self._is_usable(route.masters[own.broker], attempt):
            return own
        usable = [queue for queue in queues if self._is_usable(route.masters[queue.broker], attempt)]
        if usable:
            return usable[attempt.queue % len(usable)]
        attempt.avoid.clear()
        return own

    def _is_usable(self, address: str, attempt: _Attempt) -> bool:
        return not self._health.is_failed(address) and address not in attempt.avoid

    async def _send_refused(self, lane: _Lane, parts: list[_Part], reason: str) -> None:
        """A broker refused a batch as too large or ill-formed: it may take the records one by one."""
        if len(parts) == 1 and len(parts[0][1]) == 1:
            _fail(parts[0][0], BusError(reason) if lane.timed else RecordTooLarge(reason))
            return
        for job, entries in parts:
            for entry in entries:
                if not job.future.done():
                    await self._send(lane, [(job, [entry])])


def _take(lane: _Lane) -> list[_Part]:
    """The next batch: as many entries as fit, in order; a job may be split. Empty when nothing waits."""
    parts: list[_Part] = []
    size = 0
    while lane.jobs:
        job = lane.jobs[0]
        if job.future.done():  # failed, or nobody waits for it
            lane.jobs.popleft()
            continue
        start = stop = job.taken
        for body, properties in job.entries[start:] if start else job.entries:
            size += len(body) + len(properties) + BATCH_OVERHEAD
            if (size > _MOST_BATCH_BYTES or lane.timed) and (parts or stop > start):
                break
            stop += 1
        if stop > start:
            parts.append((job, job.entries[start:stop]))
            job.taken = stop
        if stop < len(job.entries):
            break
        lane.jobs.popleft()
    return parts


def _finish(parts: list[_Part]) -> None:
    for job, entries in parts:
        job.stored += len(entries)
        if job.stored == len(job.entries) and not job.future.done():
            job.future.set_result(None)


def _fail(job: _Job, error: BaseException) -> None:
    if not job.future.done():
        job.future.set_exception(error)


def _properties(record: Record, unique_key: str, timed: bool) -> bytes:
    """As on the wire. Raises RecordTooLarge."""
    key = record.key
    text = (
        f"KEYS\x01{key.translate(_SEPARATORS)}\x02UNIQ_KEY\x01{unique_key}\x02"
        if key
        else f"UNIQ_KEY\x01{unique_key}\x02"
    )
    if timed:
        text += f"TIMER_DELIVER_MS\x01{record.deliver_at_ms}\x02"
    properties = text.encode()
    if len(properties) > _MOST_PROPERTY_BYTES:
        raise RecordTooLarge(f"a key of {len(key)} characters")
    return properties


def _request(topic: str, entries: list[_Entry]) -> tuple[int, dict[str, str], bytes]:
    """Code, fields without the queue, and body of a send (310) or batch send (320)."""
    # A broker cannot read a single send without a body; a batch may hold an empty one.
    single = len(entries) == 1 and bool(entries[0][0])
    if single:
        code, body, properties = codes.SEND, entries[0][0], entries[0][1].decode()
    else:
        code, body, properties = codes.SEND_BATCH, encode_batch(entries), ""
    fields = {
        "a": PRODUCER_GROUP,
        "b": topic,
        "c": "TBW102",
        "d": "4",
        "f": "0",
        "g": str(int(time.time() * 1000)),
        "h": "0",
        "i": properties,
        "j": "0",
        "k": "false",
        "m": "false" if single else "true",
    }
    return code, fields, body
