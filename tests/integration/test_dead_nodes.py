"""Nodes that die, and what the janitor leaves of them: nothing; whichever dispatcher it is, and whatever is away."""

from __future__ import annotations

import asyncio
import os
import signal

import orjson
import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.client import connected
from tests.harness.cluster import Cluster, Role, running_cluster
from tests.harness.dispatcher import Site, running_dispatcher
from tests.harness.remains import Remains, logged, messages, node_id_of, remains_of, socket_of, until, until_arrives

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_killed_node_leaves_nothing(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """kill -9: lease, start, routes, index and topic go; those of another node stay."""
    names = [f"c_{number}" for number in range(40)]
    async with (
        running_cluster(valkey.url, bus_url, namespace, nodes=2, PUSH_LEASE="1") as cluster,
        remains_of(valkey.url, bus_url, namespace) as remains,
        connected(cluster.http, socket_of(cluster, 1, "other")) as other,
    ):
        await other.receive()
        clients = [connected(cluster.http, socket_of(cluster, 0, name)) for name in names]
        for client in await asyncio.gather(*(client.__aenter__() for client in clients)):
            await client.receive()
        await cluster.nodes[0].kill()
        await asyncio.gather(*(client.__aexit__(None, None, None) for client in clients))
        assert 40 == len(await remains.sessions(node_id_of(cluster.nodes[0])))
        await remains.until_gone(node_id_of(cluster.nodes[0]))
        assert [set()] * 40 == [await remains.routes(name) for name in names]
        assert await remains.has_topic(node_id_of(cluster.nodes[1]))
        await cluster.send("other", "hello")
        await other.until_business(1)
        (line,) = logged(cluster, "node_buried")
    assert (40, "deleted", 0) == (line["routes"], line["topic"], line["rerouted"])


async def test_what_nobody_stored_goes_to_where_its_client_is_now(
    valkey: LocalValkey, bus_url: str, namespace: str
) -> None:
    """
    `durable:false` records that a node did not read before it died: the same message, byte for byte, once.

    Stored ones do not come twice; what was for everyone comes out of its timeline.
    """
    body = b'{"to":"a_b","msg":{ "a" :\n 1.0, "sessionId":"x" },"durable":false,"requestId":"r1","from":"me"}'
    async with (
        running_cluster(valkey.url, bus_url, namespace, nodes=2, PUSH_LEASE="1") as cluster,
        remains_of(valkey.url, bus_url, namespace) as remains,
        connected(cluster.http, socket_of(cluster, 0, "a_b")) as old,
        connected(cluster.http, socket_of(cluster, 1, "witness")) as witness,
    ):
        await old.receive()
        await witness.receive()
        await remains.be_janitor()
        cluster.nodes[0].pause()
        answer = await cluster.post("/message/send", body)
        stored = await cluster.send("a_b", "stored")
        await cluster.send([], "to all", sendToAll=True)
        await witness.until_business(1)
        async with connected(cluster.http, socket_of(cluster, 1, "a_b")) as new:
            connection = await new.receive()
            await new.until_business(2)
            await cluster.nodes[0].kill()
            await remains.lock.release()
            await remains.until_gone(node_id_of(cluster.nodes[0]))
            await until_arrives(cluster, new, "a_b")
            (line,) = logged(cluster, "node_buried")
            await new.ack(stored.message_id)
    assert None is answer.body["content"]
    got = [message for message in new.business if message["messageId"] == answer.message_id]
    assert 1 == len(got)
    expected = {
        "from": "me",
        "messageId": answer.message_id,
        "msg": {"a": 1.0, "sessionId": "x"},
        "requestId": "r1",
        "sessionId": connection["sessionId"],
        "to": "a_b",
        "trigger": 1,
        "msgType": 1,
    }
    assert expected == {name: value for name, value in got[0].items() if name != "activeTime"}
    assert any(b'"msg":{ "a" :\n 1.0, "sessionId":"x" },' in raw for raw in new.raw)
    assert 1 == line["rerouted"]
    assert 1 == messages(new).count("stored")
    assert 1 == messages(new).count("to all")


async def begin_a_burial(cluster: Cluster, remains: Remains, bus: LocalValkey) -> str:
    """The node is dead, and the first dispatcher has marked it; the bus and the other dispatcher are stopped."""
    node_id = node_id_of(cluster.nodes[0])
    await remains.be_janitor()
    await cluster.nodes[0].kill()
    cluster.dispatchers[1].pause()
    await remains.until_dead(node_id)
    os.kill(bus.pid, signal.SIGSTOP)
    await remains.lock.release()
    await remains.until_marked(node_id)
    return node_id


async def test_a_janitor_that_is_killed_in_the_middle(
    private_valkey: LocalValkey, valkey: LocalValkey, namespace: str
) -> None:
    """Another dispatcher finishes what it began; the bus did not answer when the first one was killed."""
    async with (
        running_cluster(valkey.url, private_valkey.url, namespace, dispatchers=2, PUSH_LEASE="1") as cluster,
        remains_of(valkey.url, private_valkey.url, namespace) as remains,
    ):
        try:
            node_id = await begin_a_burial(cluster, remains, private_valkey)
            await cluster.dispatchers[0].kill()
        finally:
            os.kill(private_valkey.pid, signal.SIGCONT)
            cluster.dispatchers[1].resume()
        assert [f"{node_id} "] == [start[: len(node_id) + 1] for start in await remains.starts(node_id)]
        await remains.until_gone(node_id)
        assert 1 == len(logged(cluster, "node_buried"))


async def test_a_janitor_that_was_stopped_for_too_long(
    private_valkey: LocalValkey, valkey: LocalValkey, namespace: str
) -> None:
    """Meanwhile another one finished and the node is back: its topic and its start stay."""
    async with (
        running_cluster(
            *(valkey.url, private_valkey.url, namespace),
            dispatchers=2,
            PUSH_LEASE="1",
            PUSH_RECONCILE_SECONDS="600",
        ) as cluster,
        remains_of(valkey.url, private_valkey.url, namespace) as remains,
    ):
        try:
            node_id = await begin_a_burial(cluster, remains, private_valkey)
            cluster.dispatchers[0].pause()
            os.kill(private_valkey.pid, signal.SIGCONT)
            cluster.dispatchers[1].resume()
            await remains.until_gone(node_id)
            await cluster.add_node(PUSH_NODE_PORT=node_id.rpartition(":")[2])
            async with connected(cluster.http, socket_of(cluster, 1, "alice")) as client:
                await client.receive()
                cluster.dispatchers[0].resume()
                await until(lambda: logged_any(cluster.dispatchers[0], "janitor_lock_lost", "burial_waits"))
                await until_arrives(cluster, client, "alice")
        finally:
            os.kill(private_valkey.pid, signal.SIGCONT)
            for dispatcher in cluster.dispatchers:
                dispatcher.resume()
        assert 1 == len(await remains.starts(node_id))
        assert 1 == len(logged(cluster, "node_buried"))


async def logged_any(role: Role, *events: str) -> bool:
    return any(line.get("event") in events for line in role.log)


async def test_the_bus_is_away_when_a_node_dies(
    private_valkey: LocalValkey, valkey: LocalValkey, namespace: str
) -> None:
    """Its routes go all the same; its topic when the bus is back."""
    async with (
        running_cluster(valkey.url, private_valkey.url, namespace, PUSH_LEASE="1") as cluster,
        remains_of(valkey.url, private_valkey.url, namespace) as remains,
    ):
        node_id = node_id_of(cluster.nodes[0])
        async with connected(cluster.http, socket_of(cluster, 0, "alice")) as client:
            await client.receive()
            private_valkey.kill()
            await cluster.nodes[0].kill()

        async def has_no_sessions() -> bool:
            return not await remains.sessions(node_id)

        await until(has_no_sessions)
        assert set() == await remains.routes("alice")
        assert 1 == len(await remains.starts(node_id))
        await private_valkey.restart()
        await remains.until_gone(node_id)


async def test_redis_is_away_when_a_node_dies(private_valkey: LocalValkey, namespace: str) -> None:
    """The janitor waits until it is back."""
    url = private_valkey.url
    async with running_cluster(url, url, namespace, PUSH_LEASE="1") as cluster:
        private_valkey.kill()
        await cluster.nodes[0].kill()
        await cluster.dispatchers[0].until_logged("janitor_waits")
        await private_valkey.restart()
        async with remains_of(url, url, namespace) as remains:
            await remains.until_gone(node_id_of(cluster.nodes[0]))


async def test_many_nodes_die_at_once(valkey: LocalValkey, namespace: str) -> None:
    """Each is buried, once, whichever of two dispatchers does it."""
    site = Site(valkey.url, namespace)
    nodes = [site.silent_node() for _ in range(20)]
    for node in nodes:
        await site.bus.ensure_topic(node.topic)
        await node.connect("alice")
        await node.lease(life_s=1)
    async with (
        running_dispatcher(valkey.url, namespace, PUSH_LEASE="1") as one,
        running_dispatcher(valkey.url, namespace, PUSH_LEASE="1") as other,
        remains_of(valkey.url, valkey.url, namespace) as remains,
    ):
        for node in nodes:
            await remains.until_gone(node.node_id)
    buried = [line["node_id"] for line in (*one.log, *other.log) if line["event"] == "node_buried"]
    assert sorted(node.node_id for node in nodes) == sorted(buried)
    assert set() == await site.routes("alice")
    await site.close()


async def test_what_was_done_is_counted(valkey: LocalValkey, namespace: str) -> None:
    """Nodes buried, routes cleaned, lines rerouted."""
    site = Site(valkey.url, namespace)
    lives = await site.node()
    node = site.silent_node()
    await site.bus.ensure_topic(node.topic)
    for name in ("alice", "bob"):
        await node.connect(name)
    await node.lease(life_s=60)
    async with running_cluster(valkey.url, valkey.url, namespace, nodes=0, PUSH_LEASE="1") as cluster:
        sent = await cluster.send("alice", "hello", durable=False)
        await lives.connect("alice")
        await site.registry.release(node.node_id, node.epoch, clean=False)
        (line,) = await lives.lines_of(sent.message_id)
        async with remains_of(valkey.url, valkey.url, namespace) as remains:
            await remains.until_gone(node.node_id)
        async with cluster.http.get(f"{cluster.dispatcher_url}/metrics") as answer:
            text = await answer.text()
    await site.close()
    assert "hello" == orjson.loads(line.envelope)["msg"]
    for name, count in (("nodes_buried", 1), ("routes_cleaned", 2), ("rerouted", 1)):
        assert f"push_{name}_total {count}.0" in text
