"""
The race between a send and a (re)connect: store, then read the route, against register, then read the inbox.

Each pair is one script, so one of the two sees the other. Both orders are forced here step by step; then clients come
and go at random on three nodes while two dispatchers send to them, and every message that was answered 200 arrives.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from shared.inbox import Inbox, StoredMessage
from shared.registry import Joining, Registry
from shared.store import Store
from tests.harness.client import Client, connected
from tests.harness.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
NODE, SESSION = "10.0.0.1:9000", "10.0.0.1:9000_a_20260101000000000"
MESSAGE = "1" * 32
SENDS = 400


@pytest_asyncio.fixture(loop_scope="session")
async def store(valkey: LocalValkey, namespace: str) -> AsyncIterator[Store]:
    store = Store(valkey.url, namespace=namespace)
    yield store
    await store.close()


async def send(store: Store) -> set[str]:
    """The sessions that a record would go to."""
    message = StoredMessage(MESSAGE, time.time_ns() // 1_000_000 + 60_000, b"{}")
    (target,) = await Inbox(store).store([("a", message)])
    return {session for session, _ in target.sessions}


async def connect(store: Store) -> set[str]:
    """The messages that the session would replay."""
    joining = [Joining("a", SESSION)]
    (joined,) = await Registry(store).register(NODE, "e1", joining, most=10, most_bytes=1 << 20)
    return {waiting.message_id for waiting in joined.inbox.messages}


async def test_a_send_before_the_connect_is_replayed(store: Store) -> None:
    """No record goes to the session; its inbox has the message."""
    assert set() == await send(store)
    assert {MESSAGE} == await connect(store)


async def test_a_send_behind_the_connect_goes_to_the_session(store: Store) -> None:
    """Nothing to replay; the send sees the session."""
    assert set() == await connect(store)
    assert {SESSION} == await send(store)


async def test_at_once_one_sees_the_other(valkey: LocalValkey, namespace: str) -> None:
    """Over two connections, many times: whichever comes first, the message is replayed or goes to the session."""
    for number in range(300):
        one, other = (Store(valkey.url, namespace=f"{namespace}x{number}") for _ in range(2))
        calls = [send(one), connect(other)] if number % 2 else [connect(other), send(one)]
        answers = await asyncio.gather(*calls)
        sessions, messages = answers if number % 2 else reversed(answers)
        assert sessions or messages
        await one.close()
        await other.close()


async def test_clients_that_come_and_go_miss_nothing(cluster: Cluster) -> None:
    """At random: each client connects to some node, takes some messages, leaves without a word, and comes back."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)
    ids = [f"race-{seed}-{number}" for number in range(8)]
    seen: dict[str, list[int]] = {client_id: [] for client_id in ids}
    sent: dict[str, list[int]] = {client_id: [] for client_id in ids}
    done = asyncio.Event()

    async def come_and_go(client_id: str) -> None:
        while not done.is_set() or set(seen[client_id]) != set(sent[client_id]):
            url = f"{cluster.socket_url(chance.randrange(3))}?clientId={client_id}&ack=1"
            async with connected(cluster.http, url) as client:
                await asyncio.sleep(chance.random() * 0.05)
                await take(client, seen[client_id])
                if chance.random() < 0.5:
                    client.abort()

    async def send_some(client_id: str) -> None:
        for number in range(SENDS // len(ids)):
            url = cluster.url_of(cluster.dispatchers[number % 2])
            answer = await cluster.post_to(url, "/message/send", {"to": client_id, "msg": number})
            assert 200 == answer.status
            sent[client_id].append(number)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for client_id in ids:
            group.create_task(come_and_go(client_id))
        await asyncio.gather(*map(send_some, ids))
        done.set()
    for client_id in ids:
        assert list(range(SENDS // len(ids))) == sorted(set(seen[client_id]))


async def take(client: Client, seen: list[int]) -> None:
    """What has come so far, acknowledged."""
    messages = client.business
    seen += [message["msg"] for message in messages]
    if messages:
        await client.ack(*(message["messageId"] for message in messages))
