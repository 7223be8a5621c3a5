"""Several sessions of one client: they coexist, or the newer replaces the older, wherever it is."""

from __future__ import annotations

import asyncio

import pytest

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from shared.store import Store
from tests.harness.client import Client, connected
from tests.harness.cluster import Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")


def messages(client: Client) -> list[object]:
    return [message["msg"] for message in client.business]


async def until_offline(cluster: Cluster, client_id: str) -> None:
    """Until a send that stores nothing says that the client is not online."""
    async with asyncio.timeout(30):
        while (await cluster.send(client_id, "there?", durable=False)).body["content"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_one_session_a_client(valkey: LocalValkey, shared_rocketmq: LocalRocketMQ, namespace: str) -> None:
    """The older one closes 4003, on the same node and on another; late ends of replaced ones unroute nobody."""
    async with running_cluster(
        valkey.url, shared_rocketmq.url, namespace, nodes=2, PUSH_SESSION_POLICY="client"
    ) as cluster:
        urls = [f"{cluster.socket_url(node)}?clientId=alice&ack=1" for node in (0, 0, 1)]
        async with (
            connected(cluster.http, urls[0]) as first,
            connected(cluster.http, urls[1]) as second,
        ):
            assert 4003 == await first.closed()
            async with connected(cluster.http, urls[2]) as third:
                assert 4003 == await second.closed()
                answer = await cluster.send("alice", "hello")
                await third.until_business(1)
    assert None is answer.body["content"]
    assert ([], [], ["hello"]) == (messages(first), messages(second), messages(third))


async def test_one_session_a_device(valkey: LocalValkey, namespace: str) -> None:
    """Another device's session stays, and both get what is sent."""
    async with running_cluster(valkey.url, valkey.url, namespace, nodes=2, PUSH_SESSION_POLICY="device") as cluster:
        url = f"{cluster.socket_url(0)}?clientId=alice"
        elsewhere = f"{cluster.socket_url(1)}?clientId=alice"
        async with (
            connected(cluster.http, f"{url}&device=phone") as phone,
            connected(cluster.http, f"{url}&device=tablet") as tablet,
            connected(cluster.http, f"{elsewhere}&device=phone") as phone_again,
        ):
            assert 4003 == await phone.closed()
            await cluster.send("alice", "hello")
            await tablet.until_business(1)
            await phone_again.until_business(1)
    assert [] == messages(phone)


async def test_a_replaced_session_ends_though_its_node_was_not_told(valkey: LocalValkey, namespace: str) -> None:
    """The sweep finds it without a route, and a newer one in its place."""
    async with running_cluster(
        valkey.url, valkey.url, namespace, nodes=2, PUSH_SESSION_POLICY="client", PUSH_RECONCILE_SECONDS="0.5"
    ) as cluster:
        store = Store(valkey.url, namespace=namespace)
        async with connected(cluster.http, f"{cluster.socket_url(0)}?clientId=alice&ack=1") as old:
            await old.receive()
            topic = cluster.nodes[0].ready["topic"]
            cluster.nodes[0].pause()
            try:
                await cluster.send("alice", "there?", durable=False)  # Redis gives the blocked reader the next one
                async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId=alice&ack=1") as new:
                    await new.receive()
                    removed = 0
                    async with asyncio.timeout(20):
                        while removed < 2:  # the line that tells node 0 is on its way
                            async for key in store.redis.scan_iter(f"*{topic}*", _type="STREAM"):
                                removed += await store.redis.xtrim(key, maxlen=0, approximate=False)
                    cluster.nodes[0].resume()
                    assert 4003 == await old.closed()
                    await cluster.send("alice", "hello")
                    await new.until_business(1)
            finally:
                cluster.nodes[0].resume()
        await store.close()
    assert {"there?"} >= set(messages(old))


async def test_a_zombie_delivers_nothing_that_is_no_longer_its_own(
    valkey: LocalValkey, bus_url: str, namespace: str
) -> None:
    """
    A node is stopped for longer than its lease. Its client goes elsewhere, acknowledges there, keeps the old socket.

    Back, the node has a message in its window and one on its topic that were acknowledged meanwhile: neither is sent.
    Its session is registered again and gets the next message, as does the new one.
    """
    async with (
        running_cluster(valkey.url, bus_url, namespace, nodes=2, PUSH_LEASE="1", PUSH_ACK_TIMEOUT="0.5") as cluster,
        connected(cluster.http, f"{cluster.socket_url(0)}?clientId=alice&ack=1") as old,
    ):
        await old.receive()
        in_window = await cluster.send("alice", "in the window")
        await old.until_business(1)
        cluster.nodes[0].pause()
        try:
            on_topic = await cluster.send("alice", "on the topic")
            await until_offline(cluster, "alice")
            async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId=alice&ack=1") as new:
                await new.until_business(2)
                await new.ack(in_window.message_id, on_topic.message_id)
                await until_held(valkey, namespace, "alice", 0)
                before = len(old.business)
                cluster.nodes[0].resume()
                await cluster.nodes[0].until_logged("lease_was_lost")
                after = await cluster.send("alice", "after")
                await old.until(lambda: "after" in messages(old))
                await new.until(lambda: "after" in messages(new))
        finally:
            cluster.nodes[0].resume()
    assert None is on_topic.body["content"]
    assert None is after.body["content"]
    assert {"after"} == {message["msg"] for message in old.business[before:]} - {"there?"}


async def test_a_zombies_session_that_was_replaced_ends(valkey: LocalValkey, namespace: str) -> None:
    """With one session a client: the old one closes 4003 when its node comes back, the new one is not disturbed."""
    async with (
        running_cluster(
            valkey.url, valkey.url, namespace, nodes=2, PUSH_LEASE="1", PUSH_SESSION_POLICY="client"
        ) as cluster,
        connected(cluster.http, f"{cluster.socket_url(0)}?clientId=alice&ack=1") as old,
    ):
        await old.receive()
        cluster.nodes[0].pause()
        try:
            await until_offline(cluster, "alice")
            async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId=alice&ack=1") as new:
                await new.receive()
                cluster.nodes[0].resume()
                assert 4003 == await old.closed()
                answer = await cluster.send("alice", "hello")
                await new.until_business(1)
        finally:
            cluster.nodes[0].resume()
    assert None is answer.body["content"]
    assert {"there?"} >= set(messages(old))


async def until_held(valkey: LocalValkey, namespace: str, client_id: str, count: int) -> None:
    """Until a client's inbox holds so many messages."""
    store = Store(valkey.url, namespace=namespace)
    async with asyncio.timeout(20):
        while max(0, await store.redis.hlen(store.keys.inbox(client_id)) - 1) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await store.close()
