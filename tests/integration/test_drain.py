"""
Drains of real nodes: by request, by signal, taken back, in a hurry, with everything around them away.

Each node has its drain's time from the test. Where it is long the test's own deadline shows that nobody waited for it.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import aiohttp
import msgspec
import pytest

from pushfleet.local_valkey import LocalValkey
from shared.registry import DrainRequest
from shared.store import Store
from tests.harness.client import Client
from tests.harness.cluster import Cluster, Role, running_cluster
from tests.harness.drain import (
    DEADLINE_S,
    FOREVER,
    advice,
    ask,
    clients_on,
    draining,
    exists,
    left_in_redis,
    logged,
    open_ones,
    seen,
    serving,
    until,
    until_seen,
)
from tests.integration.test_faults import stop_reading

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_node_leaves_on_request(valkey: LocalValkey, bus_url: str, namespace: str) -> None:
    """
    Offered to nobody; sessions closed 1001 with pauses that differ; nothing left in Redis or on the bus; exit 0.

    How far it is stands in the list of nodes, on the admin port, among the metrics and in the log.
    """
    async with running_cluster(valkey.url, bus_url, namespace, nodes=2) as cluster, clients_on(cluster, 20) as clients:
        node = cluster.nodes[0]
        admin = f"http://127.0.0.1:{node.ready['admin_port']}"
        asked = await ask(cluster, "POST", node, seconds=4)
        told = await until_seen(cluster, node, draining)
        await until(lambda: bool(logged(node, "drain_progress")))
        async with cluster.http.get(f"{admin}/sessions") as answer:
            counts = await answer.json()
        async with cluster.http.get(f"{admin}/metrics") as answer:
            gauge = re.search(r"^push_node_drain_left (\S+)$", await answer.text(), re.MULTILINE)
        codes = [await client.closed() for client in clients]
        code = await node.ended()
        offered = await cluster.get("/server/get?clientId=c1")
        gone = await seen(cluster, node)
        left = await left_in_redis(valkey, namespace, node)
        topic_is_there = await exists(bus_url, namespace, node.ready["topic"])

    assert (202, "serving") == (asked.status, asked.body["state"])
    assert ("request", 4.0, 20) == tuple(told["drain"][name] for name in ("by", "seconds", "sessions"))
    assert 0 < counts["drain"]["left"] <= 20
    assert gauge is not None
    assert 0 < float(gauge[1]) <= 20
    assert {1001} == set(codes)
    assert all(0 <= advice(client) <= 1000 for client in clients)
    assert len({advice(client) for client in clients}) > 10
    assert 0 == code
    assert cluster.socket_url(1) == offered.body["content"]["url"]
    assert None is gone
    assert [] == left
    assert not topic_is_there
    assert [0] == [line["left"] for line in logged(node, "drained")]


async def test_a_drain_is_taken_back_halfway(valkey: LocalValkey, namespace: str) -> None:
    """
    Who is still here stays and is served, others may come, and the node can be drained again.

    At once, that time: then clients are told to stay away until dispatchers know.
    """
    async with running_cluster(valkey.url, valkey.url, namespace) as cluster, clients_on(cluster, 20) as clients:
        node = cluster.nodes[0]
        await ask(cluster, "POST", node, seconds=10)
        await until(lambda: len(open_ones(clients)) <= 14)
        aborted = await ask(cluster, "DELETE", node)
        await until_seen(cluster, node, serving)
        await node.until_logged("drain_aborted")
        stayed = open_ones(clients)
        async with clients_on(cluster, 3, "new") as more:
            offered = await cluster.get("/server/get?clientId=another")
            for client in (*stayed, *more):
                await client.send({"msgType": 3, "messageId": "here"})
                await client.receive_type(4)
            names = [f"c{number}" for number, client in enumerate(clients) if client in stayed]
            await cluster.send(names, "hello")
            for client in stayed:
                await client.until_business(1)
            again = await ask(cluster, "POST", node, seconds=0)
            codes = [await client.closed() for client in (*stayed, *more)]
        code = await node.ended()

    assert 202 == aborted.status
    assert 0 < len(stayed) <= 14
    assert 200 == offered.status
    assert 202 == again.status
    assert {1001} == set(codes)
    assert 0 == code
    assert all(600 < advice(client) <= 2200 for client in (*stayed, *more))
    assert [20, len(stayed) + 3] == [line["sessions"] for line in logged(node, "drain_started")]


async def test_a_signal_cannot_be_taken_back_and_a_second_one_hurries(valkey: LocalValkey, namespace: str) -> None:
    """409; then all are closed at once, who does not answer is cut off, and the node ends though it had an hour."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, PUSH_DRAIN_SECONDS=str(FOREVER)) as cluster,
        clients_on(cluster, 20) as clients,
    ):
        node = cluster.nodes[0]
        silent = stop_reading(node.ready["port"], "silent")
        await until_online(cluster, "silent")
        node.terminate()
        told = await until_seen(cluster, node, draining)
        asked, aborted = await ask(cluster, "POST", node, seconds=1), await ask(cluster, "DELETE", node)
        await node.until_healthy(cluster.http, 503)
        node.terminate()
        codes = [await client.closed() for client in clients]
        code = await node.ended()
        silent.close()

    assert ("signal", FOREVER) == (told["drain"]["by"], told["drain"]["seconds"])
    assert (200, 409) == (asked.status, aborted.status)
    assert "wrong_state" == aborted.body["code"]
    assert {1001} == set(codes)
    assert 0 == code


async def test_a_signal_takes_over_what_a_request_began(valkey: LocalValkey, namespace: str) -> None:
    """From then on it cannot be taken back; a request that is gone from Redis all the same changes nothing."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, PUSH_DRAIN_SECONDS="0.5") as cluster,
        clients_on(cluster, 5) as clients,
    ):
        node = cluster.nodes[0]
        await ask(cluster, "POST", node, seconds=FOREVER)
        await until_seen(cluster, node, draining)
        node.terminate()
        await until_seen(cluster, node, lambda found: found["drain"]["by"] == "signal")
        aborted = await ask(cluster, "DELETE", node)
        store = Store(valkey.url, namespace=namespace)
        removed = await store.redis.delete(store.keys.drain(node.node_id))
        await store.close()
        before = len(logged(node, "drain_progress"))
        await until(lambda: len(logged(node, "drain_progress")) >= before + 3)  # a few renewals later
        node.terminate()
        codes = [await client.closed() for client in clients]
        code = await node.ended()

    assert (409, 1) == (aborted.status, removed)
    assert [] == logged(node, "drain_aborted")
    assert {1001} == set(codes)
    assert 0 == code


async def until_online(cluster: Cluster, client_id: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await cluster.send(client_id, "there?", durable=False)).body["content"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_who_was_sent_here_just_before_is_taken(valkey: LocalValkey, namespace: str) -> None:
    """
    Unhealthy at once, but clients are taken until dispatchers must have noticed; refused with Retry-After from then on.
    """
    async with (
        running_cluster(valkey.url, valkey.url, namespace, nodes=3, PUSH_DRAIN_SECONDS=str(FOREVER)) as cluster,
        clients_on(cluster, 1) as (first,),
    ):
        for place in range(3):
            taken = await connects_while_draining(cluster, place)
            if taken is not None:  # else this machine stood still for too long to tell
                break
        status, headers = await until_refused(cluster, 0)
        await asyncio.gather(*map(hurry, cluster.nodes))
        code = await first.closed()

    assert taken is True
    assert 503 == status
    assert int(headers["Retry-After"]) > 0
    assert 1001 == code


async def connects_while_draining(cluster: Cluster, place: int) -> bool | None:
    """Whether a client is taken right behind the signal; None when that was not at once."""
    node = cluster.nodes[place]
    began = time.monotonic()
    node.terminate()
    await node.until_healthy(cluster.http, 503)
    try:
        async with cluster.http.ws_connect(f"{cluster.socket_url(place)}?clientId=late{place}") as socket:
            return (await socket.receive()).type == aiohttp.WSMsgType.TEXT
    except aiohttp.WSServerHandshakeError:
        return False if time.monotonic() - began < 1.0 else None


async def until_refused(cluster: Cluster, place: int) -> tuple[int, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                async with cluster.http.ws_connect(f"{cluster.socket_url(place)}?clientId=later"):
                    await asyncio.sleep(0.05)
            except aiohttp.WSServerHandshakeError as error:
                return error.status, error.headers


async def hurry(node: Role) -> None:
    """Signals until it ends."""
    node.terminate()
    await node.until_logged("drain_started")
    await node.stop()


async def test_a_request_for_an_earlier_start_is_not_obeyed(valkey: LocalValkey, namespace: str) -> None:
    """The node serves on through renewals that bring it, and obeys one that is for it."""
    async with running_cluster(valkey.url, valkey.url, namespace) as cluster:
        node, store = cluster.nodes[0], Store(valkey.url, namespace=namespace)
        stale = msgspec.json.encode(DrainRequest("old", "of an earlier start"))
        await store.redis.set(store.keys.drain(node.node_id), stale)
        async with clients_on(cluster, 3) as clients:
            await until_seen(cluster, node, lambda found: found["connections"] == 3)
            unmoved = [*logged(node, "drain_started")]
            asked = await ask(cluster, "POST", node, seconds=0)
            codes = [await client.closed() for client in clients]
        code = await node.ended()
        await store.close()

    assert [] == unmoved
    assert 202 == asked.status
    assert {1001} == set(codes)
    assert 0 == code


async def test_it_takes_longer_when_the_pace_demands_it(valkey: LocalValkey, namespace: str) -> None:
    """20 sessions at 10 a second take 2 s, though PUSH_DRAIN_SECONDS is 0.5: it says so."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, PUSH_DRAIN_SECONDS="0.5", PUSH_DRAIN_PACE="10") as cluster,
        clients_on(cluster, 20) as clients,
    ):
        node = cluster.nodes[0]
        await ask(cluster, "POST", node)
        told = await until_seen(cluster, node, draining)
        codes = [await client.closed() for client in clients]
        code = await node.ended()

    assert 2.0 == told["drain"]["seconds"]
    assert [(0.5, 2.0)] == [(line["asked"], line["seconds"]) for line in logged(node, "drain_started")]
    assert {1001} == set(codes)
    assert 0 == code


async def test_guests_do_not_become_sessions_of_a_node_that_leaves(valkey: LocalValkey, namespace: str) -> None:
    """A connection whose first frame has yet to name its client closes 1001 with the others."""
    async with running_cluster(valkey.url, valkey.url, namespace, PUSH_DRAIN_SECONDS="0.1") as cluster:
        guest = Client(await cluster.http.ws_connect(cluster.socket_url()))
        cluster.nodes[0].terminate()
        code = await guest.closed()
        await guest.close()
        ended = await cluster.nodes[0].ended()

    assert (1001, 0) == (code, ended)
    assert 0 <= advice(guest) <= 1000


async def test_without_redis_and_bus_a_node_ends_all_the_same(private_valkey: LocalValkey) -> None:
    """Its sessions are told where to go; exit 0."""
    async with (
        running_cluster(private_valkey.url, private_valkey.url, "t", PUSH_DRAIN_SECONDS="0.2") as cluster,
        clients_on(cluster, 3) as clients,
    ):
        private_valkey.kill()
        cluster.nodes[0].terminate()
        codes = [await client.closed() for client in clients]
        async with asyncio.timeout(60):
            code = await cluster.nodes[0].ended()
        await private_valkey.restart()

    assert {1001} == set(codes)
    assert 0 == code
