"""
The contract of the bus (shared/bus/port.py): every adapter passes this suite on a real server.

What may not come is shown by what comes behind it: a later record that must arrive, arrives alone.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from shared.bus import Bus, Record, SharedReader, open_bus
from shared.errors import BusUnavailable, RecordTooLarge, TopicMissing
from tests.harness.bus import DEADLINE_S, bodies_of, now_ms, numbered, read, reading, records_of, sharing, take

# Publishing and topics


async def test_published_records_arrive_with_their_parts(bus: Bus, topic: str) -> None:
    """Body and key come out as they went in, under an id of the bus."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, [Record(b"body", key="order-7")])
    async with reading(bus, topic) as reader:
        (record,) = await read(reader, 1)
        assert (b"body", "order-7") == (record.body, record.key)
        assert record.record_id


async def test_bodies_are_bytes(bus: Bus, topic: str) -> None:
    """NUL bytes, every byte value, and a mebibyte arrive unchanged, alone and in one batch."""
    bodies = [b"\0", b"a\0b", bytes(range(256)), b"\r\n" * 10, b"\xff" * 1024 * 1024]
    await bus.ensure_topic(topic)
    await bus.publish(topic, [Record(body) for body in bodies])
    for body in bodies:
        await bus.publish(topic, [Record(body)])
    async with reading(bus, topic) as reader:
        got = await read(reader, 2 * len(bodies))
        assert [*bodies, *bodies] == [record.body for record in got]


async def test_an_empty_body_arrives(bus: Bus, topic: str) -> None:
    """A record may have no body, also in a batch."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, [Record(b"", key="alone")])
    await bus.publish(topic, [Record(b"", key="first"), Record(b"x", key="second")])
    async with reading(bus, topic) as reader:
        got = await read(reader, 3)
        assert [(b"", "alone"), (b"", "first"), (b"x", "second")] == [(record.body, record.key) for record in got]


async def test_the_largest_record_arrives(bus: Bus, topic: str) -> None:
    """A body of exactly `max_record_bytes` is taken and delivered."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, [Record(b"x" * bus.max_record_bytes)])
    async with reading(bus, topic) as reader:
        (record,) = await read(reader, 1)
        assert bus.max_record_bytes == len(record.body)


async def test_nothing_is_sent_when_one_record_is_too_large(bus: Bus, topic: str) -> None:
    """RecordTooLarge is raised before the first record of the call leaves."""
    await bus.ensure_topic(topic)
    with pytest.raises(RecordTooLarge):
        await bus.publish(topic, [Record(b"small"), Record(b"x" * (bus.max_record_bytes + 1))])
    await bus.publish(topic, [Record(b"later")])
    async with reading(bus, topic) as reader:
        assert ["later"] == bodies_of(await read(reader, 1))


async def test_publishing_nothing_is_nothing(bus: Bus, topic: str) -> None:
    """An empty batch is no error."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, [])


async def test_order_holds_within_a_queue(bus: Bus, topic: str) -> None:
    """Records of a queue come in the order of publishing, across calls and batches of any size."""
    await bus.ensure_topic(topic, queues=3)
    assert 3 == await bus.queue_count(topic)
    sent: dict[int, list[str]] = {0: [], 1: [], 2: []}
    number = 0
    for size in (1, 2, 7, 1, 64, 3) * 8:
        batch = []
        for _ in range(size):
            queue = number * 7 % 3
            sent[queue].append(f"{queue}:{number}")
            batch.append(Record(sent[queue][-1].encode(), queue=queue))
            number += 1
        await bus.publish(topic, batch)
    async with reading(bus, topic) as reader:
        got = bodies_of(await read(reader, number))
    assert sent == {queue: [body for body in got if body.startswith(f"{queue}:")] for queue in sent}


async def test_a_reader_gets_what_is_published_while_it_waits(bus: Bus, topic: str) -> None:
    """`fetch` waits while there is nothing, and wakes for the record."""
    await bus.ensure_topic(topic, queues=2)
    async with reading(bus, topic) as reader:
        for queue in (0, 1, 0):
            waiting = asyncio.create_task(read(reader, 1))
            await asyncio.sleep(0)
            await bus.publish(topic, [Record(b"%d" % queue, queue=queue)])
            assert [str(queue)] == bodies_of(await waiting)


async def test_concurrent_publishers_lose_nothing(bus: Bus, topic: str) -> None:
    """Every one of many publish calls under way together is answered for its own records."""
    await bus.ensure_topic(topic)
    bodies = numbered("r", 500)
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(bus.publish(topic, records_of(body)) for body in bodies))
    async with reading(bus, topic) as reader:
        assert sorted(bodies) == sorted(bodies_of(await read(reader, len(bodies))))


async def test_a_missing_topic_is_named(bus: Bus, topic: str) -> None:
    """Whatever is done with a topic that was never made raises TopicMissing; dropping it is no error."""
    with pytest.raises(TopicMissing):
        await bus.publish(topic, records_of("x"))
    with pytest.raises(TopicMissing):
        await bus.queue_count(topic)
    with pytest.raises(TopicMissing):
        await bus.open_reader(topic)
    with pytest.raises(TopicMissing):
        await bus.open_shared(topic, "group")
    await bus.drop_topic(topic)


async def test_a_missing_topic_fails_its_own_publishers_only(bus: Bus, topic: str) -> None:
    """Of publish calls under way together, only those to the missing topic fail."""
    await bus.ensure_topic(topic)
    calls = [bus.publish(topic if number % 2 else f"{topic}-missing", records_of("x")) for number in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [TopicMissing, type(None)] * 10 == [type(outcome) for outcome in outcomes]


async def test_ensuring_twice_changes_nothing(bus: Bus, another_bus: Bus, topic: str) -> None:
    """`ensure_topic` on a topic that is there keeps its queues and records."""
    await bus.ensure_topic(topic, queues=2)
    await bus.publish(topic, records_of("kept"))
    await another_bus.ensure_topic(topic, queues=2)
    assert 2 == await another_bus.queue_count(topic)
    async with reading(another_bus, topic) as reader:
        assert ["kept"] == bodies_of(await read(reader, 1))


async def test_a_dropped_topic_is_gone_and_comes_back_empty(bus: Bus, another_bus: Bus, topic: str) -> None:
    """A drop takes records and read position; no late publish of another process brings the topic back."""
    await bus.ensure_topic(topic)
    await another_bus.publish(topic, records_of("read", "not read"))
    async with reading(bus, topic) as reader:
        await read(reader, 1)
        reader.commit()
    await bus.drop_topic(topic)
    for publisher in (bus, another_bus):
        with pytest.raises(TopicMissing):
            await publisher.publish(topic, records_of("late"))
    await bus.ensure_topic(topic)
    await bus.publish(topic, records_of("new"))
    async with reading(bus, topic) as reader:
        assert ["new"] == bodies_of(await read(reader, 1))


async def test_many_topics(bus: Bus, topic: str) -> None:
    """Fifty topics read side by side each get their own records."""
    topics = [f"{topic}-{number}" for number in range(50)]
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(bus.ensure_topic(name) for name in topics))
        readers = await asyncio.gather(*(bus.open_reader(name) for name in topics))
        waiting = [asyncio.create_task(read(reader, 1)) for reader in readers]
        await asyncio.gather(*(bus.publish(name, records_of(name)) for name in topics))
        assert [[name] for name in topics] == [bodies_of(await task) for task in waiting]
        await asyncio.gather(*(reader.close() for reader in readers))
        await asyncio.gather(*(bus.drop_topic(name) for name in topics))


# Delivery times


async def test_a_record_is_held_back_until_it_is_due(bus: Bus, topic: str) -> None:
    """Records with a delivery time come in the order of their times, behind what is not delayed, never early."""
    await bus.ensure_topic(topic)
    start = now_ms()
    late = Record(b"late \0", key="late", deliver_at_ms=start + 4000)
    soon = Record(b"soon", key="soon", deliver_at_ms=start + 2000)
    await bus.publish(topic, [late, Record(b"now"), soon])
    async with reading(bus, topic) as reader:
        assert ["now"] == bodies_of(await read(reader, 1))
        for expected in (soon, late):
            (got,) = await read(reader, 1)
            assert expected.deliver_at_ms <= now_ms()
            assert (expected.body, expected.key) == (got.body, got.key)


async def test_a_shared_topic_has_delivery_times_too(bus: Bus, topic: str) -> None:
    """A delayed record reaches one of those who share the topic, when it is due."""
    await bus.ensure_topic(topic)
    due = now_ms() + 2000
    async with sharing(bus, topic) as reader:
        await bus.publish(topic, [Record(b"due", deliver_at_ms=due), Record(b"now")])
        first, second = await take(reader, 2)
        assert due <= now_ms()
        assert ["now", "due"] == bodies_of([first, second])


async def test_a_delivery_time_in_the_past_is_now(bus: Bus, topic: str) -> None:
    """A record that is due already is delivered at once."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, [Record(b"past", deliver_at_ms=now_ms() - 5000)])
    async with reading(bus, topic) as reader:
        assert ["past"] == bodies_of(await read(reader, 1))


# Reading alone


async def test_a_reader_goes_on_behind_its_commit(bus: Bus, another_bus: Bus, topic: str) -> None:
    """After commit and close the next reader starts behind; what was fetched and not committed comes again."""
    await bus.ensure_topic(topic, queues=2)
    await bus.publish(topic, records_of("done"))
    async with reading(bus, topic) as reader:
        await read(reader, 1)
        reader.commit()
        await bus.publish(topic, records_of(*numbered("open", 5)))
        await read(reader, 5)
    for _ in range(2):
        async with reading(another_bus, topic) as reader:
            assert numbered("open", 5) == bodies_of(await read(reader, 5))


async def test_a_commit_reaches_the_bus_without_close(bus: Bus, another_bus: Bus, topic: str) -> None:
    """A process that dies loses no commit older than a moment: it is written in the background."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, records_of("first"))
    async with reading(bus, topic) as reader:
        await read(reader, 1)
        await bus.publish(topic, records_of("second"))
        reader.commit()
        async with asyncio.timeout(DEADLINE_S):
            seen = ["first"]
            while "first" in seen:
                async with reading(another_bus, topic) as next_reader:
                    seen = bodies_of(await read(next_reader, 1))
        assert ["second"] == seen


async def test_a_cancelled_fetch_loses_nothing(bus: Bus, topic: str) -> None:
    """However often and whenever `fetch` is cancelled, the records come, in order."""
    await bus.ensure_topic(topic)
    bodies = numbered("r", 300)
    got: list[str] = []

    async def publish_all() -> None:
        for start in range(0, len(bodies), 3):
            await bus.publish(topic, records_of(*bodies[start : start + 3]))

    async with reading(bus, topic) as reader, asyncio.timeout(DEADLINE_S):
        publishing = asyncio.create_task(publish_all())
        turns = 0
        while len(got) < len(bodies):
            turns = (turns + 1) % 40
            fetching = asyncio.create_task(reader.fetch())
            for _ in range(turns):
                await asyncio.sleep(0)
            fetching.cancel()
            with suppress(asyncio.CancelledError):
                got += bodies_of(await fetching)
        await publishing
    assert bodies == got


async def test_closing_ends_a_waiting_fetch(bus: Bus, topic: str) -> None:
    """A `fetch` that waits when its reader is closed raises BusUnavailable; so does one after it."""
    await bus.ensure_topic(topic)
    alone = await bus.open_reader(topic)
    shared = await bus.open_shared(topic, f"{topic}-group")
    waiting = [asyncio.create_task(alone.fetch()), asyncio.create_task(shared.fetch(10))]
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        await alone.close()
        await shared.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [BusUnavailable, BusUnavailable] == [type(outcome) for outcome in outcomes]
    with pytest.raises(BusUnavailable):
        await alone.fetch()


async def test_closing_the_bus_closes_its_readers(bus_url: str, namespace: str, topic: str) -> None:
    """`close` ends what waits, and may be called on a bus that was never used."""
    bus = open_bus(bus_url, namespace=namespace)
    await bus.ensure_topic(topic)
    reader = await bus.open_reader(topic)
    waiting = asyncio.create_task(reader.fetch())
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        await bus.close()
        with pytest.raises(BusUnavailable):
            await waiting
        await open_bus(bus_url, namespace=namespace).close()


# Sharing


async def test_acknowledged_records_are_done_and_others_come_back(bus: Bus, topic: str) -> None:
    """After the invisible time exactly the records that were not acknowledged come again."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, records_of(*numbered("r", 6)))
    async with sharing(bus, topic, invisible_s=2) as reader:
        got = await take(reader, 6)
        await reader.ack(got[::2])
        again = await take(reader, 3)
        assert sorted(bodies_of(got[1::2])) == sorted(bodies_of(again))
        await reader.ack(again)
        await bus.publish(topic, records_of("last"))
        assert ["last"] == bodies_of(await take(reader, 1))


async def test_what_a_closed_member_held_goes_to_the_others(bus: Bus, another_bus: Bus, topic: str) -> None:
    """Records that a member fetched and did not acknowledge reach another member after it has left."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, records_of("a", "b", "c"))
    async with sharing(bus, topic, invisible_s=3) as leaving:
        held = await take(leaving, 3)
        await leaving.ack(held[:1])
    async with sharing(another_bus, topic, invisible_s=3) as staying:
        got = await take(staying, 2)
        assert sorted(bodies_of(held[1:])) == sorted(bodies_of(got))
        await staying.ack(got)


async def test_a_fetch_takes_no_more_than_asked(bus: Bus, topic: str) -> None:
    """`fetch(most)` returns between 1 and `most` records, with several queues too."""
    await bus.ensure_topic(topic, queues=4)
    await bus.publish(topic, [Record(b"%d" % number, queue=number % 4) for number in range(40)])
    async with sharing(bus, topic) as reader, asyncio.timeout(DEADLINE_S):
        got: list[str] = []
        for most in (1, 2, 3, 1, 5) * 40:
            records = await reader.fetch(most)
            assert 1 <= len(records) <= most
            await reader.ack(records)
            got += bodies_of(records)
            if len(got) == 40:
                break
        assert [str(number) for number in range(40)] == sorted(got, key=int)


async def test_members_split_the_work(bus: Bus, another_bus: Bus, topic: str) -> None:
    """Two members of a group get every record once between them, and both get some."""
    await bus.ensure_topic(topic, queues=2)
    bodies = numbered("r", 400)
    shares: list[list[str]] = [[], []]

    async def work(reader: SharedReader, share: list[str]) -> None:
        while True:
            records = await reader.fetch(5)
            share += bodies_of(records)
            await reader.ack(records)
            if len(shares[0]) + len(shares[1]) >= len(bodies):
                finished.set()

    finished = asyncio.Event()
    async with sharing(bus, topic) as one, sharing(another_bus, topic) as other:
        workers = [asyncio.create_task(work(one, shares[0])), asyncio.create_task(work(other, shares[1]))]
        async with asyncio.timeout(DEADLINE_S):
            for number in range(0, len(bodies), 4):
                await bus.publish(topic, [Record(body.encode(), queue=number % 8 // 4) for body in bodies[number:][:4]])
            await finished.wait()
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    assert sorted(bodies) == sorted(shares[0] + shares[1])
    assert all(shares)


async def test_a_cancelled_shared_fetch_loses_nothing(bus: Bus, topic: str) -> None:
    """Records that were on their way to a cancelled `fetch` come, at the latest after the invisible time."""
    await bus.ensure_topic(topic)
    bodies = numbered("r", 200)
    got: set[str] = set()

    async def publish_all() -> None:
        for start in range(0, len(bodies), 4):
            await bus.publish(topic, records_of(*bodies[start : start + 4]))

    async with sharing(bus, topic, invisible_s=5) as reader, asyncio.timeout(DEADLINE_S):
        publishing = asyncio.create_task(publish_all())
        turns = 0
        while len(got) < len(bodies):
            turns = (turns + 1) % 40
            fetching = asyncio.create_task(reader.fetch(3))
            for _ in range(turns):
                await asyncio.sleep(0)
            fetching.cancel()
            with suppress(asyncio.CancelledError):
                records = await fetching
                got.update(bodies_of(records))
                await reader.ack(records)
        await publishing
    assert set(bodies) == got


async def test_groups_each_get_everything(bus: Bus, topic: str) -> None:
    """Two groups on a topic do not take records from each other; both start at its beginning."""
    await bus.ensure_topic(topic)
    await bus.publish(topic, records_of("a", "b", "c"))
    one = await bus.open_shared(topic, f"{topic}-one")
    other = await bus.open_shared(topic, f"{topic}-other")
    for reader in (one, other):
        got = await take(reader, 3)
        assert ["a", "b", "c"] == bodies_of(got)
        await reader.ack(got)
    await bus.publish(topic, records_of("d"))
    for reader in (other, one):
        assert ["d"] == bodies_of(await take(reader, 1))
        await reader.close()
