"""Lines to sessions on other nodes: on each kind of bus."""

from __future__ import annotations

import asyncio

from gateway_node.neighbours import Neighbours
from shared.bus import Bus
from shared.ids import node_topic
from shared.record import split_lines

DEADLINE_S = 20.0


async def lines_of(bus: Bus, topic: str, count: int) -> list[bytes]:
    """What a reader of the topic gets."""
    reader = await bus.open_reader(topic)
    lines: list[bytes] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            while len(lines) < count:
                for record in await reader.fetch():
                    lines += split_lines(record.body)
    finally:
        await reader.close()
    return lines


async def test_each_line_reaches_its_sessions_node(bus: Bus, namespace: str) -> None:
    """A node that has gone takes nothing, and holds up nobody."""
    neighbours = Neighbours(bus, namespace=namespace)
    nodes = ["10.0.0.1:9000", "10.0.0.2:9000"]
    for node in nodes:
        await bus.ensure_topic(node_topic(namespace, node))
    for number in range(600):
        node = ("10.0.0.9:9000", *nodes)[number % 3]
        neighbours.tell(f"{node}_c{number}_20260101000000000", b"%d" % number)
    got = [await lines_of(bus, node_topic(namespace, node), 200) for node in nodes]
    await neighbours.close(DEADLINE_S)
    for node in nodes:
        await bus.drop_topic(node_topic(namespace, node))

    assert [[b"%d" % number for number in range(start, 600, 3)] for start in (1, 2)] == [
        sorted(g, key=int) for g in got
    ]
