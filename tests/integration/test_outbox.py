"""The outbox and its lock on a real Valkey: order, bounds, and who may take entries out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from dispatcher.lock import Lock
from dispatcher.outbox import Line, Outbox, OutboxFull
from dispatcher.publisher import Publisher
from pushfleet.local_valkey import LocalValkey
from shared.errors import BusUnavailable
from shared.store import Store
from tests.harness.dispatcher import Site

pytestmark = pytest.mark.asyncio(loop_scope="session")
DEADLINE_S = 20.0


@pytest_asyncio.fixture(loop_scope="session")
async def site(valkey: LocalValkey, namespace: str) -> AsyncIterator[Site]:
    site = Site(valkey.url, namespace)
    yield site
    await site.close()


@pytest_asyncio.fixture(loop_scope="session")
async def store(site: Site) -> Store:
    return site.store


@pytest_asyncio.fixture(loop_scope="session")
async def outbox(store: Store) -> AsyncIterator[Outbox]:
    outbox = Outbox(store, most_bytes=2000)
    yield outbox
    await outbox.close()


def numbered(*numbers: int) -> list[Line]:
    return [("a", b"%d" % number) for number in numbers]


async def until_empty(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await store.redis.exists(store.keys.outbox[0]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_is_published_while_something_waits_comes_behind_it(site: Site, outbox: Outbox) -> None:
    """The bus is well, and yet lines go through the outbox until it is empty."""
    publisher = Publisher(site.bus, outbox)
    await site.bus.ensure_topic("t")
    await outbox.add("t", numbered(1), force=True)
    await publisher.submit("t", numbered(2))
    assert 2 == await site.store.redis.xlen(site.store.keys.outbox[0])
    outbox.start(publisher.to_bus)
    await until_empty(site.store)
    await publisher.submit("t", numbered(3))
    reader = await site.bus.open_reader("t")
    got: list[bytes] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(got) < 3:
            got += [part for record in await reader.fetch() for part in record.body.split(b"\n")]
    await reader.close()
    assert [b"1", b"2", b"3"] == got


async def test_it_is_bounded_in_bytes(outbox: Outbox, store: Store) -> None:
    """OutboxFull beyond; room again when entries were published; nothing is left behind of an empty one."""
    for _ in range(3):
        await outbox.add("t", [("a", b"x" * 600)], force=True)
    with pytest.raises(OutboxFull):
        await outbox.add("t", [("a", b"x" * 600)], force=True)
    assert outbox.full
    published: list[Line] = []

    async def publish(topic: str, lines: Sequence[Line]) -> None:
        published.extend(lines)

    outbox.start(publish)
    await until_empty(store)
    assert 3 == len(published)
    assert 0 == await store.redis.exists(store.keys.outbox[1])
    assert await outbox.add("t", numbered(1), force=True)


async def test_an_empty_one_says_go_on(outbox: Outbox) -> None:
    """Unless it is forced: the bus is away."""
    assert not await outbox.add("t", numbered(1), force=False)
    assert await outbox.add("t", numbered(1), force=True)
    assert await outbox.add("t", numbered(2), force=False)


async def test_a_topic_that_fails_holds_up_no_other(outbox: Outbox, store: Store) -> None:
    """Its entries stay, in order, and are tried again."""
    published: list[tuple[str, bytes]] = []
    broken = True

    async def publish(topic: str, lines: Sequence[Line]) -> None:
        if topic == "bad" and broken:
            raise BusUnavailable("away")
        published.extend((topic, line) for _, line in lines)

    for topic, number in (("bad", 1), ("good", 2), ("bad", 3)):
        await outbox.add(topic, numbered(number), force=True)
    outbox.start(publish)
    async with asyncio.timeout(DEADLINE_S):
        while await store.redis.xlen(store.keys.outbox[0]) != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    broken = False
    await until_empty(store)
    assert [("good", b"2"), ("bad", b"1"), ("bad", b"3")] == published


async def test_one_dispatcher_at_a_time_publishes(outbox: Outbox, store: Store) -> None:
    """Who does not hold the lock waits for it."""
    rival = Lock(store, "outbox", life_s=60)
    assert await rival.hold()
    published: list[str] = []

    async def publish(topic: str, lines: Sequence[Line]) -> None:
        published.append(topic)

    await outbox.add("t", numbered(1), force=True)
    outbox.start(publish)
    await asyncio.sleep(0.2)  # long enough for it to do what it must not
    assert [] == published
    await rival.release()
    await until_empty(store)
    assert ["t"] == published


async def test_who_lost_the_lock_takes_nothing_out(outbox: Outbox, store: Store) -> None:
    """It was stopped between publishing and taking out: the entries stay for the next holder."""
    rival = Lock(store, "outbox", life_s=60)
    published: list[str] = []
    robbed = asyncio.Event()

    async def publish(topic: str, lines: Sequence[Line]) -> None:
        published.append(topic)
        if len(published) == 1:
            await store.redis.delete(rival.key)
            await rival.hold()
            robbed.set()

    await outbox.add("t", numbered(1), force=True)
    outbox.start(publish)
    async with asyncio.timeout(DEADLINE_S):
        await robbed.wait()
    await asyncio.sleep(0.2)  # long enough for it to do what it must not
    assert 1 == await store.redis.xlen(store.keys.outbox[0])
    await rival.release()
    await until_empty(store)
    assert ["t", "t"] == published


async def test_a_lock_has_one_holder_and_tokens_count_up(store: Store) -> None:
    """It is kept, given back, and lost when its time has run out."""
    one, other = Lock(store, "work", life_s=60), Lock(store, "work", life_s=60)
    assert (True, False, True) == (await one.hold(), await other.hold(), await one.hold())
    first = one.token
    await one.release()
    assert await other.hold()
    assert other.token > first
    await one.release()  # not its own
    assert await other.hold()
    await store.redis.delete(other.key)  # its time has run out
    assert await one.hold()
    assert (False, 0) == (await other.hold(), other.token)
