"""A change of groups that nobody told the node of is found by the sweep."""

from __future__ import annotations

import asyncio

import pytest

from pushfleet.local_valkey import LocalValkey
from shared.groups import Groups
from shared.store import Store
from tests.harness.client import connected
from tests.harness.cluster import running_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until_left(store: Store) -> None:
    """The node has no member of the group any more: it says so in Redis."""
    async with asyncio.timeout(20):
        while await store.redis.hlen(store.keys.audience("g")[3]):  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("ack", ["", "&ack=1"])
async def test_a_change_that_was_not_told_is_found(valkey: LocalValkey, namespace: str, ack: str) -> None:
    """Who joined gets what was sent since then; who left gets nothing more."""
    store = Store(valkey.url, namespace=namespace)
    groups = Groups(store)
    async with running_cluster(valkey.url, valkey.url, namespace, PUSH_RECONCILE_SECONDS="0.5") as cluster:
        await groups.create("g", name="", owner="", members=[])
        async with connected(cluster.http, f"{cluster.socket_url()}?clientId=alice{ack}") as client:
            await client.receive()
            await groups.add("g", ["alice"])
            for number in range(3):
                assert 200 == (await cluster.post("/message/send", {"toGroups": "g", "msg": number})).status
            await client.until_business(3)
            await groups.remove("g", ["alice"])
            await until_left(store)
            await cluster.post("/message/send", {"toGroups": "g", "msg": "gone"})
            await cluster.send("alice", "last")
            await client.until_business(4)
    await store.close()
    assert [0, 1, 2, "last"] == [message["msg"] for message in client.business]
