"""The broker is killed under sends: they wait in the outbox, and arrive in order when it is back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from shared.store import Store
from tests.harness.client import connected
from tests.harness.cluster import Cluster, running_cluster
from tests.harness.rocketmq import running_rocketmq

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until_outbox_is_empty(store: Store) -> None:
    async with asyncio.timeout(60):
        while await store.redis.exists(store.keys.outbox[0]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def send_by(cluster: Cluster, dispatcher: int, client_id: str, msg: object, **fields: object) -> int:
    url = cluster.url_of(cluster.dispatchers[dispatcher])
    return (await cluster.post_to(url, "/message/send", {"to": client_id, "msg": msg, **fields})).status


async def test_a_broker_that_comes_back(valkey: LocalValkey, namespace: str, tmp_path: Path) -> None:
    """
    kill -9 of the broker: sends through both dispatchers are 200, sessions stay, the node takes new ones.

    Its restart: all comes in order and once, also after the dispatcher that took most of it was killed; what is sent
    behind it comes behind it. durable:false waits as well.
    """
    store = Store(valkey.url, namespace=namespace)
    async with (
        running_rocketmq(tmp_path) as broker,
        running_cluster(valkey.url, broker.url, namespace, dispatchers=2) as cluster,
        connected(cluster.http, f"{cluster.socket_url()}?clientId=alice") as client,
    ):
        await client.receive()
        for number in range(10):
            await cluster.send("alice", number)
        broker.kill()
        first = [await send_by(cluster, 0, "alice", number) for number in range(10, 30)]
        await cluster.dispatchers[1].until_healthy(cluster.http)
        second = [await send_by(cluster, 1, "alice", number, durable=number % 2 == 0) for number in range(30, 40)]
        async with connected(cluster.http, f"{cluster.socket_url()}?clientId=late") as late:
            assert (await late.receive())["msgType"] == 0  # the inbox replays, so a node keeps taking sockets
        async with cluster.http.get(cluster.dispatchers[1].health_url) as answer:
            health = await answer.json()
        await cluster.dispatchers[0].kill()
        await broker.restart()
        third = [await send_by(cluster, 1, "alice", number) for number in range(40, 60)]
        got = await client.until_business(60)
        await until_outbox_is_empty(store)
        last = await send_by(cluster, 1, "alice", "light")
        await client.until_business(61)
        cluster.dispatchers.pop(0)
    await store.close()

    assert {200} == {*first, *second, *third, last}
    assert "degraded" == health["status"]
    assert list(range(60)) == [message["msg"] for message in got]
    assert "light" == client.business[-1]["msg"]


async def test_a_full_outbox_refuses_and_keeps_what_it_took(
    valkey: LocalValkey, namespace: str, tmp_path: Path
) -> None:
    """503 with Retry-After beyond PUSH_OUTBOX_BYTES, /healthz 503; what was answered 200 arrives; then all is well."""
    async with (
        running_rocketmq(tmp_path) as broker,
        running_cluster(valkey.url, broker.url, namespace, PUSH_OUTBOX_BYTES="20000") as cluster,
        connected(cluster.http, f"{cluster.socket_url()}?clientId=alice") as client,
    ):
        await client.receive()
        broker.kill()
        answers = [
            await cluster.post("/message/send", {"to": "alice", "msg": [number, "x" * 3000], "durable": False})
            for number in range(10)
        ]
        await cluster.dispatchers[0].until_healthy(cluster.http, 503)
        await broker.restart()
        taken = [number for number, answer in enumerate(answers) if answer.status == 200]
        got = await client.until_business(len(taken))
        await cluster.dispatchers[0].until_healthy(cluster.http)
        await cluster.send("alice", [99])
        await client.until_business(len(taken) + 1)

    assert {200, 503} == {answer.status for answer in answers}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers if answer.status == 503)
    assert taken == [message["msg"][0] for message in got][: len(taken)]


async def test_a_broker_that_refuses_writes(valkey: LocalValkey, namespace: str, tmp_path: Path) -> None:
    """It answers and stores nothing, as one whose disk is full: sends wait in the outbox."""
    async with (
        running_rocketmq(tmp_path) as broker,
        running_cluster(valkey.url, broker.url, namespace) as cluster,
        connected(cluster.http, f"{cluster.socket_url()}?clientId=alice") as client,
    ):
        await client.receive()
        await restart(broker, brokerPermission="4")  # read only
        statuses = [await send_by(cluster, 0, "alice", number) for number in range(5)]
        await restart(broker)
        got = await client.until_business(5)

    assert [200] * 5 == statuses
    assert list(range(5)) == [message["msg"] for message in got]


async def restart(broker: LocalRocketMQ, **options: str) -> None:
    broker.kill()
    broker.broker_options = options
    await broker.restart()
