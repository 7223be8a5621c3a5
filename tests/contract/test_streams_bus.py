"""What the Redis streams adapter does beyond the contract: keys, trimming, scripts, servers in odd states."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from pushfleet.local_valkey import LocalValkey
from shared.bus import Bus, Record, TopicReader, open_bus
from shared.bus.streams import StreamsBus
from shared.bus.streams.link import Link, call
from shared.bus.streams.scripts import SWEEP, marker_key
from shared.bus.streams.site import Site
from shared.errors import BusUnavailable, TopicMissing
from shared.metrics import BUS_RECORDS_SET_ASIDE
from tests.harness.bus import DEADLINE_S, bodies_of, now_ms, numbered, read, records_of, take


@pytest.fixture
async def bus(valkey: LocalValkey, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(valkey.url, namespace=namespace)
    yield bus
    await bus.close()


@pytest.fixture
async def redis(valkey: LocalValkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(valkey.url)
    yield client
    await client.aclose()


@pytest.fixture
async def private_bus(private_valkey: LocalValkey, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(private_valkey.url, namespace=namespace)
    yield bus
    await bus.close()


@pytest.fixture
async def private_redis(private_valkey: LocalValkey) -> AsyncIterator[Redis]:
    client = Redis.from_url(private_valkey.url)
    yield client
    await client.aclose()


async def answer(call: Awaitable[Any] | Any) -> Any:
    """The reply of a call of redis-py, whose types leave open whether it is awaited."""
    return await call


async def commit_and_close(reader: TopicReader) -> None:
    reader.commit()
    await reader.close()


async def command(redis: Redis, words: str, *arguments: bytes) -> Any:
    return await redis.execute_command(*words.split(), *arguments)  # type: ignore[no-untyped-call]


def set_aside(topic: str) -> float:
    return float(BUS_RECORDS_SET_ASIDE.labels(topic)._value.get())


async def test_keys_of_a_topic_lie_in_one_slot(bus: Bus, redis: Redis, namespace: str, topic: str) -> None:
    """On a Redis Cluster a script reaches all keys of its topic; another topic may lie elsewhere."""
    await bus.ensure_topic(topic, queues=3)
    await bus.publish(topic, [Record(b"x", queue=queue) for queue in range(3)])
    await bus.publish(topic, [Record(b"x", deliver_at_ms=now_ms() + 600_000)])
    reader = await bus.open_reader(topic)
    await read(reader, 3)
    await commit_and_close(reader)
    keys = await redis.keys(f"{namespace}:*")
    parts = ["", ":0", ":1", ":2", ":delayed", ":position", ":sequence"]
    assert [f"{namespace}:bus:{{{topic}}}{part}".encode() for part in parts] == sorted(keys)
    assert {key_slot(topic.encode())} == {key_slot(str(key).encode() if isinstance(key, str) else key) for key in keys}


async def test_committed_records_are_deleted(bus: Bus, redis: Redis, namespace: str, topic: str) -> None:
    """A topic holds what its reader has not dealt with, and no more."""
    await bus.ensure_topic(topic)
    reader = await bus.open_reader(topic)
    await bus.publish(topic, records_of(*numbered("r", 300)))
    await read(reader, 300)
    reader.commit()
    await bus.publish(topic, records_of("open"))
    await read(reader, 1)
    await reader.close()
    assert 1 == await redis.xlen(f"{namespace}:bus:{{{topic}}}:0")


@pytest.mark.parametrize("groups", [1, 2])
async def test_acknowledged_records_are_deleted(
    bus: Bus, redis: Redis, namespace: str, topic: str, groups: int
) -> None:
    """A record is kept until every group acknowledged it; at most the last one stays behind."""
    await bus.ensure_topic(topic)
    stream = f"{namespace}:bus:{{{topic}}}:0"
    readers = [await bus.open_shared(topic, f"group{number}") for number in range(groups)]
    await bus.publish(topic, records_of(*numbered("r", 300)))
    for reader in readers:
        assert 300 == await redis.xlen(stream)
        await reader.ack(await take(reader, 300))
    assert groups - 1 == await redis.xlen(stream)


async def test_nothing_of_a_dropped_topic_stays(bus: Bus, redis: Redis, namespace: str, topic: str) -> None:
    """Late commits, acknowledgements and publishes bring no key back."""
    await bus.ensure_topic(topic, queues=2)
    await bus.publish(topic, [*records_of("a", "b"), Record(b"c", deliver_at_ms=now_ms() + 600_000)])
    alone = await bus.open_reader(topic)
    shared = await bus.open_shared(topic, "group")
    await read(alone, 2)
    held = await take(shared, 2)
    early = await bus.open_reader(topic)
    await read(early, 1)
    await commit_and_close(early)
    await bus.drop_topic(topic)
    await commit_and_close(alone)
    await shared.ack(held)
    await shared.close()
    with pytest.raises(TopicMissing):
        await bus.publish(topic, records_of("late"))
    assert [] == await redis.keys(f"{namespace}:*")


async def test_foreign_entries_are_passed_over(bus: Bus, redis: Redis, namespace: str, topic: str) -> None:
    """An entry that no publisher of ours wrote is counted and stops nobody, read alone or shared."""
    await bus.ensure_topic(topic)
    before = set_aside(topic)
    stream = f"{namespace}:bus:{{{topic}}}:0"
    alone = await bus.open_reader(topic)
    shared = await bus.open_shared(topic, "group")
    for fields in (b"other x", b"k \xff b x", b"k y b x c x"):
        await command(redis, f"XADD {stream} *", *fields.split())
    await bus.publish(topic, records_of("ours"))
    assert ["ours"] == bodies_of(await read(alone, 1))
    assert ["ours"] == bodies_of(await take(shared, 1))
    assert 6 == set_aside(topic) - before
    assert 1 == (await redis.xpending(stream, "group"))["pending"]


async def test_scripts_are_loaded_again_when_the_server_forgot_them(
    private_bus: Bus, private_redis: Redis, topic: str
) -> None:
    """SCRIPT FLUSH between two calls is not noticed by the caller."""
    await private_bus.ensure_topic(topic)
    await private_bus.publish(topic, records_of("a"))
    await answer(private_redis.script_flush())
    await private_bus.publish(topic, records_of("b"))
    reader = await private_bus.open_reader(topic)
    assert ["a", "b"] == bodies_of(await read(reader, 2))


@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    ],
    ids=["a replica", "out of memory"],
)
async def test_a_server_that_takes_no_writes_is_away(
    private_bus: Bus, private_redis: Redis, topic: str, break_it: str, mend_it: str
) -> None:
    """A publish that the server cannot take now raises BusUnavailable, and works again when it can."""
    await private_bus.ensure_topic(topic)
    await command(private_redis, break_it)
    with pytest.raises(BusUnavailable):
        await private_bus.publish(topic, records_of("x"))
    await command(private_redis, mend_it)
    await private_bus.publish(topic, records_of("y"))
    reader = await private_bus.open_reader(topic)
    assert ["y"] == bodies_of(await read(reader, 1))


async def test_a_server_that_hangs_is_away(private_valkey: LocalValkey, private_bus: Bus, topic: str) -> None:
    """A server that holds connections and answers nothing fails calls by their deadline, and delivers afterwards."""
    await private_bus.ensure_topic(topic)
    reader = await private_bus.open_reader(topic)
    waiting = asyncio.create_task(reader.fetch())
    await private_bus.publish(topic, records_of("before"))
    assert ["before"] == bodies_of(await waiting)
    os.kill(private_valkey.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BusUnavailable):
            await private_bus.publish(topic, records_of("hanging"))
    finally:
        os.kill(private_valkey.pid, signal.SIGCONT)
    await private_bus.publish(topic, records_of("after"))
    async with asyncio.timeout(DEADLINE_S):
        seen: list[str] = []
        while "after" not in seen:
            seen += bodies_of(await reader.fetch())


async def test_readers_go_on_when_the_server_lost_its_data(private_bus: Bus, private_redis: Redis, topic: str) -> None:
    """After a data loss topics are missing until they are made again; open readers then get what comes."""
    await private_bus.ensure_topic(topic)
    alone = await private_bus.open_reader(topic)
    shared = await private_bus.open_shared(topic, "group")
    await private_bus.publish(topic, records_of("a"))
    await read(alone, 1)
    await shared.ack(await take(shared, 1))
    waiting = asyncio.create_task(read(alone, 1)), asyncio.create_task(take(shared, 1))
    await private_redis.flushall()
    with pytest.raises(TopicMissing):
        await private_bus.publish(topic, records_of("b"))
    await private_bus.ensure_topic(topic)
    await private_bus.publish(topic, records_of("c"))
    assert [["c"], ["c"]] == [bodies_of(await task) for task in waiting]


@pytest.fixture
async def link(valkey: LocalValkey) -> AsyncIterator[Link]:
    link = Link(Site(valkey.url))
    yield link
    await link.close()


async def test_members_that_are_gone_lose_their_names(
    bus: Bus, redis: Redis, link: Link, namespace: str, topic: str
) -> None:
    """A member that closes and holds nothing is forgotten; one that crashed is, once what it held was claimed."""
    await bus.ensure_topic(topic)
    stream = f"{namespace}:bus:{{{topic}}}:0"
    await bus.publish(topic, records_of("a", "b"))
    tidy = await bus.open_shared(topic, "group")
    await tidy.ack(await take(tidy, 1))
    await tidy.close()
    assert [] == await redis.xinfo_consumers(stream, "group")
    holder = await bus.open_shared(topic, "group")
    await take(holder, 1)
    sweep = call(SWEEP, marker_key(namespace, topic), b"group", 1, -1)
    assert [0] == await link.exchange([sweep])
    await redis.xack(stream, "group", *[entry["message_id"] for entry in await pending(redis, stream)])
    assert [1] == await link.exchange([sweep])


async def pending(redis: Redis, stream: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = await answer(redis.xpending_range(stream, "group", "-", "+", 10))
    return entries


async def test_a_member_that_closes_hands_back_at_once(bus: Bus, topic: str) -> None:
    """What it held reaches another member long before the invisible time is over."""
    await bus.ensure_topic(topic, queues=2)
    await bus.publish(topic, [Record(b"a"), Record(b"b", queue=1)])
    leaving = await bus.open_shared(topic, "group", invisible_s=3600)
    staying = await bus.open_shared(topic, "group", invisible_s=3600)
    await take(leaving, 2)
    await leaving.close()
    assert ["a", "b"] == sorted(bodies_of(await take(staying, 2)))


async def test_acknowledgements_survive_a_crash(private_valkey: LocalValkey, private_bus: Bus, topic: str) -> None:
    """With appendfsync always an acknowledged record stays away after a crash, and the held one comes back."""
    await private_bus.ensure_topic(topic)
    await private_bus.publish(topic, records_of("done", "held"))
    reader = await private_bus.open_shared(topic, "group", invisible_s=2)
    await reader.ack((await take(reader, 2))[:1])
    private_valkey.kill()
    await private_valkey.restart()
    again = await take(reader, 1)
    assert ["held"] == bodies_of(again)
    await reader.ack(again)
    await private_bus.publish(topic, records_of("last"))
    assert ["last"] == bodies_of(await take(reader, 1))


async def test_blocked_readers_do_not_hold_up_publishers(bus: Bus, topic: str) -> None:
    """Each waiting reader has a connection of its own; calls beside it are answered."""
    await bus.ensure_topic(topic)
    waiting = [asyncio.create_task((await bus.open_reader(topic)).fetch()) for _ in range(10)]
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.sleep(0)
        await bus.publish(topic, records_of("x"))
        assert [["x"]] * 10 == [bodies_of(await task) for task in waiting]


async def test_closing_gives_up_what_is_under_way(private_valkey: LocalValkey, namespace: str, topic: str) -> None:
    """Publishes that wait for a server when the bus is closed raise BusUnavailable instead of hanging."""
    bus = open_bus(private_valkey.url, namespace=namespace)
    await bus.ensure_topic(topic)
    private_valkey.kill()
    publishing = [asyncio.create_task(bus.publish(topic, records_of("x"))) for _ in range(3)]
    await asyncio.sleep(0)
    await bus.close()
    outcomes = await asyncio.gather(*publishing, return_exceptions=True)
    assert [BusUnavailable] * 3 == [type(outcome) for outcome in outcomes]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:port/0", "http://127.0.0.1"])
def test_a_wrong_url_is_a_value_error(url: str) -> None:
    """What cannot be understood is said at once, before anything connects."""
    with pytest.raises(ValueError, match=r"."):
        StreamsBus.from_url(url, namespace="x")


async def test_a_wrong_password_is_unavailable(private_valkey: LocalValkey, private_redis: Redis) -> None:
    """A server that refuses the credentials is no bus to stand on; the reason is in the error."""
    await private_redis.config_set("requirepass", "right")
    url = private_valkey.url.replace("redis://", "redis://:wrong@")
    bus = open_bus(url, namespace="x")
    with pytest.raises(BusUnavailable, match=r"(?i)password"):
        await bus.ensure_topic("topic")
    await bus.close()
