"""
Upstream: clients' frames, taken from `push-upstream` and sent on like any other send, with trigger 2.

Records are taken in batches, several batches in work at once. A batch is begun in the order it was fetched, so what one
client sent stays in order. A record is acknowledged when its send is done; the messageId that its node minted and its
requestId make sure that one which comes a second time is not sent a second time. What cannot be read is counted,
logged and acknowledged. While Redis or the bus is away a batch stays in work and is tried again as long as it takes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from dispatcher.metrics import UPSTREAM
from dispatcher.order import Order
from dispatcher.push import Push
from dispatcher.requests import DEFAULT_TTL_S, Send, check_depth, check_utf8, group_ids
from shared.backoff import Backoff
from shared.bus.port import Bus, Received, SharedReader
from shared.envelope import Trigger
from shared.errors import BadRequest, BusError, Overloaded, PushfleetError, Unavailable
from shared.ids import client_id_fault, is_message_id, request_id_fault
from shared.json_text import MOST_DEEP
from shared.logs import OncePerSecond, get_log
from shared.upstream import MOST_IN_RECORD, decode_upstream, upstream_topic

_BATCH = 64
_MOST_BATCHES = 8
_SESSION = re.compile(r"[^\s\"\\]{1,300}")
_log = get_log("dispatcher")


class UpstreamTaker:
    """Takes records of the upstream topic. `await start()`, `await close()`."""

    __slots__ = ("_bus", "_complaint", "_group", "_push", "_reader", "_room", "_task", "_topic", "_work")

    def __init__(self, bus: Bus, push: Push, *, namespace: str) -> None:
        self._bus = bus
        self._push = push
        self._topic = upstream_topic(namespace)
        self._group = f"{namespace}-dispatchers"
        self._reader: SharedReader | None = None
        self._task: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_MOST_BATCHES)
        self._complaint = OncePerSecond()

    async def start(self) -> None:
        """Raises BusUnavailable, TopicMissing."""
        self._reader = await self._bus.open_shared(self._topic, self._group)
        self._task = asyncio.create_task(self._run(), name="upstream")

    async def close(self, patience_s: float) -> None:
        """Take no more, and finish what was taken for as long as that takes no longer than `patience_s`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        if self._work:
            await asyncio.wait(self._work, timeout=patience_s)
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(self._work)
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def _run(self) -> None:
        pause = Backoff(0.1, 5.0)
        while True:
            await self._room.acquire()
            try:
                records = await self._fetch()
            except asyncio.CancelledError:
                self._room.release()
                raise
            except Exception as error:  # the task goes on whatever happened
                self._room.release()
                self._complain("upstream_not_fetched", repr(error))
                await asyncio.sleep(pause.next_s())
                continue
            pause.reset()
            task = asyncio.create_task(self._take(records), name="upstream batch")
            self._work.add(task)
            task.add_done_callback(self._done)

    async def _fetch(self) -> list[Received]:
        if self._reader is None:
            self._reader = await self._bus.open_shared(self._topic, self._group)
        try:
            return await self._reader.fetch(_BATCH)
        except BusError:  # the topic was deleted under it: a new reader when it is back
            reader, self._reader = self._reader, None
            await reader.close()
            raise

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            UPSTREAM.labels("failed").inc()
            _log.error("upstream_batch_failed", exc_info=task.exception())  # comes again: it was not acknowledged

    async def _take(self, records: list[Received]) -> None:
        work: list[tuple[Received, Order]] = []
        unread: list[Received] = []
        for record in records:
            try:
                work.append((record, read_order(record.body)))
            except (BadRequest, ValueError, RecursionError) as error:
                unread.append(record)
                _log.warning("upstream_set_aside", record_id=record.record_id, reason=str(error)[:200])
        UPSTREAM.labels("set aside").inc(len(unread))
        await self._ack(unread)
        pause = Backoff(0.1, 5.0)
        while work:
            await self._push.send_all([order for _, order in work])
            again = [(record, order) for record, order in work if isinstance(order.error, Unavailable | Overloaded)]
            await self._settle(work)
            work = again
            if work:
                self._complain("upstream_waits", work[0][1].error)
                await asyncio.sleep(pause.next_s())

    async def _settle(self, work: Sequence[tuple[Received, Order]]) -> None:
        """Acknowledge all that does not have to be tried again."""
        settled = []
        for record, order in work:
            if isinstance(order.error, Unavailable | Overloaded):
                continue
            settled.append(record)
            if order.error is not None:
                UPSTREAM.labels("refused").inc()
                _log.warning("upstream_refused", message_id=order.message_id, reason=str(order.error))
        UPSTREAM.labels("settled").inc(len(settled))
        await self._ack(settled)

    async def _ack(self, records: Sequence[Received]) -> None:
        if not records or self._reader is None:
            return
        try:
            await self._reader.ack(records)
        except PushfleetError as error:  # they come again, and are known then
            self._complain("upstream_not_acknowledged", error)

    def _complain(self, event: str, error: object) -> None:
        if self._complaint.due():
            _log.warning(event, reason=str(error))


def read_order(body: bytes) -> Order:
    """The send that a record asks for. Raises BadRequest, ValueError, RecursionError."""
    check_depth(body, MOST_DEEP)  # its node has checked what its client may
    asked = decode_upstream(body)
    check_utf8(body)
    if not is_message_id(asked.message_id):
        raise BadRequest("not a messageId", field="messageId")
    groups = group_ids(asked.to_groups)
    if not (asked.to or groups) or len(asked.to) > MOST_IN_RECORD:
        raise BadRequest(f"{len(asked.to)} targets, expected 1 to {MOST_IN_RECORD}", field="to")
    for field, client_id in (("from", asked.sender), *((f"to[{n}]", to) for n, to in enumerate(asked.to))):
        fault = client_id_fault(client_id)
        if fault:
            raise BadRequest(fault, field=field)
    fault = request_id_fault(asked.request_id)
    if fault:
        raise BadRequest(fault, field="requestId")
    send = Send(
        targets=tuple(dict.fromkeys(asked.to)),
        everyone=False,
        msg=bytes(asked.msg),
        request_id=asked.request_id,
        ttl_ms=DEFAULT_TTL_S * 1000,
        groups=groups,
        but=asked.but if _SESSION.fullmatch(asked.but) else "",
    )
    return Order(
        send,
        caller=f"client:{asked.sender}",
        sender=asked.sender,
        trigger=Trigger.WEBSOCKET,
        message_id=asked.message_id,
        active_time_ms=asked.active_time,
    )
