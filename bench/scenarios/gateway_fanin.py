"""
The gateway alone: records of 100 deliveries each, published straight onto the node's topic, become frames on 1,000
sockets, one message each. What is in flight is bounded, so the gateway is always busy and never flooded. The C server
sends the same frames to as many sockets in the same run.

The lines are of kind `online` (nothing lies in an inbox, so nothing is retired). Lines are built once; each record
gets a messageId of its own spliced in, since a session passes over a message that it has seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from bench.cluster import Bench, Cluster, Role, cluster, cpu_each, measure
from bench.limit import Limit, c_limit
from bench.results import Figure, Result, medians
from bench.tools import Counter, wsload
from shared.bus import Bus, Record, open_bus
from shared.envelope import Trigger, business_template, fill_template
from shared.ids import MessageId, MessageIdMint, mint_request_id, node_topic
from shared.record import Kind, encode_line, join_lines, line_head

_CLIENTS = 1_000
_LINES = 100
_RECORDS_AT_ONCE = 8
_WINDOW = 40_000
_PLACE = MessageId("0" * 32)
_LIFE_MS = 3_600_000
_TARGET = ">= 150,000"


async def run(bench: Bench) -> Result:
    """Deliveries a second on each bus, beside the C server."""
    figures: list[Figure] = []
    for bus in bench.buses:
        limit = await c_limit(bench, f"fan {300 if bench.quick else 1000}", clients=_CLIENTS)
        figures += await _measure_bus(bench, bus, limit)
    return Result("gateway_fanin", "The gateway alone: from its topic to 1,000 sockets", tuple(figures))


async def _measure_bus(bench: Bench, bus: str, limit: Limit) -> list[Figure]:
    rates: list[float] = []
    per_core: list[float] = []
    beside: list[dict[str, float]] = []
    async with cluster(bench, bus=bus) as parts:
        gateway = await parts.gateway()
        counter, sessions = Counter(parts.folder / "count"), parts.folder / "sessions"
        options = [*parts.client_options(), "-s", str(counter.path), "-o", str(sessions), "-z", "1000"]
        async with wsload(parts.folder, gateway.port, *options) as clients:
            await clients.connect(_CLIENTS)
            async with _publishing(parts, gateway, _bodies(parts, sessions), counter):
                await clients.ask(f"run {bench.warm_s(parts.bus)}")
                for _ in range(bench.repetitions):
                    numbers, spent = await measure(parts, clients, bench.measured_s)
                    rates.append(numbers["rate"])
                    per_core.append(numbers["messages"] / spent["gateway"])
                    beside.append(cpu_each(spent, numbers["messages"]))
    share = {
        "share of C by the clock": median(rates) / limit.rate,
        "share of C by CPU": median(per_core) / limit.per_core,
    }
    return [
        Figure(f"deliveries, {bus}", "/s", tuple(rates), _TARGET, medians(beside) | limit.beside() | share),
        Figure(f"the same for a second of gateway CPU, {bus}", "/s", tuple(per_core), _TARGET),
    ]


def _bodies(parts: Cluster, sessions: Path) -> list[bytes]:
    """Record bodies that together hold a line for each session, with a place for the messageId."""
    msg = '{"text":"%s"}'
    text = msg % ("x" * parts.padding(msg % ""))
    template = business_template(
        active_time_ms=int(time.time() * 1000),
        sender="system",
        message_id=_PLACE,
        msg=text.encode(),
        request_id=mint_request_id(),
        trigger=Trigger.HTTP,
    )
    head = line_head(Kind.ONLINE, int(time.time() * 1000) + _LIFE_MS, 0)
    lines: list[bytes] = []
    for row in sessions.read_text().splitlines():
        client, _, session_id = row.partition(" ")
        envelope = fill_template(template, session_id.encode(), b"c" + client.encode())
        lines.append(encode_line(head, envelope))
    return [join_lines(lines[start : start + _LINES]) for start in range(0, len(lines), _LINES)]


@asynccontextmanager
async def _publishing(parts: Cluster, gateway: Role, bodies: list[bytes], counter: Counter) -> AsyncIterator[None]:
    bus = open_bus(parts.bus_url, namespace=parts.namespace)
    publisher = asyncio.create_task(
        _publish(bus, node_topic(parts.namespace, gateway.node_id), bodies, counter), name="publisher"
    )
    try:
        yield
        if publisher.done():
            publisher.result()
    finally:
        publisher.cancel()
        await asyncio.gather(publisher, return_exceptions=True)
        await bus.close()


async def _publish(bus: Bus, topic: str, bodies: list[bytes], counter: Counter) -> None:
    """Publish for ever, keeping at most `_WINDOW` deliveries in flight."""
    mint = MessageIdMint()
    place = _PLACE.encode()
    queues = await bus.queue_count(topic)
    sent = turn = 0
    while True:
        while sent - counter.count > _WINDOW:  # noqa: ASYNC110 - the counter belongs to another process
            await asyncio.sleep(0.001)
        records: list[Record] = []
        for _ in range(_RECORDS_AT_ONCE):
            body = bodies[turn % len(bodies)].replace(place, mint.mint().encode())
            records.append(Record(body, queue=turn % queues))
            turn += 1
        await bus.publish(topic, records)
        sent += _RECORDS_AT_ONCE * _LINES
