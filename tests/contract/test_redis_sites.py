"""
Redis behind Sentinels and as a cluster, beyond what every kind of Redis does (test_store, test_registry).

A failover needs nobody: calls fail with StoreUnavailable while it lasts, and go to the new master after it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dispatcher.callers import Caller
from dispatcher.idempotency import Ask, Idempotency, State
from dispatcher.quota import Quotas
from pushfleet.local_valkey import LocalValkey
from shared.bus import Bus, open_bus
from shared.bus.streams.scripts import marker_key
from shared.errors import BusUnavailable, StoreUnavailable
from shared.inbox import Inbox, Stored, StoredMessage
from shared.keys import PARTITIONS, partition_of
from shared.store import Store
from tests.harness.bus import bodies_of, read, records_of
from tests.harness.valkey import run_apart
from tests.harness.valkey_sites import SERVICE, ClusterMember, SentinelMember, SentinelSite, ValkeyCluster, ask

DEADLINE_S = 30.0
CLIENTS = [f"c{number}" for number in range(300)]
ID = "0" * 32


def message() -> StoredMessage:
    return StoredMessage(ID, int(time.time() * 1000) + 3_600_000, b"{}")


async def until_stored(store: Store, client_ids: list[str]) -> int:
    """Store a message for each until it works; how often it did not."""
    inbox = Inbox(store)
    one = message()
    failed = 0
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                found = await inbox.store([(client_id, one) for client_id in client_ids])
            except StoreUnavailable:
                failed += 1
                await asyncio.sleep(0.05)
            else:
                assert {Stored.YES} == {target.stored for target in found}
                return failed


async def held(store: Store, client_ids: list[str]) -> int:
    """How many messages the inboxes hold."""
    return sum(part.held for part in await Inbox(store).read(client_ids, most=1, most_bytes=1))


# -- a batch on a cluster ------------------------------------------------------------------------------------------


async def test_a_batch_is_answered_in_order_whatever_the_partitions(clustered_store: Store) -> None:
    """Of 300 clients in all partitions each gets its own answer, and what was retired is counted over all."""
    assert PARTITIONS == len({partition_of(client_id) for client_id in CLIENTS})
    inbox = Inbox(clustered_store)
    some = CLIENTS[::3]
    await inbox.store([(client_id, message()) for client_id in some])
    slices = await inbox.read(CLIENTS, most=1, most_bytes=1)
    assert [int(client_id in some) for client_id in CLIENTS] == [part.held for part in slices]
    assert len(some) == await inbox.retire([(client_id, ID) for client_id in CLIENTS])
    assert 0 == await held(clustered_store, CLIENTS)


async def test_sends_with_a_request_id_are_told_apart_on_a_cluster(clustered_store: Store) -> None:
    """The first of each requestId is to be sent; when they have ended, the same answer comes again."""
    idempotency = Idempotency(clustered_store)
    asks = [Ask("caller", f"r{n}", f"{n:032x}", n, b"f", idempotency.claim()) for n in range(200)]
    assert {State.MINE} == {begun.state for begun in await idempotency.begin(asks)}
    await idempotency.end([(one, b"%d" % number) for number, one in enumerate(asks)])
    again = await idempotency.begin(asks)
    assert [(State.DONE, b"%d" % number) for number in range(200)] == [(begun.state, begun.answer) for begun in again]
    await idempotency.close()


async def test_quotas_are_counted_on_a_cluster(clustered_store: Store) -> None:
    """Each caller against its own."""
    quotas = Quotas(clustered_store)
    callers = [Caller(f"k{number}", frozenset(), quota=number) for number in range(1, 20)]
    taken = await asyncio.gather(*(quotas.take(caller, 10) for caller in callers))
    assert [min(10, caller.quota or 0) for caller in callers] == taken
    await quotas.close()


async def test_more_calls_than_connections_wait_for_each_other(clustered_store: Store) -> None:
    """Twenty batches over all partitions at once: 1,280 calls."""
    inbox = Inbox(clustered_store)
    batch = [(client_id, message()) for client_id in CLIENTS]
    await inbox.store(batch)  # the first call of a client finds the cluster; others queue for that
    async with asyncio.timeout(DEADLINE_S):
        outcomes = await asyncio.gather(*(inbox.store(batch) for _ in range(20)), return_exceptions=True)
    assert [] == [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(CLIENTS) == await held(clustered_store, CLIENTS)


async def test_a_node_of_a_cluster_is_no_single_server(valkey_cluster: ValkeyCluster, namespace: str) -> None:
    """redis:// for one of its nodes is told how a cluster is named."""
    store = Store(valkey_cluster.url.replace("+cluster", "").partition(",")[0], namespace=namespace)
    with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
        await held(store, CLIENTS)
    await store.close()


# -- failovers of a cluster ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def breakable_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """Three masters, and a replica of the first. Every test on it leaves it serving."""
    cluster = ValkeyCluster(tmp_path_factory.mktemp("breakable-cluster"), replicas=1, node_timeout_ms=1000)
    try:
        run_apart(cluster.start())
        yield cluster
    finally:
        run_apart(cluster.stop())


@pytest.fixture
async def breakable_store(breakable_cluster: ValkeyCluster, namespace: str) -> AsyncIterator[Store]:
    store = Store(breakable_cluster.url_of_one, namespace=namespace)
    yield store
    await store.close()


@pytest.fixture
async def breakable_bus(breakable_cluster: ValkeyCluster, namespace: str) -> AsyncIterator[Bus]:
    bus = open_bus(breakable_cluster.url_of_one, namespace=namespace)
    yield bus
    await bus.close()


async def topic_on(cluster: ValkeyCluster, master: ClusterMember, namespace: str) -> str:
    """A topic whose keys that master has."""
    for number in itertools.count():
        if await cluster.owner_of(marker_key(namespace, f"topic{number}")) is master:
            return f"topic{number}"
    raise AssertionError


async def test_slots_that_move_are_followed(
    breakable_cluster: ValkeyCluster, breakable_store: Store, breakable_bus: Bus, namespace: str
) -> None:
    """Slots move to another master with what they hold: no call of the store fails, and a waiting reader is served."""
    owner, taker = breakable_cluster.masters[1:]
    topic = await topic_on(breakable_cluster, owner, namespace)
    await breakable_bus.ensure_topic(topic)
    reader = await breakable_bus.open_reader(topic)
    waiting = asyncio.create_task(read(reader, 2))
    await breakable_bus.publish(topic, records_of("before"))
    await until_stored(breakable_store, CLIENTS)
    await breakable_cluster.move_all(owner, taker)
    assert 0 == await until_stored(breakable_store, CLIENTS)
    assert len(CLIENTS) == await held(breakable_store, CLIENTS)
    await breakable_bus.publish(topic, records_of("after"))
    assert ["before", "after"] == bodies_of(await waiting)
    assert taker is await breakable_cluster.owner_of(marker_key(namespace, topic))
    await breakable_cluster.move_all(taker, owner, half=True)


async def test_a_replica_takes_over_in_a_cluster(
    breakable_cluster: ValkeyCluster, breakable_store: Store, breakable_bus: Bus, namespace: str
) -> None:
    """
    The master is killed for good: after the failover store and bus work, and have what they held before.

    It is the only one that their URL names.
    """
    victim = breakable_cluster.masters[0]
    topic = await topic_on(breakable_cluster, victim, namespace)
    await breakable_bus.ensure_topic(topic)
    reader = await breakable_bus.open_reader(topic)
    await breakable_bus.publish(topic, records_of("before"))
    await until_stored(breakable_store, CLIENTS)
    await wait_for_replica(victim.port)
    victim.kill()
    waiting = asyncio.create_task(read(reader, 2))
    assert 0 < await until_stored(breakable_store, CLIENTS)
    assert breakable_store.available
    assert len(CLIENTS) == await held(breakable_store, CLIENTS)
    await until_published(breakable_bus, topic, "after")
    assert ["before", "after"] == bodies_of(await waiting)
    await breakable_cluster.restart()


async def test_a_cluster_that_lost_slots_is_unavailable(
    breakable_cluster: ValkeyCluster, breakable_store: Store
) -> None:
    """A master dies that has no replica: StoreUnavailable, for ping too, until it is back."""
    await until_stored(breakable_store, CLIENTS)
    breakable_cluster.masters[1].kill()
    with pytest.raises(StoreUnavailable):
        await held(breakable_store, CLIENTS)
    async with asyncio.timeout(DEADLINE_S):
        while await answers_ping(breakable_store):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await breakable_cluster.masters[1].restart()
    await until_stored(breakable_store, CLIENTS)
    await breakable_store.ping()
    assert len(CLIENTS) == await held(breakable_store, CLIENTS)


async def answers_ping(store: Store) -> bool:
    try:
        await store.ping()
    except StoreUnavailable:
        return False
    return True


async def wait_for_replica(port: int) -> None:
    """Until the replica of the server has what it has."""
    assert 1 == await ask(port, "WAIT", 1, int(DEADLINE_S * 1000))


async def until_published(bus: Bus, topic: str, body: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await bus.publish(topic, records_of(body))
            except BusUnavailable:
                pass  # it took its five seconds


# -- failovers with Sentinels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "by hand"])
async def test_a_promoted_replica_is_found_through_sentinels(
    sentinel_site: SentinelSite, namespace: str, killed: bool
) -> None:
    """
    The master is killed, or made a replica by hand and lives on.

    Store and bus go to the new master, which has what they held before.
    """
    store, bus = Store(sentinel_site.url, namespace=namespace), open_bus(sentinel_site.url, namespace=namespace)
    await bus.ensure_topic("topic")
    reader = await bus.open_reader("topic")
    waiting = asyncio.create_task(read(reader, 2))
    await bus.publish("topic", records_of("before"))
    await until_stored(store, CLIENTS)
    await wait_for_replica(sentinel_site.master.port)
    if killed:
        sentinel_site.master.kill()
        assert 0 < await until_stored(store, ["after"])
    else:
        await ask(sentinel_site.sentinels[0].port, "SENTINEL FAILOVER", SERVICE)
        await sentinel_site.until_promoted()
        await until_stored(store, ["after"])
    assert store.available
    assert len(CLIENTS) == await held(store, CLIENTS)
    assert b"role:master" in await ask(sentinel_site.replica.port, "INFO", "replication")
    await until_published(bus, "topic", "after")
    assert ["before", "after"] == bodies_of(await waiting)
    await store.close()
    await bus.close()


async def test_a_service_that_no_sentinel_knows_is_unavailable(
    valkey: LocalValkey, namespace: str, tmp_path: Path
) -> None:
    """Also when one of the Sentinels is away; the service that they know is found."""
    sentinel = SentinelMember(tmp_path, valkey.port)
    async with sentinel:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}"
        store, known = Store(f"{url}/other", namespace=namespace), Store(f"{url}/{SERVICE}", namespace=namespace)
        with pytest.raises(StoreUnavailable):
            await store.ping()
        await known.ping()
        await store.close()
        await known.close()
