"""One session that floods, and others beside it on the same node: theirs arrives and is acknowledged all the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from shared.bus import open_bus
from shared.upstream import upstream_topic
from tests.harness.client import Client, connected
from tests.harness.cluster import Cluster, running_cluster
from tests.harness.connection import CLOSE, PING, TEXT, Peer
from tests.harness.proxy import Proxy
from tests.integration.test_chat_groups import records_of
from tests.integration.test_limits import fragments, raw, text
from tests.unit.gateway.test_frames import client_frame

MESSAGES = 200
MOST_CLOSE = 127
BUSINESS = text({"msgType": 1, "to": "sink", "msg": "x" * 100})
FLOODS = {
    "messages": BUSINESS,
    "to many": text({"msgType": 1, "to": [f"sink{number}" for number in range(500)], "msg": 1}),
    "to groups": text({"msgType": 1, "toGroups": ["no-such-group"], "msg": 1}),
    "chat": text({"type": 1, "params": {"toMessageId": "sink", "message": "x"}}),
    "read": text({"type": 15, "params": {"msgid": "0" * 32}}),
    "acknowledgements": text({"msgType": 2, "messageIds": ["0" * 32] * 1000}),
    "heartbeats": text({"msgType": 3}),
    "names": text({"type": 7, "params": {"openid": "mallory-names", "userName": "M"}}),
    "bytes": text({"msgType": 3, "ignored": "x" * 100_000}),
    "pings": client_frame(PING, b"x" * 100),
    "fragments": fragments([b'{"msgType":3'] + [b""] * 1000 + [b"}"]),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(valkey: LocalValkey) -> AsyncIterator[Cluster]:
    """One node, so that everybody is on it, and no limit of the one address from which all the floods come."""
    low: dict[str, Any] = {"PUSH_MESSAGE_RATE": "200", "PUSH_ADDRESS_AUTH_FAILURES": "0"}
    async with running_cluster(valkey.url, valkey.url, "isolation", nodes=1, dispatchers=1, **low) as cluster:
        yield cluster


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.asyncio(loop_scope="session")
async def test_a_flood_ends_and_the_others_go_on(site: Cluster, flood: str) -> None:
    """Who sends without end is closed with 4029; 200 messages from another session to a third all arrive meanwhile."""
    friend = f"bob-{flood.replace(' ', '-')}"
    async with (
        connected(site.http, f"{site.socket_url()}?clientId=alice") as alice,
        connected(site.http, f"{site.socket_url()}?clientId={friend}&ack=1") as bob,
        raw(site, f"mallory-{flood.replace(' ', '-')}") as mallory,
    ):
        flooding = asyncio.create_task(send_without_end(mallory, FLOODS[flood]))
        closing = asyncio.create_task(close_code(mallory))
        await talk(alice, bob, friend)
        code = await closing
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)

    assert 4029 == code
    assert list(range(MESSAGES)) == sorted(message["msg"] for message in bob.business)
    assert MESSAGES == len([frame for frame in alice.frames if frame["msgType"] == 2])


async def talk(alice: Client, bob: Client, friend: str) -> None:
    """200 messages, a few at a time; each is acknowledged to its sender and by its receiver."""
    for start in range(0, MESSAGES, 10):
        for number in range(start, start + 10):
            await alice.send({"msgType": 1, "to": friend, "msg": number})
        for message in (await bob.until_business(start + 10))[start:]:
            await bob.ack(message["messageId"])
        await alice.until(lambda most=start + 10: len([f for f in alice.frames if f["msgType"] == 2]) >= most)  # type: ignore[misc]


async def send_without_end(peer: Peer, frame: bytes) -> None:
    """Until the node closes, or reads no more."""
    some = frame * max(1, 65536 // len(frame))
    while True:
        try:
            await peer.send(some)
        except (ConnectionError, TimeoutError):
            return


async def close_code(peer: Peer) -> int:
    """Of the last frame; everything before it is read as fast as it comes, for who reads slowly is closed for that."""
    last = (await peer.all())[-MOST_CLOSE:]
    opcode = last.rindex(bytes([0x80 | CLOSE]))
    return int.from_bytes(last[opcode + 2 : opcode + 4], "big")


@pytest.mark.parametrize("errands", [1, 2, 8])
async def test_a_session_has_few_messages_under_way(valkey: LocalValkey, namespace: str, errands: int) -> None:
    """
    100 at once from one session, on a slow bus: those of another, sent later, go on the bus with the first of them. All
    are published in the end, in order, and acknowledged.
    """
    async with slow_bus(valkey, namespace, errands) as (cluster, proxy):
        async with (
            raw(cluster, "mallory") as mallory,
            connected(cluster.http, f"{cluster.socket_url()}?clientId=alice") as alice,
        ):
            await alice.receive()
            proxy.delay(0.2)
            frames = (text({"msgType": 1, "to": "sink", "msg": number}) for number in range(100))
            await mallory.send(b"".join(frames))
            assert TEXT == (await mallory.frame())[0]
            await alice.send({"msgType": 1, "to": "sink", "msg": "alice"})
            await alice.receive_type(2)
            proxy.heal()
            answers = [json.loads((await mallory.frame())[1]) for _ in range(99)]
        bus = open_bus(valkey.url, namespace=namespace)
        records = await records_of(bus, upstream_topic(namespace), 101)
        await bus.close()

    assert {2} == {answer["msgType"] for answer in answers}
    msgs = [record["msg"] for record in sorted(records, key=lambda record: str(record["messageId"]))]
    assert list(range(100)) == [record["msg"] for record in records if record["from"] == "mallory"]
    assert msgs.index("alice") <= 4 * errands


@asynccontextmanager
async def slow_bus(valkey: LocalValkey, namespace: str, errands: int) -> AsyncIterator[tuple[Cluster, Proxy]]:
    """A node alone, with a proxy before its bus."""
    proxy = Proxy("127.0.0.1", urlsplit(valkey.url).port or 0)
    await proxy.start()
    try:
        async with running_cluster(
            valkey.url,
            f"redis://127.0.0.1:{proxy.port}/0",
            namespace,
            nodes=1,
            dispatchers=0,
            PUSH_SESSION_ERRANDS=str(errands),
        ) as cluster:
            yield cluster, proxy
    finally:
        await proxy.close()
