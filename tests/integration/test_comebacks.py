"""Nodes that come back while a janitor cleans up behind them, or after: on both buses none is harmed by it."""

from __future__ import annotations

import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.client import connected
from tests.harness.cluster import Role, running_cluster
from tests.harness.remains import logged, messages, node_id_of, remains_of, socket_of, until, until_arrives

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_node_that_wakes_up_after_its_burial(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """It makes its topic anew, registers its session under a new epoch, and what was stored meanwhile arrives."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, PUSH_LEASE="1", PUSH_RECONCILE_SECONDS="600") as cluster,
        remains_of(valkey.url, bus_url, namespace) as remains,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as client,
    ):
        node_id = node_id_of(cluster.nodes[0])
        session_id = (await client.receive())["sessionId"]
        await cluster.send("alice", "before")
        await client.until_business(1)
        (start,) = await remains.starts(node_id)
        cluster.nodes[0].pause()
        try:
            await cluster.send("alice", "on the topic")
            await remains.until_gone(node_id)
            await cluster.send("alice", "while it was away")
            cluster.nodes[0].resume()
            await client.until(lambda: {"on the topic", "while it was away"} <= set(messages(client)))
            await until_arrives(cluster, client, "alice")
        finally:
            cluster.nodes[0].resume()
        (new_start,) = await remains.starts(node_id)
        assert start != new_start
        assert {session_id} == await remains.routes("alice") == await remains.sessions(node_id)
        assert await remains.has_topic(node_id)


async def test_a_node_that_wakes_up_while_it_is_buried(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """It waits; then it comes back as one that wakes up later."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, PUSH_LEASE="1", PUSH_RECONCILE_SECONDS="600") as cluster,
        remains_of(valkey.url, bus_url, namespace) as remains,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as client,
    ):
        node_id = node_id_of(cluster.nodes[0])
        await client.receive()
        burials = await remains.be_janitor()
        cluster.nodes[0].pause()
        try:
            await cluster.send("alice", "on the topic")
            await remains.until_dead(node_id)
            assert await burials.begin(node_id, life_s=60)
            cluster.nodes[0].resume()
            await cluster.nodes[0].until_logged("lease_not_taken")
            await cluster.send("alice", "while it was away")
            assert [] == messages(client)
            await remains.bury(burials, node_id)
            await remains.lock.release()
            await client.until(lambda: {"on the topic", "while it was away"} <= set(messages(client)))
            await until_arrives(cluster, client, "alice")
        finally:
            cluster.nodes[0].resume()
        assert await remains.has_topic(node_id)


async def test_a_node_that_is_started_again_while_it_is_buried(
    valkey: LocalValkey, bus_url: str, namespace: str
) -> None:
    """At the same address: it takes no sessions until the burial is over, and then has a topic."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, PUSH_LEASE="1", PUSH_RECONCILE_SECONDS="600") as cluster,
        remains_of(valkey.url, bus_url, namespace) as remains,
    ):
        node_id = node_id_of(cluster.nodes[0])
        burials = await remains.be_janitor()
        await cluster.nodes[0].kill()
        await remains.until_dead(node_id)
        assert await burials.begin(node_id, life_s=60)
        variables = {"PUSH_NODE_PORT": node_id.rpartition(":")[2], "PUSH_ADMIN_PORT": "0"}
        again = Role("gateway_node", cluster.variables | variables | {"PUSH_RECONCILE_SECONDS": "600"})
        cluster.nodes.append(again)
        await again.start()
        await again.until_logged("lease_not_taken")
        await again.until_healthy(cluster.http, 503)
        await remains.bury(burials, node_id)
        await remains.lock.release()
        await again.until_healthy(cluster.http)
        async with connected(cluster.http, socket_of(cluster, 1, "alice")) as client:
            await client.receive()
            await until_arrives(cluster, client, "alice")


async def test_a_node_that_is_started_again_within_its_lease(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """At the same address: the old start and its routes go, the topic with what is in it stays."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, PUSH_LEASE="3") as cluster,
        remains_of(valkey.url, bus_url, namespace) as remains,
    ):
        node_id = node_id_of(cluster.nodes[0])
        async with (
            connected(cluster.http, socket_of(cluster, 0, "alice")) as client,
            connected(cluster.http, socket_of(cluster, 0, "bob")),
        ):
            await client.receive()
            (start,) = await remains.starts(node_id)
            await cluster.nodes[0].kill()
        old = await remains.sessions(node_id)
        again = await cluster.add_node(PUSH_NODE_PORT=node_id.rpartition(":")[2])
        async with connected(cluster.http, socket_of(cluster, 1, "alice")) as client:
            session_id = (await client.receive())["sessionId"]

            async def is_cleaned() -> bool:
                return start not in await remains.starts(node_id)

            await until(is_cleaned)
            assert 1 == len(await remains.starts(node_id))
            assert {session_id} == await remains.routes("alice") == await remains.sessions(node_id)
            assert set() == await remains.routes("bob")
            await until_arrives(cluster, client, "alice")
        await again.until_healthy(cluster.http)
        (line,) = logged(cluster, "start_cleaned")
        assert [] == logged(cluster, "node_buried")
    assert 2 == len(old) == line["routes"]


async def test_a_topic_that_somebody_deleted_is_made_again(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """A janitor that was stopped for too long may do so; the node's sweep makes it anew."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, PUSH_RECONCILE_SECONDS="1") as cluster,
        remains_of(valkey.url, bus_url, namespace) as remains,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as client,
    ):
        await client.receive()
        await remains.bus.drop_topic(cluster.nodes[0].ready["topic"])
        await cluster.send("alice", "stored")
        await client.until_business(1)
        await until_arrives(cluster, client, "alice")
