"""A whole cluster whose Redis, and with it the bus, is a Redis Cluster or the master that Sentinels name."""

from __future__ import annotations

import asyncio

from tests.harness.client import Client, connected
from tests.harness.cluster import Answer, Cluster, running_cluster
from tests.harness.valkey_sites import SentinelSite, ValkeyCluster, ask

DEADLINE_S = 30.0
TARGETS = [f"c_{number}" for number in range(100)]


def url_of(cluster: Cluster, client_id: str) -> str:
    return f"{cluster.socket_url()}?clientId={client_id}&ack=1"


async def send_until_taken(cluster: Cluster, **fields: object) -> Answer:
    """The same send (requestId) again until it is answered 200."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            answer = await cluster.post("/message/send", fields)
            if answer.status == 200:
                return answer
            assert answer.status == 503, answer
            await asyncio.sleep(0.1)


async def acknowledged(client: Client, count: int) -> list[object]:
    """What came, once each; all of it acknowledged."""
    frames = await client.until_business(count)
    await client.ack(*(frame["messageId"] for frame in frames))
    return [frame["msg"] for frame in frames]


async def test_messages_arrive_on_a_redis_cluster(valkey_cluster: ValkeyCluster, namespace: str) -> None:
    """
    Sends to one, to a hundred in all partitions, to everyone, to who is away; repeated ones; the place to connect to.

    With PUSH_BUS_URL empty the streams are on the same Redis Cluster.
    """
    async with running_cluster(valkey_cluster.url, "", namespace) as cluster:
        await cluster.send("away", 1)
        async with connected(cluster.http, url_of(cluster, "c_0")) as one:
            await one.receive_type(0)
            first = await cluster.send("c_0", "single", requestId="r1")
            again = await cluster.send("c_0", "single", requestId="r1")
            assert first.message_id == again.message_id
            many = await cluster.send(TARGETS, "many")
            assert set(TARGETS[1:]) == set(many.body["content"])
            everyone = await cluster.post("/message/send", {"sendToAll": True, "msg": "all"})
            assert 200 == everyone.status
            assert {"single", "many", "all"} == set(await acknowledged(one, 3))
        async with connected(cluster.http, url_of(cluster, "away")) as back:
            assert [1] == await acknowledged(back, 1)
        async with connected(cluster.http, url_of(cluster, TARGETS[-1])) as last:
            assert ["many"] == await acknowledged(last, 1)
        place = await cluster.get("/server/get?clientId=c_0")
        assert 200 == place.status


async def test_a_failover_behind_sentinels_loses_nothing(sentinel_site: SentinelSite, namespace: str) -> None:
    """
    The master of Redis and of the bus is killed: sends are answered 503 for a moment, then 200.

    The socket stays, and everything that was answered 200 arrives.
    """
    async with running_cluster(sentinel_site.url, "", namespace, PUSH_LEASE="5") as cluster:
        async with connected(cluster.http, url_of(cluster, "c_0")) as client:
            await client.receive_type(0)
            for number in range(10):
                await cluster.send("c_0", number)
            assert 1 == await ask(sentinel_site.master.port, "WAIT", 1, 10_000)
            sentinel_site.master.kill()
            for number in range(10, 20):
                await send_until_taken(cluster, to="c_0", msg=number, requestId=f"r{number}")
            await client.until(lambda: len({frame["messageId"] for frame in client.business}) >= 20)
            assert set(range(20)) == {frame["msg"] for frame in client.business}
            await client.ack(*{frame["messageId"] for frame in client.business})
        await asyncio.gather(*(role.until_healthy(cluster.http) for role in (*cluster.nodes, *cluster.dispatchers)))
