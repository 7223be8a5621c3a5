"""The dispatcher's publisher and table of nodes, on the real streams bus and Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from zlib import crc32

import pytest

from dispatcher.nodes import LiveNodes
from dispatcher.outbox import Outbox
from dispatcher.publisher import Publisher
from pushfleet.local_valkey import LocalValkey
from shared.errors import BodyTooLarge, StoreUnavailable, TopicMissing
from tests.harness.dispatcher import DEADLINE_S, Site


@pytest.fixture
async def site(valkey: LocalValkey, namespace: str) -> AsyncIterator[Site]:
    site = Site(valkey.url, namespace)
    yield site
    await site.close()


async def bodies_of(site: Site, topic: str, lines: int) -> list[bytes]:
    """The records of a topic, once they hold so many lines."""
    reader = await site.bus.open_reader(topic)
    bodies: list[bytes] = []
    async with asyncio.timeout(DEADLINE_S):
        while sum(body.count(b"\n") + 1 for body in bodies) < lines:
            bodies += [record.body for record in await reader.fetch()]
    await reader.close()
    return bodies


async def test_lines_that_come_meanwhile_share_a_record(site: Site) -> None:
    """What is submitted while a publish is in flight goes out together, in order."""
    publisher = Publisher(site.bus, Outbox(site.store, most_bytes=1 << 20))
    await site.bus.ensure_topic("t")
    done = [publisher.submit("t", [("a", b"line %d" % n)]) for n in range(500)]
    await asyncio.gather(*done)
    bodies = await bodies_of(site, "t", 500)
    assert [b"line %d" % n for n in range(500)] == b"\n".join(bodies).split(b"\n")
    assert len(bodies) < 50


async def test_records_are_cut_to_size(site: Site) -> None:
    """At most 256 KB, except for a line that is longer by itself."""
    publisher = Publisher(site.bus, Outbox(site.store, most_bytes=1 << 20))
    await site.bus.ensure_topic("t")
    sizes = [100_000, 100_000, 100_000, 300_000, 10, 255_990]
    await publisher.submit("t", [("a", b"x" * size) for size in sizes])
    assert [200_001, 100_000, 300_000, 10, 255_990] == [len(body) for body in await bodies_of(site, "t", 6)]


async def test_a_line_over_the_bus_limit_is_refused(site: Site) -> None:
    """At once, and without harm to others."""
    publisher = Publisher(site.bus, Outbox(site.store, most_bytes=1 << 20))
    await site.bus.ensure_topic("t")
    with pytest.raises(BodyTooLarge):
        publisher.submit("t", [("a", b"x" * (site.bus.max_record_bytes + 1))])
    await publisher.submit("t", [("a", b"small")])
    assert [b"small"] == await bodies_of(site, "t", 1)


async def test_a_target_keeps_to_one_queue(site: Site) -> None:
    """The queue is the target's hash, so its lines stay in order whatever the others do."""
    publisher = Publisher(site.bus, Outbox(site.store, most_bytes=1 << 20))
    await site.bus.ensure_topic("t", queues=3)
    lines = [(f"c{n % 7}", b"c%d %d" % (n % 7, n)) for n in range(70)]
    await asyncio.gather(*(publisher.submit("t", [line]) for line in lines))
    bodies = await bodies_of(site, "t", 70)
    for body in bodies:
        assert 1 == len({crc32(line.split(b" ")[0]) % 3 for line in body.split(b"\n")})
    arrived = [line for body in bodies for line in body.split(b"\n")]
    for target in {to for to, _ in lines}:
        expected = [line for to, line in lines if to == target]
        assert expected == [line for line in arrived if line.startswith(target.encode() + b" ")]


async def test_a_missing_topic_spoils_no_other(site: Site) -> None:
    """TopicMissing for its own lines; the lanes are gone when nothing is left."""
    publisher = Publisher(site.bus, Outbox(site.store, most_bytes=1 << 20))
    await site.bus.ensure_topic("t")
    good, bad = publisher.submit("t", [("a", b"good")]), publisher.submit("nowhere", [("a", b"bad")])
    with pytest.raises(TopicMissing):
        await bad
    await good
    async with asyncio.timeout(DEADLINE_S):
        await publisher.close()
    assert [b"good"] == await bodies_of(site, "t", 1)


# -- nodes ---------------------------------------------------------------------------------------------------------


async def test_a_refresh_sees_what_was_written_before_it(site: Site) -> None:
    """However many ask, at whatever moment of a reading: who wrote a lease and then asks finds it."""
    nodes = LiveNodes(site.store, site.registry, namespace=site.namespace, lease_s=10)
    await nodes.start()

    async def come_up() -> None:
        for _ in range(10):
            node = site.silent_node()
            await node.lease()
            await nodes.refresh()
            assert node.topic == nodes.topic_of(f"{node.node_id}_c_1", node.epoch)

    await asyncio.gather(*(come_up() for _ in range(10)))
    assert 100 == len(nodes.live())
    await nodes.close()


async def test_a_route_is_known_dead_or_strange(site: Site) -> None:
    """None before a fresh table was asked, "" once it is known to be dead, the topic when it lives."""
    nodes = LiveNodes(site.store, site.registry, namespace=site.namespace, lease_s=10)
    await nodes.start()
    node = site.silent_node()
    session_id = f"{node.node_id}_alice_1"
    assert None is nodes.topic_of(session_id, node.epoch)
    nodes.found_dead("alice", session_id, node.epoch)
    assert "" == nodes.topic_of(session_id, node.epoch)
    assert None is nodes.topic_of(session_id, "another epoch")
    await node.lease()
    await nodes.refresh()
    assert node.topic == nodes.topic_of(session_id, node.epoch)
    await node.release()
    await nodes.refresh()
    assert None is nodes.topic_of(session_id, node.epoch)
    await nodes.close()


async def test_a_dead_node_leaves_the_set(site: Site) -> None:
    """Whose lease ran out is taken out of the set of nodes, and comes back when it renews."""
    nodes = LiveNodes(site.store, site.registry, namespace=site.namespace, lease_s=10)
    await nodes.start()
    node = site.silent_node()
    await node.lease()
    await site.store.redis.delete(site.store.keys.lease(node.node_id))
    await nodes.refresh()
    assert () == nodes.live()
    assert 0 == await site.store.redis.scard(site.store.keys.node_ids)
    await node.lease()
    await nodes.refresh()
    assert [node.node_id] == [one.node_id for one in nodes.live()]
    await nodes.close()


@pytest.mark.parametrize(
    ("node_id", "lease"),
    [(b"10.9.9.9:1", b"not JSON"), (b"10.9.9.9:1", b'{"epoch":"\xff"}'), (b"\xff", b"{}")],
    ids=["no JSON", "no text", "a name that is no text"],
)
async def test_a_lease_that_cannot_be_read_hides_no_other(site: Site, node_id: bytes, lease: bytes) -> None:
    """A newer or broken node does not take the cluster down."""
    nodes = LiveNodes(site.store, site.registry, namespace=site.namespace, lease_s=10)
    await nodes.start()
    node = site.silent_node()
    await node.lease()
    await site.store.redis.sadd(site.store.keys.node_ids, node_id)
    await site.store.redis.set(site.store.keys.lease("").encode() + node_id, lease)
    await nodes.refresh()
    assert [node.node_id] == [one.node_id for one in nodes.live()]
    await nodes.close()


async def test_without_redis_the_last_table_serves_for_a_while(private_valkey: LocalValkey) -> None:
    """For three leases; who asks for a fresh one is told that there is none."""
    site = Site(private_valkey.url, "t")
    node = site.silent_node()
    await node.lease()
    short = LiveNodes(site.store, site.registry, namespace="t", lease_s=0.01)
    long = LiveNodes(site.store, site.registry, namespace="t", lease_s=100)
    for nodes in (short, long):
        await nodes.start()
    private_valkey.kill()
    for nodes in (short, long):
        with pytest.raises(StoreUnavailable):
            await nodes.refresh()
    assert [node.topic] == long.topics()
    with pytest.raises(StoreUnavailable):
        short.live()
    await private_valkey.restart()
    await node.lease()
    await short.refresh()
    for nodes in (short, long):
        await nodes.close()
    await site.close()
