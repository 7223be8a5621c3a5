"""The sweep of routes and inboxes finds what no record brought: records deleted, routes forgotten, clocks set back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from shared.envelope import Trigger, business_template
from shared.inbox import Inbox, StoredMessage
from shared.store import Store
from tests.harness.client import connected
from tests.harness.cluster import Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
NAMESPACE = "sweep"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(valkey: LocalValkey) -> AsyncIterator[Cluster]:
    """One node whose sweep is quick, on streams, so that a test can take a record away."""
    async with running_cluster(
        valkey.url, valkey.url, NAMESPACE, PUSH_RECONCILE_SECONDS="0.5", PUSH_LEASE="30"
    ) as cluster:
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def store(valkey: LocalValkey) -> AsyncIterator[Store]:
    store = Store(valkey.url, namespace=NAMESPACE)
    yield store
    await store.close()


def stored_message(number: int, msg: str) -> StoredMessage:
    now_ms = time.time_ns() // 1_000_000
    message_id = f"{number:032x}"
    template = business_template(
        active_time_ms=now_ms,
        sender="test",
        message_id=message_id,
        msg=f'"{msg}"'.encode(),
        request_id="r",
        trigger=Trigger.HTTP,
    )
    return StoredMessage(message_id, now_ms + 60_000, template)


@pytest.mark.parametrize("ack", ["", "&ack=1"])
async def test_a_stored_message_without_a_record_comes(cluster: Cluster, store: Store, ack: str) -> None:
    """To sessions of both kinds, once."""
    name = f"no-record{ack[-1:]}"
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={name}{ack}") as client:
        await client.receive()
        await Inbox(store).store([(name, stored_message(1, "stored"))])
        await client.until_business(1)
        await cluster.send(name, "after")
        await client.until_business(2)

    assert ["stored", "after"] == [message["msg"] for message in client.business]


async def test_records_that_were_deleted_cost_time_alone(cluster: Cluster, store: Store) -> None:
    """Everything on the node's topic is deleted before the node has read it."""
    topic = cluster.nodes[0].ready["topic"]
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId=deleted&ack=1") as client:
        await client.receive()
        cluster.nodes[0].pause()
        try:
            answers = [await cluster.send("deleted", number) for number in range(20)]
            streams = [key async for key in store.redis.scan_iter(f"*{topic}*", _type="STREAM")]
            removed = [await store.redis.xtrim(key, maxlen=0, approximate=False) for key in streams]
        finally:
            cluster.nodes[0].resume()
        got = await client.until_business(20)

    assert 20 <= sum(removed)
    assert [answer.message_id for answer in answers] == [message["messageId"] for message in got]


async def test_a_route_that_was_forgotten_is_there_again(cluster: Cluster, store: Store) -> None:
    """The session is registered again, reads its inbox, and is live."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId=forgotten&ack=1") as client:
        await client.receive()
        await store.redis.delete(store.keys.route("forgotten"))
        offline = await cluster.send("forgotten", "to the inbox")
        await client.until_business(1)
        online = await cluster.send("forgotten", "live")
        await client.until_business(2)

    assert ["forgotten"] == offline.body["content"]
    assert None is online.body["content"]


async def test_a_clock_that_stepped_back_hides_nothing(cluster: Cluster, store: Store) -> None:
    """A session that replayed a message from an hour ahead gets those that Redis stamps with earlier times."""
    message = stored_message(2, "from ahead")
    place = time.time_ns() // 1000 + 3_600_000_000
    value = b"%016d%013d" % (place, message.expires_ms) + message.template
    await store.redis.hset(store.keys.inbox("stepped"), mapping={message.message_id: value, "#": str(len(value))})
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId=stepped&ack=1") as client:
        await client.until_business(1)
        await cluster.send("stepped", "of now")
        await client.until_business(2)

    assert ["from ahead", "of now"] == [message["msg"] for message in client.business]


async def test_a_sweep_brings_nothing_twice(cluster: Cluster, store: Store) -> None:
    """Messages that wait for their acknowledgement while the sweep passes many times are left alone."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId=patient&ack=1") as client:
        await client.receive()
        for number in range(5):
            await cluster.send("patient", number)
        await client.until_business(5)
        await Inbox(store).store([("patient", stored_message(3, "found by a later sweep"))])
        await client.until_business(6)

    assert [*range(5), "found by a later sweep"] == [message["msg"] for message in client.business]
