"""
The consumer: this node's topic -> deliveries.

One task reads the topic, alone. A record is many deliveries, a line each; a line that is not one is counted and passed
over, the lines around it are delivered. After a slice of lines the loop gets a turn, so that a large record holds up
nobody's heartbeat. Lines of audiences go on beside the others (siding.py). A record is committed once its other lines
are with their sessions: what a node that is killed had in memory lies in inboxes and timelines. It reads no faster than
the sockets take what comes (pacing.py). While the node's lease is not alive nothing is delivered (lease.py).

When the lease was lost and taken again the topic may have been deleted meanwhile by who cleans up behind dead nodes, so
the consumer ends; the next one opens the topic that is there then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from math import inf

from gateway_node.audiences import Audiences
from gateway_node.clearance import Clearance
from gateway_node.delivery import Delivery
from gateway_node.eviction import Eviction
from gateway_node.fanout import Fanout
from gateway_node.lag import Lag
from gateway_node.metrics import DELIVERED, LINES
from gateway_node.siding import Siding
from shared.bus import Bus, Received, TopicReader
from shared.logs import OncePerSecond, get_log
from shared.record import AudienceLine, Kind, decode_audience, decode_line, is_audience, split_lines

_LINES_A_TURN = 256
_BYTES_A_TURN = 256 << 10
_CAUGHT_UP_S = 0.05
_DIRECT = int(Kind.DIRECT)
_log = get_log("consumer")


class Consumer:
    """
    Owned by app.py, which runs `run` as a task.

    `waiting_since`: from when on (event loop clock, s) there is nothing to do; infinity while it delivers.
    """

    __slots__ = (
        "_audiences",
        "_bad",
        "_bus",
        "_clearance",
        "_complaint",
        "_delivery",
        "_ended",
        "_epoch_s",
        "_eviction",
        "_expired",
        "_fanout",
        "_fetching",
        "_lag",
        "_reading_since",
        "_siding",
        "_topic",
    )

    def __init__(
        self,
        bus: Bus,
        topic: str,
        clearance: Clearance,
        delivery: Delivery,
        fanout: Fanout,
        audiences: Audiences,
        eviction: Eviction,
    ) -> None:
        self._bus = bus
        self._topic = topic
        self._delivery = delivery
        self._clearance = clearance
        self._fanout = fanout
        self._audiences = audiences
        self._eviction = eviction
        self._complaint = OncePerSecond()
        self._bad = 0
        self._expired = 0
        self._ended = False
        self._fetching: asyncio.Timeout | None = None
        self._siding = Siding(self._fan_out)
        self._reading_since = inf
        self._lag = Lag(time.time())
        self._epoch_s = time.time() - asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Until `end` was called, or cancelled."""
        reader = await self._bus.open_reader(self._topic)
        siding = asyncio.create_task(self._siding.run(), name="siding")
        try:
            while not self._ended:
                records = await self._fetch(reader)
                if not records:
                    continue
                await self._clearance.until_clear()
                await self._deliver_records(records)
                reader.commit()
                self._count()
            await self._siding.settled()
        finally:
            siding.cancel()
            await asyncio.wait((siding,))
            await reader.close()

    async def _fetch(self, reader: TopicReader) -> list[Received]:
        """What there is to read next; nothing when `end` was called."""
        loop = asyncio.get_running_loop()
        self._reading_since = loop.time()
        try:
            async with asyncio.timeout(None) as self._fetching:
                return await reader.fetch()
        except TimeoutError:
            return []
        finally:
            self._fetching = None
            if loop.time() - self._reading_since > _CAUGHT_UP_S:
                self._lag.caught_up(loop.time() + self._epoch_s)
            self._reading_since = inf

    def end(self) -> None:
        """Have `run` return, once what it fetched is with its sessions."""
        self._ended = True
        if self._fetching is not None:
            self._fetching.reschedule(0.0)

    def lag_ms(self) -> int:
        """How far behind it is with its topic; see lag.py."""
        now = asyncio.get_running_loop().time()
        in_siding_ms = 0 if self._siding.is_empty else int(1000 * (now - self._siding.oldest()))
        if self._reading_since < now - _CAUGHT_UP_S:
            return in_siding_ms
        return max(in_siding_ms, self._lag.ms(now + self._epoch_s))

    @property
    def waiting_since(self) -> float:
        return self._reading_since if self._siding.is_empty else inf

    async def _fan_out(self, lines: Sequence[AudienceLine]) -> None:
        await self._clearance.until_clear()
        await self._fanout.receive(lines, self._clearance.turn)
        self._count()

    async def _deliver_records(self, records: list[Received]) -> None:
        """Lines of several records go together: what is for everyone is cheaper the more there is of it."""
        loop = asyncio.get_running_loop()
        part: list[bytes] = []
        size = 0
        for record in records:
            self._lag.handling(record.stored_ms, loop.time() + self._epoch_s)
            part += split_lines(record.body)
            size += len(record.body)
            while len(part) >= _LINES_A_TURN or size >= _BYTES_A_TURN:
                await self._deliver_lines(part[:_LINES_A_TURN])
                del part[:_LINES_A_TURN]
                size = 0
                await self._clearance.turn()
        if part:
            await self._deliver_lines(part)

    async def _deliver_lines(self, lines: list[bytes]) -> None:
        now_ms = time.time_ns() // 1_000_000
        direct = self._delivery.direct
        run: list[AudienceLine] = []  # lines of one audience go to each session in one write
        for line in lines:
            try:
                if is_audience(line):
                    entry = decode_audience(line)
                    if run and run[0].audience != entry.audience:
                        await self._siding.put(run)
                        run = []
                    run.append(entry)
                    continue
                if run:
                    await self._siding.put(run)
                    run = []
                kind, expires_ms, order, envelope = decode_line(line)
                if expires_ms <= now_ms:
                    self._expired += 1
                elif kind == _DIRECT:  # nearly always
                    direct(envelope, expires_ms, order)
                else:
                    self._deliver_other(kind, envelope)
            except ValueError:  # BadLine is one
                self._set_aside(line)
        if run:
            await self._siding.put(run)

    def _deliver_other(self, kind: int, envelope: bytes) -> None:
        """Raises ValueError."""
        if kind == Kind.ONLINE:
            self._delivery.online(envelope)
        elif kind == Kind.MEMBER:
            self._audiences.member_line(envelope)
        else:
            self._eviction.close_line(envelope)

    def _set_aside(self, line: bytes) -> None:
        self._bad += 1
        if self._complaint.due():
            _log.warning("line_set_aside", topic=self._topic, bytes=len(line))

    def _count(self) -> None:
        """Counters are raised once a fetch: see shared.metrics."""
        delivery = self._delivery
        fanout = self._fanout
        DELIVERED.inc(delivery.delivered + fanout.delivered)
        for outcome, count in (
            ("duplicate", delivery.duplicates + fanout.duplicates),
            ("no_session", delivery.unknown + fanout.unknown),
            ("expired", self._expired),
            ("set_aside", self._bad + fanout.set_aside),
        ):
            if count:
                LINES.labels(outcome).inc(count)
        delivery.delivered = delivery.duplicates = delivery.unknown = 0
        fanout.delivered = fanout.duplicates = fanout.set_aside = fanout.unknown = self._expired = self._bad = 0
