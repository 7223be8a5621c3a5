"""More than can be done: it is refused or slowed, and what was answered 200 arrives."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.client import Client, connected
from tests.harness.cluster import running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(params=["valkey", "shared_rocketmq"], ids=["streams", "rocketmq"])
def bus_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param).url
    return url


async def open_clients(stack: AsyncExitStack, http: aiohttp.ClientSession, url: str, count: int) -> list[Client]:
    clients = [await stack.enter_async_context(connected(http, f"{url}?clientId=c{n}")) for n in range(count)]
    for client in clients:
        await client.receive()
    return clients


def has_all(client: Client) -> bool:
    return len(client.frames) > 1500 or client.socket.closed


async def test_a_flood_to_everyone_is_slowed_and_loses_nothing(
    valkey: LocalValkey, bus_url: str, namespace: str
) -> None:
    """Faster than all sockets together take it: the node reads its topic more slowly, and cuts nobody for it."""
    async with (
        running_cluster(valkey.url, bus_url, namespace, PUSH_MAX_OUTBOX="200000", PUSH_MAX_LAG="60") as cluster,
        AsyncExitStack() as stack,
    ):
        clients = await open_clients(stack, cluster.http, cluster.socket_url(), 30)
        flood = [{"sendToAll": True, "msg": [number, "x" * 1000]} for number in range(1500)]
        answers = await asyncio.gather(
            *(cluster.post("/message/sendList", flood[start : start + 100]) for start in range(0, 1500, 100))
        )
        for client in clients:
            await client.until(partial(has_all, client))
        admin = f"http://127.0.0.1:{cluster.nodes[0].ready['admin_port']}/metrics"
        async with cluster.http.get(admin) as answer:
            metrics = await answer.text()

    assert {True} == {item["success"] for answer in answers for item in answer.body["content"]}
    for client in clients:
        assert list(range(1500)) == sorted(message["msg"][0] for message in client.business)
    assert 'code="4008"' not in metrics
    assert "push_node_paced_total 0.0" not in metrics


async def test_arrivals_beyond_the_rate_are_told_when_to_come_back(valkey: LocalValkey, namespace: str) -> None:
    """503 with a Retry-After of 1 to 5 s; a session that is there gets its messages meanwhile; the others get in."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, PUSH_CONNECT_RATE="10") as cluster,
        AsyncExitStack() as stack,
    ):
        (steady,) = await open_clients(stack, cluster.http, cluster.socket_url(), 1)
        outcomes = [try_to_connect(cluster.http, f"{cluster.socket_url()}?clientId=s{n}") for n in range(60)]
        arrivals = asyncio.gather(*outcomes)
        await cluster.send("c0", "meanwhile")
        await steady.until_business(1)
        refused = [retry_after for retry_after in await arrivals if retry_after is not None]
        async with asyncio.timeout(20):
            while await try_to_connect(cluster.http, f"{cluster.socket_url()}?clientId=late") is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    assert 30 <= len(refused) < 60
    assert set(refused) <= {1, 2, 3, 4, 5}
    assert len(set(refused)) > 1


async def try_to_connect(http: aiohttp.ClientSession, url: str) -> int | None:
    """None, or the Retry-After of the refusal."""
    try:
        async with http.ws_connect(url):
            return None
    except aiohttp.WSServerHandshakeError as error:
        assert error.headers is not None  # noqa: PT017
        return int(error.headers["Retry-After"]) if error.status == 503 else -error.status
