"""
A topic shared by a group: POP (request 200050) and ack (200051) on each broker master.

The broker hands each record to one member and hides it for the invisible time; what is not acknowledged by then
comes again, out of a retry topic of the group, to any member. Nothing is balanced or assigned on this side.

`fetch` starts long polls where none is under way and returns what the first of them brings. One round is polled
ahead while the caller works on the last one: not more, because what waits here is hidden from the others. Records
that waited too long here are dropped: they come again by themselves.

Polls go over connections of their own, which are closed with the reader. A broker hands nothing to a poll whose
connection is gone, so a record that comes after `close` is not hidden for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from shared.backoff import Backoff
from shared.bus.port import Received
from shared.bus.rocketmq import codes
from shared.bus.rocketmq.admin import Admin
from shared.bus.rocketmq.connection import Connection, Connections
from shared.bus.rocketmq.received import as_received, set_aside
from shared.bus.rocketmq.route import Routes
from shared.bus.rocketmq.wire import Frame, Message, WireError, decode_messages, property_of
from shared.errors import BusUnavailable, TopicMissing
from shared.logs import OncePerSecond, get_log

_POLL_S = 15.0
_MARGIN_S = 5.0
_POP_MOST = 32  # the broker's limit
_MOST_POLLS = 4  # under way at once for each master
_FROM_THE_START = "0"
_USABLE_PART = 0.5  # of the invisible time that a record may wait here

log = get_log("bus")


@dataclass(frozen=True, slots=True)
class _Handle:
    """What an ack has to name: the topic it really came from (a retry topic, the second time) and its check point."""

    broker: str
    topic: str
    queue_id: str
    offset: str
    check_point: str


class PopReader:
    """See `shared.bus.port.SharedReader`."""

    def __init__(
        self,
        topic: str,
        group: str,
        invisible_s: float,
        routes: Routes,
        connections: Connections,
        admin: Admin,
        on_close: Callable[[PopReader], None],
    ) -> None:
        self._topic = topic
        self._group = group
        self._invisible_s = invisible_s
        self._routes = routes
        self._pool = connections
        self._admin = admin
        self._on_close = on_close
        self._connections: dict[str, Connection] = {}
        self._groups: set[str] = set()
        self._polls: dict[str, set[asyncio.Task[None]]] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._buffer: deque[tuple[float, Received]] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._once = OncePerSecond()
        self._trouble: set[str] = set()  # brokers that a log line said cannot be polled

    async def fetch(self, most: int) -> list[Received]:
        backoff = Backoff(0.05, 2.0)
        while True:
            if self._closed:
                raise BusUnavailable("the reader is closed")
            records = self._take(most)
            if not self._buffer:
                try:
                    await self._poll_masters(most)
                    backoff.reset()
                except (BusUnavailable, TopicMissing):
                    if not records:
                        await asyncio.sleep(backoff.next_s())
            if records:
                return records
            if not self._buffer:
                self._arrived.clear()
                await self._arrived.wait()

    async def ack(self, records: Sequence[Received]) -> None:
        handles = [record.handle for record in records if isinstance(record.handle, _Handle)]
        await self._ack(handles)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        polls = [poll for some in self._polls.values() for poll in some]
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        for connection in self._connections.values():
            await connection.close()
        self._on_close(self)

    def _take(self, most: int) -> list[Received]:
        """Those that are still hidden from the other members for long enough."""
        records: list[Received] = []
        now = time.monotonic()
        while self._buffer and len(records) < most:
            usable_until, record = self._buffer.popleft()
            if now < usable_until:
                records.append(record)
        return records

    # -- polls

    async def _poll_masters(self, most: int) -> None:
        """Have polls under way at every master."""
        route = await self._routes.get(self._topic)
        wanted = min(_MOST_POLLS, -(-most // _POP_MOST))
        for broker in {queue.broker for queue in route.readable}:
            polls = self._polls.setdefault(broker, set())
            while len(polls) < wanted:
                name = f"pop {self._topic} {broker}"
                polls.add(asyncio.create_task(self._poll(broker, min(most, _POP_MOST), polls), name=name))

    async def _poll(self, broker: str, most: int, polls: set[asyncio.Task[None]]) -> None:
        """Poll one master once; after a failure, pause, so that `fetch` may start the next poll when it sees fit."""
        backoff = self._backoffs.setdefault(broker, Backoff(0.05, 2.0))
        try:
            frame = await self._pop(broker, most)
            if frame.code == codes.SUCCESS:
                await self._keep(broker, frame)
            elif frame.code != codes.POLLING_TIMEOUT:
                raise BusUnavailable(f"{broker} answered {frame.code}: {frame.remark[:200]}")
            backoff.reset()
            if broker in self._trouble:
                self._trouble.discard(broker)
                log.info("can poll again", topic=self._topic, broker=broker)
        except (BusUnavailable, TopicMissing, WireError) as error:
            if broker not in self._trouble:
                self._trouble.add(broker)
                log.warning("cannot poll", topic=self._topic, broker=broker, reason=str(error))
            with contextlib.suppress(TopicMissing):
                await self._routes.refresh_if_possible(self._topic)
            await asyncio.sleep(backoff.next_s())
        finally:
            # First out of the set, so that the fetch that wakes starts the next poll.
            polls.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._arrived.set()

    async def _pop(self, broker: str, most: int) -> Frame:
        address = (await self._routes.get(self._topic)).masters.get(broker)
        if address is None:
            raise BusUnavailable(f"{broker} is not there")
        if address not in self._groups:
            await self._admin.create_group(address, self._group)
            self._groups.add(address)
        fields = {
            "consumerGroup": self._group,
            "topic": self._topic,
            "queueId": "-1",
            "maxMsgNums": str(most),
            "invisibleTime": str(int(self._invisible_s * 1000)),
            "pollTime": str(int(_POLL_S * 1000)),
            # bornTime is left to the broker: with a clock of ours that is behind, it would take polls for expired.
            "initMode": _FROM_THE_START,
            "expType": "TAG",
            "exp": "*",
            "order": "false",
        }
        frame = await self._connection(address).call(codes.POP, fields, deadline_s=_POLL_S + _MARGIN_S)
        if frame.code == codes.GROUP_NOT_EXIST:
            self._groups.discard(address)
        return frame

    def _connection(self, address: str) -> Connection:
        connection = self._connections.get(address)
        if connection is None:
            connection = self._connections[address] = self._pool.one_more(address)
        return connection

    async def _keep(self, broker: str, frame: Frame) -> None:
        """Buffer what came. What cannot be decoded is acknowledged: otherwise it would come for ever."""
        messages, broken = decode_messages(frame.body)
        points = CheckPoints(self._topic, self._group, broker, frame.fields)
        usable_until = time.monotonic() + self._invisible_s * _USABLE_PART
        for message in messages:
            self._buffer.append((usable_until, as_received(message, points.of(message))))
        if broken:
            set_aside(self._topic, broken)
            await self._ack(points.not_seen())

    # -- acks

    async def _ack(self, handles: Iterable[_Handle]) -> None:
        """Raises BusUnavailable if a broker did not take one; the others are acknowledged all the same."""
        acks = (self._ack_one(handle) for handle in handles)
        failures = [outcome for outcome in await asyncio.gather(*acks, return_exceptions=True) if outcome is not None]
        for failure in failures:
            raise failure

    async def _ack_one(self, handle: _Handle) -> None:
        address = (await self._routes.get(self._topic)).masters.get(handle.broker)
        if address is None:
            raise BusUnavailable(f"{handle.broker} is not there")
        fields = {
            "consumerGroup": self._group,
            "topic": handle.topic,
            "queueId": handle.queue_id,
            "offset": handle.offset,
            "extraInfo": handle.check_point,
        }
        frame = await self._connection(address).call(codes.ACK, fields)
        if frame.code != codes.SUCCESS and self._once.due():
            log.warning("ack refused", topic=self._topic, code=frame.code, remark=frame.remark[:200])


class CheckPoints:
    """
    The handles of a pop's messages, from the response's `startOffsetInfo` and `msgOffsetInfo`.

    Both are lists, split by `;`, of `retryFlag queueId offset` and `retryFlag queueId offset,offset`. A flag of 0
    is the topic itself, 1 and 2 are the two kinds of retry topic. A message out of a retry topic may carry its
    check point with it, as the property POP_CK.
    """

    def __init__(self, topic: str, group: str, broker: str, fields: dict[str, str]) -> None:
        self._broker = broker
        self._topics = {"0": topic, "1": f"%RETRY%{group}_{topic}", "2": f"%RETRY%{group}+{topic}"}
        try:
            self._common = f"{fields['popTime']} {fields['invisibleTime']} {fields['reviveQid']}"
            starts = [entry.split(" ") for entry in fields["startOffsetInfo"].split(";")]
            self._starts = {(flag, queue): start for flag, queue, start in starts}
            offsets = [entry.split(" ") for entry in fields["msgOffsetInfo"].split(";")]
            self._unseen = {(flag, queue, offset) for flag, queue, some in offsets for offset in some.split(",")}
        except (KeyError, ValueError) as error:
            raise WireError("a pop's answer without check points") from error

    def of(self, message: Message) -> _Handle:
        """Raises WireError."""
        carried = property_of(message.properties, "POP_CK").split(" ")
        if len(carried) >= 8:
            flag, queue, offset = carried[4], carried[6], carried[7]
            self._unseen.discard((flag, queue, offset))
            return _Handle(self._broker, self._topic_of(flag), queue, offset, " ".join(carried))
        flag = next((flag for flag, topic in self._topics.items() if topic == message.topic), "0")
        return self._handle(flag, str(message.queue_id), str(message.queue_offset))

    def not_seen(self) -> list[_Handle]:
        """Of the messages that `of` was not asked for."""
        return [self._handle(flag, queue, offset) for flag, queue, offset in list(self._unseen)]

    def _handle(self, flag: str, queue: str, offset: str) -> _Handle:
        self._unseen.discard((flag, queue, offset))
        start = self._starts.get((flag, queue))
        if start is None:
            raise WireError("a message of a queue that the pop's answer does not name")
        check_point = f"{start} {self._common} {flag} {self._broker} {queue} {offset}"
        return _Handle(self._broker, self._topic_of(flag), queue, offset, check_point)

    def _topic_of(self, flag: str) -> str:
        topic = self._topics.get(flag)
        if topic is None:
            raise WireError(f"a check point with retry flag {flag}")
        return topic
