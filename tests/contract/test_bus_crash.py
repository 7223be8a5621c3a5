"""The contract of the bus when its server dies: every adapter, on a server of the test's own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from shared.bus import Bus
from shared.errors import BusUnavailable
from tests.contract.conftest import Breakable
from tests.harness.bus import DEADLINE_S, bodies_of, records_of, take


async def test_what_was_acknowledged_survives_a_crash(breakable: Breakable, breakable_bus: Bus, topic: str) -> None:
    """Kill -9 in the middle of publishing: every record whose publish returned arrives, also at an open reader."""
    bus = breakable_bus
    await bus.ensure_topic(topic)
    reader = await bus.open_reader(topic)
    acknowledged: set[str] = set()
    enough = asyncio.Event()
    crashed = asyncio.Event()

    async def publish(name: str) -> None:
        number = 0
        while not crashed.is_set():
            batch = [f"{name}-{number + extra}" for extra in range(5)]
            number += 5
            with suppress(BusUnavailable):
                await bus.publish(topic, records_of(*batch))
                acknowledged.update(batch)
            if len(acknowledged) > 500:
                enough.set()

    publishers = [asyncio.create_task(publish(name)) for name in "abcd"]
    async with asyncio.timeout(DEADLINE_S):
        await enough.wait()
        breakable.kill()
        crashed.set()
        await breakable.restart()
        await asyncio.wait(publishers)
        await bus.publish(topic, records_of("after"))
        wanted = acknowledged | {"after"}
        while wanted:
            wanted.difference_update(bodies_of(await reader.fetch()))


async def test_calls_fail_by_their_deadline_while_the_server_is_away(
    breakable: Breakable, breakable_bus: Bus, topic: str
) -> None:
    """Without a server calls raise BusUnavailable and `connected` says so; `fetch` goes on and gets what comes."""
    bus = breakable_bus
    shared_topic = f"{topic}-shared"
    await bus.ensure_topic(topic)
    await bus.ensure_topic(shared_topic)
    reader = await bus.open_reader(topic)
    shared = await bus.open_shared(shared_topic, f"{topic}-group")
    connected = [bus.connected]
    alone_waits = asyncio.create_task(reader.fetch())
    shared_waits = asyncio.create_task(shared.fetch(1))
    breakable.kill()
    async with asyncio.timeout(DEADLINE_S):
        calls = (bus.publish(topic, records_of("lost")), bus.ensure_topic(f"{topic}-new"))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [BusUnavailable, BusUnavailable] == [type(outcome) for outcome in outcomes]
        connected.append(bus.connected)
        await breakable.restart()
        for name in (topic, shared_topic):
            await bus.publish(name, records_of("back"))
        assert ["back"] == bodies_of(await alone_waits)
        assert ["back"] == bodies_of(await shared_waits)
        connected.append(bus.connected)
    assert [True, False, True] == connected


async def test_shared_records_survive_a_crash(breakable: Breakable, breakable_bus: Bus, topic: str) -> None:
    """
    What was fetched and not acknowledged comes back after a crash.

    An acknowledgement may die with the server (RocketMQ gathers them in memory): its record may come again.
    """
    await breakable_bus.ensure_topic(topic)
    await breakable_bus.publish(topic, records_of("done", "held"))
    reader = await breakable_bus.open_shared(topic, f"{topic}-group", invisible_s=3)
    got = await take(reader, 2)
    await reader.ack(got[:1])
    breakable.kill()
    await breakable.restart()
    await breakable_bus.publish(topic, records_of("after"))
    wanted = {*bodies_of(got[1:]), "after"}
    async with asyncio.timeout(DEADLINE_S):
        while wanted:
            records = await reader.fetch(10)
            await reader.ack(records)
            wanted.difference_update(bodies_of(records))
