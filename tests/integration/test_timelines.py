"""Messages to audiences on real nodes: who was away gets them, in order, once; lost records, full windows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from shared.keys import EVERYONE
from shared.store import Store
from tests.harness.client import Client, connected
from tests.harness.cluster import Answer, Cluster, running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
NAMESPACE = "timelines"
KINDS = pytest.mark.parametrize("ack", ["", "&ack=1"], ids=["plain", "ack"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(valkey: LocalValkey) -> AsyncIterator[Cluster]:
    """Two nodes, two dispatchers, windows of eight messages."""
    async with running_cluster(
        valkey.url,
        valkey.url,
        NAMESPACE,
        nodes=2,
        PUSH_RECONCILE_SECONDS="1",
        PUSH_LEASE="30",
        PUSH_WINDOW_MESSAGES="8",
        PUSH_ACK_TIMEOUT="30",
    ) as cluster:
        await cluster.add_dispatcher()
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def store(valkey: LocalValkey) -> AsyncIterator[Store]:
    store = Store(valkey.url, namespace=NAMESPACE)
    yield store
    await store.close()


def socket(cluster: Cluster, name: str, ack: str, node: int = 0) -> str:
    return f"{cluster.socket_url(node)}?clientId={name}{ack}"


async def to_all(cluster: Cluster, msg: object, **fields: Any) -> Answer:
    answer = await cluster.send([], msg, sendToAll=True, **fields)
    assert 200 == answer.status
    return answer


def mine(client: Client, prefix: str) -> list[str]:
    """The test's own messages: those to everyone come to the clients of every test."""
    return [message["msg"] for message in client.business if str(message["msg"]).startswith(prefix)]


async def until_mine(client: Client, prefix: str, count: int) -> list[str]:
    await client.until(lambda: len(mine(client, prefix)) >= count)
    return mine(client, prefix)


async def acknowledge(client: Client) -> None:
    if client.business:
        await client.ack(*(message["messageId"] for message in client.business))


async def cursor_of(store: Store, name: str) -> int:
    return int(await store.redis.hget(store.keys.audiences(name), EVERYONE) or 0)


async def until_cursor_is_last(store: Store, name: str) -> None:
    """All that was sent to everyone is acknowledged."""
    last = int(await store.redis.hget(store.keys.audience(EVERYONE)[0], "last") or 0)
    await until_cursor_is(store, name, lambda order: order >= last)


async def until_cursor_is(store: Store, name: str, holds: Callable[[int], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds(await cursor_of(store, name)):  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.02)


@KINDS
async def test_who_was_away_gets_it_on_another_node(cluster: Cluster, store: Store, ack: str) -> None:
    """In order, once; who comes for the first time gets nothing from before."""
    prefix = f"away{ack[-1:]}"
    async with connected(cluster.http, socket(cluster, prefix, ack)) as client:
        await client.receive()
        await to_all(cluster, f"{prefix}-here")
        await until_mine(client, prefix, 1)
        await acknowledge(client)
        await until_cursor_is_last(store, prefix)
    sent = [f"{prefix}-{number}" for number in range(30)]
    for msg in sent:
        await to_all(cluster, msg)
    async with (
        connected(cluster.http, socket(cluster, prefix, ack, 1)) as back,
        connected(cluster.http, socket(cluster, f"{prefix}-new", ack, 1)) as new,
    ):
        await new.receive()
        got = 0
        while got < len(sent):
            got = len(await until_mine(back, prefix, got + 1))
            if ack:
                await acknowledge(back)
        await to_all(cluster, f"{prefix}-last")
        await until_mine(new, prefix, 1)
        await until_mine(back, prefix, 31)
        assert [*sent, f"{prefix}-last"] == mine(back, prefix)
        assert [f"{prefix}-last"] == mine(new, prefix)
        await acknowledge(back)
        await until_cursor_is_last(store, prefix)
    async with connected(cluster.http, socket(cluster, prefix, ack)) as again:
        await again.receive()
        await to_all(cluster, f"{prefix}-again")
        assert [f"{prefix}-again"] == await until_mine(again, prefix, 1)


async def test_what_was_not_acknowledged_comes_again_on_the_next_session(cluster: Cluster, store: Store) -> None:
    """The one in the middle, and with it what is behind it, under the same ids."""
    async with connected(cluster.http, socket(cluster, "holes", "&ack=1")) as client:
        await client.receive()
        begin = await cursor_of(store, "holes")
        answers = [await to_all(cluster, f"holes-{number}") for number in range(4)]
        await until_mine(client, "holes", 4)
        await client.ack(answers[0].message_id, answers[2].message_id, answers[3].message_id)
        await until_cursor_is(store, "holes", lambda order: order > begin)
    async with connected(cluster.http, socket(cluster, "holes", "&ack=1", 1)) as back:
        assert [f"holes-{number}" for number in (1, 2, 3)] == await until_mine(back, "holes", 3)
        ids = [message["messageId"] for message in back.business]
        assert [answer.message_id for answer in answers[1:]] == ids


async def test_a_full_window_reads_on_as_acknowledgements_come(cluster: Cluster) -> None:
    """Never more than the window holds; everything in order, once, while direct messages come between."""
    async with connected(cluster.http, socket(cluster, "slow", "&ack=1")) as client:
        await client.receive()
        for number in range(40):
            await to_all(cluster, f"slow-{number:02d}")
        await until_mine(client, "slow", 8)
        assert 8 == len(client.business)
        taken = 0
        while len(mine(client, "slow")) < 40:
            news = client.business[taken:]
            taken += len(news)
            await client.ack(*(message["messageId"] for message in news))
            await client.until_business(taken + 1)
        assert [f"slow-{number:02d}" for number in range(40)] == mine(client, "slow")


@KINDS
async def test_a_lost_record_is_found(cluster: Cluster, store: Store, ack: str) -> None:
    """By the next record, before that is delivered; and by the sweep when no other comes. The order holds."""
    prefix = f"lost{ack[-1:]}"
    topics = [node.ready["topic"] for node in cluster.nodes]

    async def lose(msg: str) -> None:
        for node in cluster.nodes:
            node.pause()
        try:
            await to_all(cluster, msg)
            for topic in topics:
                async for key in store.redis.scan_iter(f"*{topic}*", _type="STREAM"):
                    await store.redis.xtrim(key, maxlen=0, approximate=False)
        finally:
            for node in cluster.nodes:
                node.resume()

    async with connected(cluster.http, socket(cluster, prefix, ack)) as client:
        await client.receive()
        await to_all(cluster, f"{prefix}-0")
        await lose(f"{prefix}-1")
        await to_all(cluster, f"{prefix}-2")
        await until_mine(client, prefix, 3)
        await lose(f"{prefix}-3")
        assert [f"{prefix}-{number}" for number in range(4)] == await until_mine(client, prefix, 4)


async def test_two_dispatchers_send_in_one_order(cluster: Cluster) -> None:
    """Records that overtake each other are put in sequence: every client sees the timeline's order."""
    async with (
        connected(cluster.http, socket(cluster, "order-a", "")) as one,
        connected(cluster.http, socket(cluster, "order-b", "", 1)) as other,
    ):
        await one.receive()
        await other.receive()
        urls = [cluster.url_of(dispatcher) for dispatcher in cluster.dispatchers]

        async def send(number: int) -> None:
            body = {"to": [], "msg": f"order-{number}", "sendToAll": True}
            answer = await cluster.post_to(urls[number % 2], "/message/send", orjson.dumps(body))
            assert 200 == answer.status

        for start in range(0, 200, 20):
            await asyncio.gather(*(send(number) for number in range(start, start + 20)))
        first = await until_mine(one, "order", 200)
        assert first == await until_mine(other, "order", 200)
        assert 200 == len(set(first))


@KINDS
async def test_a_send_that_is_tried_again_is_stored_once(cluster: Cluster, ack: str) -> None:
    """The same requestId on another dispatcher: one message."""
    prefix = f"twice{ack[-1:]}"
    async with connected(cluster.http, socket(cluster, prefix, ack)) as client:
        await client.receive()
        body = {"to": [], "msg": f"{prefix}-1", "sendToAll": True, "requestId": prefix}
        urls = [cluster.url_of(dispatcher) for dispatcher in cluster.dispatchers]
        first = await cluster.post_to(urls[0], "/message/send", orjson.dumps(body))
        second = await cluster.post_to(urls[1], "/message/send", orjson.dumps(body))
        await to_all(cluster, f"{prefix}-2")
        assert first.message_id == second.message_id
        assert [f"{prefix}-1", f"{prefix}-2"] == await until_mine(client, prefix, 2)


async def test_what_nobody_stores_is_for_who_is_there(cluster: Cluster) -> None:
    """`durable:false` to everyone: at once, and never again."""
    async with connected(cluster.http, socket(cluster, "loose", "&ack=1")) as client:
        await client.receive()
        await to_all(cluster, "loose-1", durable=False)
        await until_mine(client, "loose", 1)
    await to_all(cluster, "loose-2", durable=False)
    async with connected(cluster.http, socket(cluster, "loose", "&ack=1", 1)) as back:
        await back.receive()
        await to_all(cluster, "loose-3")
        assert ["loose-3"] == await until_mine(back, "loose", 1)


async def test_who_was_away_for_too_long_is_told(cluster: Cluster, store: Store) -> None:
    """An error frame says that messages are gone; those that are kept come."""
    async with connected(cluster.http, socket(cluster, "cut", "&ack=1")) as client:
        await client.receive()
    for number in range(3):
        await to_all(cluster, f"cut-{number}")
    about, timeline, *_ = store.keys.audience(EVERYONE)
    entries: Any = await store.redis.xrange(timeline)
    gone = [entry for entry, fields in entries if b'"cut-0"' in fields[b"t"]]
    await store.redis.xdel(timeline, *gone)
    await store.redis.hset(about, mapping={"cut": f"{int(gone[0].split(b'-')[0]):016d}"})
    async with connected(cluster.http, socket(cluster, "cut", "&ack=1", 1)) as back:
        error = await back.receive_type(-1)
        assert "messages_cut" == error["code"]
        assert ["cut-1", "cut-2"] == await until_mine(back, "cut", 2)
