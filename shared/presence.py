"""
Who comes and goes: changes of routes, as events on the topic `push-presence`.

    register.lua, unregister.lua -> Change, with a stamp -> PresenceWriter -> NDJSON records -> whoever reads

Whoever made a change in Redis publishes it, and nobody else: a node for its own sessions and those that they replaced,
a dispatcher for sessions of dead nodes that it takes out. The stamp is made in the step that changes the route and
rises strictly for each client, so whatever way events take, the one with the highest stamp is the last. An event says
how it is, so one that comes twice does no harm.

Events gather while a publish is in flight. While the bus is away they wait; beyond a bound the oldest are dropped, and
counted. A process that is killed takes with it what waits, so a reader that has to be sure asks a dispatcher as well.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple
from zlib import crc32

import msgspec

from shared.backoff import Backoff
from shared.bus.port import Bus, Record
from shared.errors import PushfleetError, TopicMissing
from shared.ids import client_of_session, node_of_session
from shared.logs import OncePerSecond, get_log
from shared.metrics import BATCH_SIZE, PRESENCE_DROPPED, PRESENCE_EVENTS

PRESENCE_QUEUES = 4
"""Of the topic on each broker; a client's events keep to one of them."""

PRESENCE_RECORDS = 2_500
"""What a queue keeps on Redis streams, where the topic may have no reader at all."""

_MOST_WAITING = 100_000
_MOST_AT_ONCE = 512
_RECORD_BYTES = 16_384
_log = get_log("presence")


class Change(NamedTuple):
    """
    A session that was put into its client's route or taken out.

    `stamp`: us, see the module. `sessions`: how many the client has since.
    """

    online: bool
    session_id: str
    device: str
    stamp: int
    sessions: int


class PresenceEvent(msgspec.Struct, frozen=True, rename="camel"):
    """A line of the topic. `time` in epoch ms, by the clock of who wrote it: for people, `stamp` is for programs."""

    event: Literal["online", "offline"]
    client_id: str
    session_id: str
    node_id: str
    device: str | None
    time: int
    stamp: int
    sessions: int


def presence_topic(namespace: str) -> str:
    return f"{namespace}-presence"


async def ensure_presence_topic(bus: Bus, namespace: str) -> None:
    """Raises BusUnavailable."""
    await bus.ensure_topic(presence_topic(namespace), queues=PRESENCE_QUEUES, most_records=PRESENCE_RECORDS)


def read_changes(flat: Sequence[Any]) -> Iterator[Change]:
    """From what presence.lua gives."""
    for at in range(0, len(flat), 5):
        online, session_id, device, stamp, sessions = flat[at : at + 5]
        yield Change(bool(online), session_id.decode(), device.decode(), stamp, sessions)


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(PresenceEvent)


def encode_event(change: Change, time_ms: int) -> bytes:
    """A line, without its line end."""
    session_id = change.session_id
    return _encode(
        PresenceEvent(
            "online" if change.online else "offline",
            client_of_session(session_id),
            session_id,
            node_of_session(session_id),
            change.device or None,
            time_ms,
            change.stamp,
            change.sessions,
        )
    )


def decode_events(body: bytes) -> list[PresenceEvent]:
    """Those of a record. Raises ValueError (msgspec.DecodeError, UnicodeDecodeError)."""
    return _decoder.decode_lines(body)


class PresenceWriter:
    """Publishes events. Owned by the roles' app.py; `await close()` before the bus is closed."""

    __slots__ = ("_bus", "_complaint", "_missing", "_offline", "_online", "_runner", "_size", "_topic", "_waiting")

    def __init__(self, bus: Bus, *, namespace: str, most_waiting: int = _MOST_WAITING) -> None:
        self._bus = bus
        self._topic = presence_topic(namespace)
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=most_waiting)
        self._runner: asyncio.Task[None] | None = None
        self._missing = False
        self._complaint = OncePerSecond()
        self._size = BATCH_SIZE.labels("presence")
        self._online = PRESENCE_EVENTS.labels("online")
        self._offline = PRESENCE_EVENTS.labels("offline")

    def changed(self, changes: Sequence[Change]) -> None:
        """Take these for publishing; returns at once."""
        if not changes:
            return
        time_ms = time.time_ns() // 1_000_000
        most = self._waiting.maxlen or 0
        PRESENCE_DROPPED.inc(max(0, len(self._waiting) + len(changes) - most))
        for change in changes:  # a full deque lets its oldest go
            self._waiting.append((client_of_session(change.session_id), encode_event(change, time_ms)))
        online = sum(change.online for change in changes)
        self._online.inc(online)
        self._offline.inc(len(changes) - online)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="presence")

    async def close(self, within_s: float) -> None:
        """Publish what waits, or drop it after `within_s`; at once when the topic is not there."""
        runner = self._runner
        if runner is None:
            return
        await asyncio.wait((runner,), timeout=0.0 if self._missing else within_s)
        if not runner.done():
            runner.cancel()
            await asyncio.wait((runner,))
            PRESENCE_DROPPED.inc(len(self._waiting))
            _log.warning("presence_given_up", events=len(self._waiting))

    async def _run(self) -> None:
        backoff = Backoff(0.1, 2.0)
        batch: list[tuple[str, bytes]] = []
        try:
            while self._waiting:
                batch = list(islice(self._waiting, _MOST_AT_ONCE))
                if await self._published(batch):
                    backoff.reset()
                    self._forget(batch)
                else:
                    await asyncio.sleep(backoff.next_s())
        finally:
            self._runner = None

    async def _published(self, batch: list[tuple[str, bytes]]) -> bool:
        try:
            queues = await self._bus.queue_count(self._topic)
            await self._bus.publish(self._topic, _records(batch, queues))
        except PushfleetError as error:
            self._missing = isinstance(error, TopicMissing)
            if self._complaint.due():
                _log.warning("presence_waits", events=len(self._waiting), reason=str(error))
            return False
        except Exception:
            _log.exception("presence_failed", events=len(batch))  # these would fail again, too
        self._missing = False
        self._size.observe(len(batch))
        return True

    def _forget(self, batch: list[tuple[str, bytes]]) -> None:
        """Of those that were published, whichever were not let go meanwhile."""
        for event in batch:
            if self._waiting and self._waiting[0] is event:
                self._waiting.popleft()


def _records(batch: Sequence[tuple[str, bytes]], queues: int) -> list[Record]:
    """A client's events in their order in one queue; records of bounded size."""
    parts: dict[int, list[list[bytes]]] = {}
    sizes: dict[int, int] = {}
    for client_id, line in batch:
        queue = crc32(client_id.encode()) % queues
        size = sizes.get(queue, _RECORD_BYTES) + len(line) + 1
        if size > _RECORD_BYTES:
            parts.setdefault(queue, []).append([])
            size = len(line) + 1
        sizes[queue] = size
        parts[queue][-1].append(line)
    return [Record(b"\n".join(lines), queue=queue) for queue, some in parts.items() for lines in some]
