"""Presence across two nodes: where clients are, ending their sessions, what a consumer is told of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from pushfleet.local_valkey import LocalValkey
from shared.bus import open_bus
from shared.errors import TopicMissing
from shared.presence import presence_topic
from shared.store import Store
from shared.upstream import UPSTREAM_QUEUES, upstream_topic
from tests.harness.client import Client, connected
from tests.harness.cluster import Answer, Cluster, running_cluster
from tests.harness.presence import watching
from tests.harness.remains import socket_of, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

MANY = 1000


async def delete(cluster: Cluster, path: str) -> Answer:
    async with cluster.http.delete(cluster.dispatcher_url + path) as answer:
        return Answer(answer.status, answer.headers.copy(), await answer.json(content_type=None))


async def session_of(client: Client) -> str:
    """What the connection frame says."""
    return str((await client.receive())["sessionId"])


async def online(cluster: Cluster, *client_ids: str) -> dict[str, bool]:
    answer = await cluster.post("/v1/clients/online", {"clientIds": client_ids})
    assert 200 == answer.status
    found: dict[str, bool] = answer.body["online"]
    return found


async def until_offline(cluster: Cluster, client_id: str) -> None:
    async def is_offline() -> bool:
        return not (await online(cluster, client_id))[client_id]

    await until(is_offline)


@asynccontextmanager
async def crowd(cluster: Cluster, node: int, count: int) -> AsyncIterator[list[Client]]:
    """m0, m1, ... on a node, one session each."""
    url = cluster.socket_url(node)
    clients: list[Client] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        try:
            for start in range(0, count, 50):
                names = [f"m{number}" for number in range(start, min(start + 50, count))]
                sockets = [http.ws_connect(f"{url}?clientId={name}") for name in names]
                clients += [Client(socket) for socket in await asyncio.gather(*sockets)]
            yield clients
        finally:
            await asyncio.gather(*(client.close() for client in clients))


async def test_where_a_client_is(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """Its sessions on both nodes, oldest first, with what they named; nobody is online who has none."""
    before_ms = time.time_ns() // 1_000_000
    async with (
        running_cluster(valkey.url, bus_url, namespace, nodes=2) as cluster,
        connected(cluster.http, socket_of(cluster, 1, "alice") + "&device=phone") as first,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as second,
    ):
        session_ids = [await session_of(first), await session_of(second)]
        answer = await cluster.get("/v1/clients/alice")
        assert 200 == answer.status
        sessions = answer.body.pop("sessions")
        assert {"clientId": "alice", "online": True} == answer.body
        for session in sessions:
            assert before_ms <= session.pop("since") <= time.time_ns() // 1_000_000
        nodes = [cluster.nodes[1].node_id, cluster.nodes[0].node_id]
        assert [
            {"sessionId": session_id, "clientId": "alice", "nodeId": node_id, "device": device}
            for session_id, node_id, device in zip(session_ids, nodes, ("phone", None), strict=True)
        ] == sessions
        one = await cluster.get(f"/v1/sessions/{session_ids[0]}")
        assert (200, "phone", "alice") == (one.status, one.body["device"], one.body["clientId"])
        assert {"alice": True, "bob": False} == await online(cluster, "alice", "bob", "alice")
        nobody = await cluster.get("/v1/clients/bob")
        assert {"clientId": "bob", "online": False, "sessions": []} == nobody.body
        await first.close()
        await second.close()
        await until_offline(cluster, "alice")
        assert 404 == (await cluster.get(f"/v1/sessions/{session_ids[0]}")).status


async def test_a_kick_ends_a_session(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """4002; the client's others stay until all are kicked. What is gone cannot be kicked."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, nodes=2) as cluster,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as first,
        connected(cluster.http, socket_of(cluster, 1, "alice")) as second,
        connected(cluster.http, socket_of(cluster, 1, "alice")) as third,
        connected(cluster.http, socket_of(cluster, 1, "bob")) as bob,
    ):
        session_id = await session_of(first)
        answer = await delete(cluster, f"/v1/sessions/{session_id}")
        assert (200, {"kicked": 1}) == (answer.status, answer.body)
        assert (4002, "kicked") == (await first.closed(), first.close_reason)

        async def is_gone() -> bool:
            return (await cluster.get(f"/v1/sessions/{session_id}")).status == 404

        await until(is_gone)
        assert 404 == (await delete(cluster, f"/v1/sessions/{session_id}")).status
        assert 2 == len((await cluster.get("/v1/clients/alice")).body["sessions"])
        assert {"kicked": 2} == (await delete(cluster, "/v1/clients/alice/sessions")).body
        assert [4002, 4002] == [await second.closed(), await third.closed()]
        await until_offline(cluster, "alice")
        assert {"kicked": 0} == (await delete(cluster, "/v1/clients/alice/sessions")).body
        await cluster.send("bob", "still here")
        await bob.until_business(1)


async def pages(cluster: Cluster, node_id: str, limit: int) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = []
    cursor = ""
    while True:
        answer = await cluster.get(f"/v1/nodes/{node_id}/sessions?limit={limit}&cursor={cursor}")
        assert 200 == answer.status
        found.append(answer.body["sessions"])
        cursor = answer.body["cursor"]
        if cursor is None:
            return found


async def test_a_nodes_sessions_page_by_page(valkey: LocalValkey, namespace: str) -> None:
    """A thousand, each once, whatever the pages' size; no page is empty but the last; another node's are not there."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, nodes=2) as cluster,
        crowd(cluster, 0, MANY),
        connected(cluster.http, socket_of(cluster, 1, "other")),
    ):
        node_id = cluster.nodes[0].node_id
        expected = sorted(f"m{number}" for number in range(MANY))
        for limit in (1, 100, 1000):
            found = await pages(cluster, node_id, limit)
            assert expected == sorted(session["clientId"] for page in found for session in page)
            assert {node_id} == {session["nodeId"] for page in found for session in page}
            assert all(limit <= len(page) <= limit + 150 for page in found[:-1])
        (page,) = await pages(cluster, cluster.nodes[1].node_id, 100)
        assert ["other"] == [session["clientId"] for session in page]
        assert 404 == (await cluster.get("/v1/nodes/10.9.9.9:9000/sessions")).status


async def test_events_in_the_order_of_their_stamps(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """Come, come elsewhere too, leave, and a node that is killed: what a consumer makes of it is how it is."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, nodes=2, PUSH_LEASE="1") as cluster,
        watching(bus_url, namespace) as watcher,
        connected(cluster.http, socket_of(cluster, 1, "bob")) as bob,
    ):
        bobs = await session_of(bob)
        async with connected(cluster.http, socket_of(cluster, 0, "alice") + "&device=phone") as first:
            one = await session_of(first)
            async with connected(cluster.http, socket_of(cluster, 1, "alice")) as second:
                two = await session_of(second)
            await watcher.until(lambda: 3 == len(watcher.of("alice")))
            expected = [("online", one, 1), ("online", two, 2), ("offline", two, 1)]
            assert expected == watcher.of("alice")
            killed = cluster.nodes[0].node_id
            await cluster.nodes[0].kill()
            await watcher.until(lambda: 4 == len(watcher.of("alice")))
        assert [*expected, ("offline", one, 0)] == watcher.of("alice")
        assert [("online", bobs, 1)] == watcher.of("bob")
        assert {"bob": 1} == watcher.online()
        ends = [event for event in watcher.events if event.session_id == one]
        assert [("phone", killed)] * 2 == [(event.device, event.node_id) for event in ends]
        assert all(abs(event.time - time.time() * 1000) < 60_000 for event in ends)
        assert {"alice": False, "bob": True} == await online(cluster, "alice", "bob")


async def test_a_killed_node_and_who_came_elsewhere(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """Fifty clients whose node dies, half of them on the other node before anybody notices: those stay online."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, nodes=2, PUSH_LEASE="1") as cluster,
        watching(bus_url, namespace) as watcher,
        crowd(cluster, 0, 50) as old,
    ):
        await watcher.until(lambda: 50 == len(watcher.online()))
        await cluster.nodes[0].kill()
        async with crowd(cluster, 1, 25):
            await watcher.until(lambda: {f"m{number}": 1 for number in range(25)} == watcher.online())
            assert 50 == sum(event.event == "offline" for event in watcher.events)
        await watcher.until(lambda: {} == watcher.online())
        assert 50 == len(old)


async def test_registered_again_is_no_event(valkey: LocalValkey, namespace: str) -> None:
    """A lease that was lost and taken again: the session was there all the time."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace) as cluster,
        watching(valkey.url, namespace) as watcher,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as alice,
    ):
        session_id = await session_of(alice)
        store = Store(valkey.url, namespace=namespace)
        (before,) = await store.redis.hvals(store.keys.route("alice"))
        await store.redis.delete(store.keys.lease(cluster.nodes[0].node_id))

        async def is_registered_again() -> bool:
            held: list[bytes] = await store.redis.hvals(store.keys.route("alice"))  # type: ignore[assignment]
            return [before] != held

        await until(is_registered_again)
        await store.close()
        async with connected(cluster.http, socket_of(cluster, 0, "witness")):
            await watcher.until(lambda: 1 == len(watcher.of("witness")))
        assert [("online", session_id, 1)] == watcher.of("alice")


async def test_a_node_that_was_stopped_for_too_long(valkey: LocalValkey, namespace: str) -> None:
    """Its session went offline when somebody cleaned up behind it, and comes online again with it."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, nodes=2, PUSH_LEASE="1") as cluster,
        watching(valkey.url, namespace) as watcher,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as alice,
    ):
        session_id = await session_of(alice)
        await watcher.until(lambda: 1 == len(watcher.of("alice")))
        cluster.nodes[0].pause()
        try:
            await watcher.until(lambda: 2 == len(watcher.of("alice")))
        finally:
            cluster.nodes[0].resume()
        await watcher.until(lambda: 3 == len(watcher.of("alice")))
        assert [("online", session_id, 1), ("offline", session_id, 0), ("online", session_id, 1)] == watcher.of("alice")


async def test_a_drain_tells_of_each_session(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """By the time that the node has ended."""
    async with (
        running_cluster(valkey.url, bus_url, namespace) as cluster,
        watching(bus_url, namespace) as watcher,
        crowd(cluster, 0, 100),
    ):
        await watcher.until(lambda: 100 == len(watcher.online()))
        assert 0 == await cluster.nodes[0].stop()
        await watcher.until(lambda: {} == watcher.online())
        assert 100 == sum(event.event == "offline" for event in watcher.events)


async def has_presence_topic(bus_url: str, namespace: str) -> bool:
    bus = open_bus(bus_url, namespace=namespace)
    try:
        return await bus.queue_count(presence_topic(namespace)) > 0
    except TopicMissing:
        return False
    finally:
        await bus.close()


@pytest.mark.parametrize(
    ("presence", "create", "expected"), [("on", "1", True), ("off", "1", False), ("on", "0", False)]
)
async def test_who_makes_the_topic(
    valkey: LocalValkey, namespace: str, presence: str, create: str, expected: bool
) -> None:
    """The roles, before they are healthy; not where nobody wants it, or the site makes the topics itself."""
    bus = open_bus(valkey.url, namespace=namespace)
    await bus.ensure_topic(upstream_topic(namespace), queues=UPSTREAM_QUEUES)
    await bus.close()
    async with (
        running_cluster(
            valkey.url, valkey.url, namespace, PUSH_PRESENCE=presence, PUSH_CREATE_TOPICS=create
        ) as cluster,
        connected(cluster.http, socket_of(cluster, 0, "alice")) as alice,
    ):
        await session_of(alice)
        assert {"alice": True} == await online(cluster, "alice")
        assert expected is await has_presence_topic(valkey.url, namespace)
