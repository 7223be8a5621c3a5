"""
A topic read alone: long-poll pull of every queue of every master, by explicit offsets.

One task a queue keeps a pull (request 11) with the broker, which holds it until a record comes, and puts what came
into a buffer that is bounded in bytes; `fetch` takes all of it. The next pull is on its way before the last one's
messages are decoded. Queues of masters that come later are found when the route is looked at again, every
`WATCH_S` and when a broker failed.

The read position of each queue is kept by the broker as the offset of a group that has the topic's name. `commit`
marks what `fetch` has handed out; a task writes marks that moved once a second (request 15), and `close` once more.

When the topic is dropped, positions mean nothing any more: the reader waits for a topic of that name and reads it
from its beginning. That the topic is gone is believed when the name servers say so; that it was dropped and made
anew in between shows in a queue that is shorter than what was read of it, or in a group without its offset and
another record where the last one was read. A pull that a broker holds hears of none of this, so `_watch` looks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from shared.backoff import Backoff
from shared.bus.port import Received
from shared.bus.rocketmq import codes
from shared.bus.rocketmq.admin import Admin
from shared.bus.rocketmq.connection import CALL_S, Connection, Connections
from shared.bus.rocketmq.received import received_of
from shared.bus.rocketmq.route import Queue, Route, Routes
from shared.bus.rocketmq.wire import Frame
from shared.errors import BusUnavailable, TopicMissing
from shared.logs import get_log

WATCH_S = 5.0
_SUSPEND_S = 15.0
_MARGIN_S = 8.0  # a broker looks at what it holds every 5 s
_COMMIT_EVERY_S = 1.0
_MOST_BUFFERED_BYTES = 4 * 1024 * 1024
_PULL_MOST = 32
_SUSPEND, _SUBSCRIPTION = 2, 4  # PullSysFlag
_READABLE = (codes.SUCCESS, codes.PULL_NOT_FOUND)
_MOVED = (codes.PULL_OFFSET_MOVED, codes.PULL_RETRY_IMMEDIATELY)

log = get_log("bus")


class _Position:
    """How far one queue was read. `pulled` < 0 means: ask the broker where to go on."""

    __slots__ = ("committed", "committed_id", "delivered", "delivered_id", "marked", "marked_id", "pulled", "task")

    def __init__(self) -> None:
        self.pulled = -1
        self.delivered = -1  # behind the last record that fetch handed out
        self.marked = -1  # `delivered` at the last commit()
        self.committed = -1  # what the broker was told
        # The ids of the records just before, where they could be decoded.
        self.delivered_id = self.marked_id = self.committed_id = ""
        self.task: asyncio.Task[None] | None = None


class _Batch:
    """What one pull brought, or only that the position moved (records that could not be decoded)."""

    __slots__ = ("next_offset", "position", "records", "size")

    def __init__(self, position: _Position, next_offset: int, records: list[Received], size: int) -> None:
        self.position = position
        self.next_offset = next_offset
        self.records = records
        self.size = size


class LoneReader:
    """See `shared.bus.port.TopicReader`. Starts to read when made."""

    def __init__(
        self,
        topic: str,
        routes: Routes,
        connections: Connections,
        admin: Admin,
        on_close: Callable[[LoneReader], None],
    ) -> None:
        self._topic = topic
        self._routes = routes
        self._connections = connections
        self._admin = admin
        self._on_close = on_close
        self._positions: dict[Queue, _Position] = {}
        self._groups: dict[str, asyncio.Task[None]] = {}
        self._buffer: deque[_Batch] = deque()
        self._buffered_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._look = asyncio.Event()
        self._gone = False
        self._reset = False
        self._closed = False
        self._trouble: set[str] = set()  # brokers that a log line said cannot be read
        self._tasks = [
            asyncio.create_task(self._watch(), name=f"watch {topic}"),
            asyncio.create_task(self._write_marks(), name=f"commit {topic}"),
        ]

    async def fetch(self) -> list[Received]:
        while True:
            if self._closed:
                raise BusUnavailable("the reader is closed")
            records = self._take()
            if records:
                return records
            self._arrived.clear()
            await self._arrived.wait()

    def commit(self) -> None:
        for position in self._positions.values():
            position.marked, position.marked_id = position.delivered, position.delivered_id

    @property
    def is_committed(self) -> bool:
        """Whether the bus has every mark that `commit` made."""
        return all(position.marked == position.committed for position in self._positions.values())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        await self._stop([*self._tasks, *self._groups.values()])
        await self._stop_pulls()
        with contextlib.suppress(BusUnavailable, TimeoutError):
            async with asyncio.timeout(CALL_S):
                await self._commit_marks()
        self._on_close(self)

    def _take(self) -> list[Received]:
        records: list[Received] = []
        for batch in self._buffer:
            batch.position.delivered = batch.next_offset
            batch.position.delivered_id = batch.records[-1].record_id if batch.records else ""
            records += batch.records
        self._buffer.clear()
        self._buffered_bytes = 0
        self._room.set()
        return records

    # -- which queues there are

    async def _watch(self) -> None:
        """Start a pull for each queue that has none; mend what the topic's going away leaves behind."""
        backoff = Backoff(0.05, 5.0)
        while True:
            self._look.clear()
            try:
                route = await self._routes.refresh(self._topic)
            except TopicMissing:
                if not self._gone:
                    self._gone = True
                    log.warning("the topic is gone; waiting for a new one", topic=self._topic)
                await self._forget_positions()
                await asyncio.sleep(backoff.next_s())
                continue
            except BusUnavailable:
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            self._gone = False
            await self._check_positions(route)
            self._cover(route)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._look.wait()
            await asyncio.sleep(0.05)  # a failing broker wakes every one of its queues' pulls

    def _cover(self, route: Route) -> None:
        for queue in route.readable:
            if queue not in self._positions:
                self._positions[queue] = _Position()
            position = self._positions[queue]
            if position.task is None or position.task.done():
                name = f"pull {self._topic} {queue.broker} {queue.queue_id}"
                position.task = asyncio.create_task(self._pull(queue, position), name=name)

    async def _check_positions(self, route: Route) -> None:
        """Forget all positions if one of them shows that the topic is not the one that was read."""
        known = [(queue, self._positions[queue]) for queue in route.readable if queue in self._positions]
        checks = (self._is_of_this_topic(queue, position) for queue, position in known)
        for outcome in await asyncio.gather(*checks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, BusUnavailable):
                raise outcome
            if outcome is False or self._reset:
                log.warning("the topic was made anew; reading it from its beginning", topic=self._topic)
                await self._forget_positions()
                return

    async def _is_of_this_topic(self, queue: Queue, position: _Position) -> bool:
        # What was read and committed before these questions are asked cannot be beyond their answers.
        pulled, committed, record_id = position.pulled, position.committed, position.committed_id
        connection = self._connections.at(await self._address_of(queue.broker))
        place = {"topic": self._topic, "queueId": str(queue.queue_id)}
        frame = await connection.call(codes.MAX_OFFSET, place)
        if frame.code == codes.SUCCESS and _number(frame, "offset") < pulled:
            return False
        if committed <= 0 or await self._group_offset(connection, place) > 0:
            return True
        # The offset went with the topic, or the broker was killed within seconds of the commit and forgot it.
        position.committed = -1
        return await self._still_holds(queue, committed - 1, record_id)

    async def _still_holds(self, queue: Queue, offset: int, record_id: str) -> bool:
        frame = await self._pull_once(queue, offset, most=1, flags=_SUBSCRIPTION)
        if frame.code != codes.SUCCESS or not record_id:
            return True
        found = received_of(self._topic, frame.body)
        return not found or found[0].record_id == record_id

    async def _forget_positions(self) -> None:
        self._reset = False
        await self._stop_pulls()
        await self._stop(list(self._groups.values()))
        self._groups.clear()
        self._positions.clear()

    async def _stop_pulls(self) -> None:
        await self._stop([position.task for position in self._positions.values() if position.task is not None])

    async def _stop(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one queue

    async def _pull(self, queue: Queue, position: _Position) -> None:
        """Pull one queue for ever, through failures."""
        backoff = Backoff(0.05, 2.0)
        while True:
            try:
                await self._pull_while_good(queue, position, backoff)
            except BusUnavailable as error:
                if queue.broker not in self._trouble:
                    self._trouble.add(queue.broker)
                    log.warning("cannot read", topic=self._topic, broker=queue.broker, reason=str(error))
            self._look.set()
            await asyncio.sleep(backoff.next_s())

    async def _pull_while_good(self, queue: Queue, position: _Position, backoff: Backoff) -> None:
        """Until a failure, which is raised as BusUnavailable."""
        if position.pulled < 0:
            position.pulled = position.delivered = await self._first_offset(queue)
        while True:
            await self._room.wait()
            frame = await self._pull_once(queue, position.pulled)
            if frame.code in _READABLE:
                backoff.reset()
                if queue.broker in self._trouble:
                    self._trouble.discard(queue.broker)
                    log.info("can read again", topic=self._topic, broker=queue.broker)
            if frame.code == codes.SUCCESS:
                self._keep(queue, position, frame)
            elif frame.code in _MOVED and _next_offset(frame) != position.pulled:
                self._move(queue, position, _next_offset(frame))
            elif frame.code != codes.PULL_NOT_FOUND:
                raise BusUnavailable(f"{queue.broker} answered {frame.code}: {frame.remark[:200]}")

    async def _pull_once(
        self, queue: Queue, offset: int, *, most: int = _PULL_MOST, flags: int = _SUSPEND | _SUBSCRIPTION
    ) -> Frame:
        fields = {
            "consumerGroup": self._topic,
            "topic": self._topic,
            "queueId": str(queue.queue_id),
            "queueOffset": str(offset),
            "maxMsgNums": str(most),
            "sysFlag": str(flags),
            "commitOffset": "0",
            "suspendTimeoutMillis": str(int(_SUSPEND_S * 1000)),
            "subscription": "*",
            "subVersion": "0",
            "expressionType": "TAG",
        }
        connection = self._connections.at(await self._address_of(queue.broker))
        return await connection.call(codes.PULL, fields, deadline_s=_SUSPEND_S + _MARGIN_S)

    async def _address_of(self, broker: str) -> str:
        try:
            route = await self._routes.get(self._topic)
            return route.masters[broker]
        except (TopicMissing, KeyError) as error:
            raise BusUnavailable(f"{broker} is not there") from error

    def _keep(self, queue: Queue, position: _Position, frame: Frame) -> None:
        records = received_of(self._topic, frame.body)
        self._put(_Batch(position, _next_offset(frame), records, len(frame.body)))

    def _move(self, queue: Queue, position: _Position, offset: int) -> None:
        """Forward: retention took what lay between. Back: the queue is shorter than what was read of it."""
        log.warning("offset moved", topic=self._topic, queue=queue.queue_id, offset=position.pulled, to=offset)
        if offset > position.pulled:
            self._put(_Batch(position, offset, [], 0))
        else:
            raise BusUnavailable("the queue ends before what was read of it")

    def _put(self, batch: _Batch) -> None:
        batch.position.pulled = batch.next_offset
        self._buffer.append(batch)
        self._buffered_bytes += batch.size
        if self._buffered_bytes >= _MOST_BUFFERED_BYTES:
            self._room.clear()
        self._arrived.set()

    # -- the group's offsets

    async def _first_offset(self, queue: Queue) -> int:
        """Behind the last commit, or the queue's first offset. Raises BusUnavailable."""
        address = await self._address_of(queue.broker)
        await self._ensure_group(address)
        connection = self._connections.at(address)
        place = {"topic": self._topic, "queueId": str(queue.queue_id)}
        least = await connection.call(codes.MIN_OFFSET, place)
        most = await connection.call(codes.MAX_OFFSET, place)
        for frame in (least, most):
            if frame.code != codes.SUCCESS:
                raise BusUnavailable(f"{address} answered {frame.code}: {frame.remark[:200]}")
        # A broker that lost records with its power may remember a commit behind its last record.
        committed = min(await self._group_offset(connection, place), _number(most, "offset"))
        return max(committed, _number(least, "offset"), 0)

    async def _group_offset(self, connection: Connection, place: dict[str, str]) -> int:
        """What the broker keeps for this reader; 0 if nothing. Raises BusUnavailable."""
        frame = await connection.call(codes.QUERY_OFFSET, {"consumerGroup": self._topic, **place})
        if frame.code == codes.QUERY_NOT_FOUND:
            return 0
        if frame.code != codes.SUCCESS:
            raise BusUnavailable(f"{connection.address} answered {frame.code}: {frame.remark[:200]}")
        return _number(frame, "offset")

    async def _ensure_group(self, address: str) -> None:
        """Once for each master, however many queues ask."""
        task = self._groups.get(address)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            coroutine = self._admin.create_group(address, self._topic)
            task = self._groups[address] = asyncio.create_task(coroutine, name=f"group {self._topic}")
        await asyncio.shield(task)

    def _commit_fields(self, queue: Queue, offset: int) -> dict[str, str]:
        return {
            "consumerGroup": self._topic,
            "topic": self._topic,
            "queueId": str(queue.queue_id),
            "commitOffset": str(offset),
        }

    async def _write_marks(self) -> None:
        while True:
            await asyncio.sleep(_COMMIT_EVERY_S)
            with contextlib.suppress(BusUnavailable):
                await self._commit_marks()

    async def _commit_marks(self) -> None:
        positions = self._positions.items()
        moved = [(queue, position) for queue, position in positions if position.marked != position.committed]
        commits = (self._commit_mark(queue, position) for queue, position in moved)
        for outcome in await asyncio.gather(*commits, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, BusUnavailable):
                raise outcome

    async def _commit_mark(self, queue: Queue, position: _Position) -> None:
        mark, record_id = position.marked, position.marked_id
        address = await self._address_of(queue.broker)
        frame = await self._connections.at(address).call(codes.COMMIT_OFFSET, self._commit_fields(queue, mark))
        if frame.code == codes.GROUP_NOT_EXIST:
            self._reset = True
            self._look.set()
        elif frame.code == codes.SUCCESS:
            position.committed, position.committed_id = mark, record_id


def _next_offset(frame: Frame) -> int:
    return _number(frame, "nextBeginOffset")


def _number(frame: Frame, name: str) -> int:
    try:
        return int(frame.fields[name])
    except (KeyError, ValueError) as error:
        raise BusUnavailable(f"a broker's answer lacks {name}") from error
