"""
Rerouting: what is unread in a dead node's topic, to where its clients are now.

Only `online` lines need it: nobody stored their messages. Each goes, the same message for another session, to every
session that its client has now on a live node; a session that has had the message knows it. Direct lines lie in the
inboxes; what was meant for all sessions of the dead node, or to close one, is of no use to another.

The topic is read from the node's last commit on. A mark in each queue tells where it ends, so nothing depends on how
long the bus takes. Dispatchers that do not know yet that the node is dead may still publish to it: the janitor waits
until they do before it empties the topic.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from dispatcher.nodes import LiveNodes
from dispatcher.outbox import Line
from dispatcher.publisher import Publisher
from shared.bus.port import Bus, Received, Record
from shared.envelope import move_envelope, session_id_of
from shared.errors import BusError, BusUnavailable
from shared.ids import client_of_session
from shared.inbox import Inbox, StoredMessage
from shared.record import Kind, decode_line, encode_line, line_head, split_lines

_FETCH_S = 2.0
_LINES_A_STEP = 500
_ROUTE_ONLY = StoredMessage("", 0, b"")


class Reroute:
    """Empties topics. One for the process."""

    __slots__ = ("_bus", "_inbox", "_nodes", "_publisher")

    def __init__(self, bus: Bus, inbox: Inbox, nodes: LiveNodes, publisher: Publisher) -> None:
        self._bus = bus
        self._inbox = inbox
        self._nodes = nodes
        self._publisher = publisher

    async def empty(self, topic: str, go_on: Callable[[], Awaitable[None]]) -> int:
        """
        Read the topic to its end; how many lines went elsewhere.

        `go_on` is called before each step, every two seconds at least, and may raise. What was rerouted is committed,
        so who begins again after an error does not begin at the beginning. Raises TopicMissing, BusUnavailable,
        StoreUnavailable, Overloaded.
        """
        reader = await self._bus.open_reader(topic)
        try:
            ends = await self._mark_ends(topic)
            rerouted = 0
            while ends:
                await go_on()
                try:
                    async with asyncio.timeout(_FETCH_S):
                        records = await reader.fetch()
                except TimeoutError:
                    if not self._bus.connected:
                        raise BusUnavailable("the bus does not answer") from None
                    continue
                ends -= {record.body for record in records}
                rerouted += await self._reroute_records(records, go_on)
                reader.commit()
            return rerouted
        finally:
            await reader.close()

    async def _mark_ends(self, topic: str) -> set[bytes]:
        """A line that every reader passes over, since it has expired, at the end of each queue."""
        word = uuid.uuid4().hex
        queues = await self._bus.queue_count(topic)
        head = line_head(Kind.CLOSE, 0, 0)
        ends = [encode_line(head, b'{"end":"%b/%d"}' % (word.encode(), queue)) for queue in range(queues)]
        await self._bus.publish(topic, [Record(end, queue=queue) for queue, end in enumerate(ends)])
        return set(ends)

    async def _reroute_records(self, records: Sequence[Received], go_on: Callable[[], Awaitable[None]]) -> int:
        rerouted = 0
        found: list[tuple[str, int, bytes]] = []
        for record in records:
            found += _online_lines(record.body)
            if len(found) >= _LINES_A_STEP:
                rerouted += await self._reroute(found)
                found = []
                await go_on()
        return rerouted + (await self._reroute(found) if found else 0)

    async def _reroute(self, messages: list[tuple[str, int, bytes]]) -> int:
        """Each is clientId, expiry (epoch ms), envelope. How many lines it were."""
        targets = await self._inbox.store([(client_id, _ROUTE_ONLY) for client_id, _, _ in messages])
        await self._nodes.refresh()
        lines: dict[str, list[Line]] = {}
        for (client_id, expires_ms, envelope), target in zip(messages, targets, strict=True):
            head = line_head(Kind.ONLINE, expires_ms, 0)
            for session_id, epoch in target.sessions:
                topic = self._nodes.topic_of(session_id, epoch)
                if topic:
                    line = encode_line(head, move_envelope(envelope, session_id.encode()))
                    lines.setdefault(topic, []).append((client_id, line))
        return await self._publish(lines)

    async def _publish(self, lines: dict[str, list[Line]]) -> int:
        done = [self._publisher.submit(topic, some) for topic, some in lines.items()]
        rerouted = 0
        for some, outcome in zip(lines.values(), await asyncio.gather(*done, return_exceptions=True), strict=True):
            if outcome is None:
                rerouted += len(some)
            elif not isinstance(outcome, BusError):  # TopicMissing: that node has ended, too
                raise outcome
        return rerouted


def _online_lines(body: bytes) -> list[tuple[str, int, bytes]]:
    """clientId, expiry and envelope of each line that is to be rerouted."""
    found = []
    now_ms = time.time_ns() // 1_000_000
    for line in split_lines(body):
        try:
            kind, expires_ms, _, envelope = decode_line(line)
            if kind == Kind.ONLINE and expires_ms > now_ms:
                found.append((client_of_session(session_id_of(envelope).decode()), expires_ms, envelope))
        except ValueError:  # BadLine is one; its node would have set it aside
            continue
    return found
