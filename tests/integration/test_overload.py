"""More than can be done: it is refused or slowed, and what was answered 200 arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.client import connected
from tests.harness.cluster import Answer, Cluster, running_cluster
from tests.harness.reader import Reader, open_reader

pytestmark = pytest.mark.asyncio(loop_scope="session")

_READERS = 12
_SENDERS = 8


@asynccontextmanager
async def readers(cluster: Cluster, count: int, *, pause_s: float) -> AsyncIterator[list[Reader]]:
    port = int(cluster.nodes[0].ready["port"])
    opened = await asyncio.gather(*(open_reader(port, f"r{n}", pause_s=pause_s) for n in range(count)))
    try:
        yield opened
    finally:
        for reader in opened:
            await reader.close()


async def send_to_all(cluster: Cluster, number: int) -> Answer:
    return await cluster.post("/message/send", {"sendToAll": True, "msg": {"n": number, "text": "x" * 1000}})


async def metric(cluster: Cluster, name: str) -> float:
    """Of the first node; 0 when it was never counted."""
    async with cluster.http.get(f"http://127.0.0.1:{cluster.nodes[0].ready['admin_port']}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


async def test_a_flood_to_everyone_is_slowed_and_then_refused(
    valkey: LocalValkey, bus_url: str, namespace: str
) -> None:
    """
    Faster than the clients read: nobody is cut, the node falls behind, the next sends are 429 with a Retry-After. What
    was answered 200 arrives everywhere, once and in order; when the node has caught up sends are taken again.
    """
    async with (
        running_cluster(
            valkey.url, bus_url, namespace, PUSH_MAX_OUTBOX="65536", PUSH_MAX_LAG="0.5", PUSH_LEASE="4"
        ) as cluster,
        readers(cluster, _READERS, pause_s=0.1) as clients,
    ):
        taken: list[int] = []
        refused: list[Answer] = []

        async def send(first: int) -> None:
            for number in range(first, 100_000, _SENDERS):
                answer = await send_to_all(cluster, number)
                if answer.status == 200:
                    taken.append(number)
                else:
                    refused.append(answer)
                if refused:
                    return

        async with asyncio.timeout(60):
            await asyncio.gather(*(send(first) for first in range(_SENDERS)))
        for client in clients:
            client.brisk.set()
        await asyncio.gather(*(client.until(len(taken)) for client in clients))
        async with asyncio.timeout(60):
            while (await send_to_all(cluster, 100_000)).status != 200:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)
        await asyncio.gather(*(client.until(len(taken) + 1) for client in clients))
        paced = await metric(cluster, "push_node_paced_total")

    assert {429} == {answer.status for answer in refused}
    assert all(1 <= int(answer.headers["Retry-After"]) <= 30 for answer in refused)
    assert [0] * _READERS == [client.closed for client in clients]
    for client in clients:
        assert sorted([*taken, 100_000]) == sorted(client.numbers)
    assert paced > 0


async def test_a_slow_consumer_costs_the_others_nothing(valkey: LocalValkey, namespace: str) -> None:
    """In a flood to everyone one that does not read is cut with 4008; the others get all of it."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, PUSH_MAX_OUTBOX="65536", PUSH_MAX_LAG="60") as cluster,
        readers(cluster, _READERS, pause_s=60) as clients,
    ):
        slow, *others = clients
        for client in others:
            client.brisk.set()
        number = 0
        async with asyncio.timeout(60):
            while not await metric(cluster, 'push_node_sessions_ended_total{code="4008"}'):
                for _ in range(20):
                    assert 200 == (await send_to_all(cluster, number)).status
                    number += 1
        await asyncio.gather(*(client.until(number) for client in others))
        ended = await metric(cluster, "push_node_sessions_ended_total")

    assert 1 == ended
    assert slow.numbers == list(range(len(slow.numbers)))
    for client in others:
        assert list(range(number)) == client.numbers


async def test_arrivals_beyond_the_rate_are_told_when_to_come_back(valkey: LocalValkey, namespace: str) -> None:
    """503 with a Retry-After of 1 to 5 s; a session that is there gets its messages meanwhile; the others get in."""
    async with (
        running_cluster(valkey.url, valkey.url, namespace, PUSH_CONNECT_RATE="10") as cluster,
        connected(cluster.http, f"{cluster.socket_url()}?clientId=steady") as steady,
    ):
        await steady.receive()
        outcomes = [try_to_connect(cluster.http, f"{cluster.socket_url()}?clientId=s{n}") for n in range(60)]
        arrivals = asyncio.gather(*outcomes)
        await cluster.send("steady", "meanwhile")
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
