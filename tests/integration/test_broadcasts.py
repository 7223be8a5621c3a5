"""Paced broadcasts on real nodes and two dispatchers: who gets them, how fast, and who goes on with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from pushfleet.local_valkey import LocalValkey
from shared.ids import SessionIdMint
from shared.inbox import Inbox
from shared.registry import Joining, Registry
from shared.store import Store
from tests.harness.client import Client, connected
from tests.harness.cluster import Cluster, Role, running_cluster

DEADLINE_S = 60.0
NODE = "10.0.0.1:9000"
AWAY = [f"away-{number}" for number in range(1800)]
HERE = [f"here-{number}" for number in range(200)]


class Site:
    """A cluster of two nodes and two dispatchers, with clients it knows: some online, some away."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self.cluster = cluster
        self.store = store
        self.clients: dict[str, Client] = {}

    async def know(self, names: Sequence[str]) -> None:
        """Clients who were here once."""
        registry, mint = Registry(self.store), SessionIdMint(NODE)
        for start in range(0, len(names), 500):
            joining = [Joining(name, mint.mint(name, 1)) for name in names[start : start + 500]]
            await registry.register(NODE, "e", joining, most=1, most_bytes=1)
            await registry.unregister([(each.client_id, each.session_id, "") for each in joining])

    async def begin(self, **fields: Any) -> dict[str, Any]:
        answer = await self.cluster.post("/v1/broadcasts", {"msg": "hello", **fields})
        assert answer.status == 201, answer
        broadcast: dict[str, Any] = answer.body
        return broadcast

    async def get(self, broadcast_id: str, dispatcher: int = -1) -> dict[str, Any]:
        """As that dispatcher sees it."""
        url = f"{self.cluster.url_of(self.cluster.dispatchers[dispatcher])}/v1/broadcasts/{broadcast_id}"
        async with self.cluster.http.get(url) as response:
            broadcast: dict[str, Any] = await response.json()
        return broadcast

    async def until(
        self, broadcast_id: str, holds: Callable[[dict[str, Any]], bool], dispatcher: int = -1
    ) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE_S):
            while not holds(seen := await self.get(broadcast_id, dispatcher)):  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.02)
        return seen

    async def runner(self, broadcast_id: str) -> int:
        """The dispatcher that runs it."""
        return next(
            place
            for place, role in enumerate(self.cluster.dispatchers)
            if any(line.get("event") == "broadcast_runs" and line["broadcast_id"] == broadcast_id for line in role.log)
        )

    async def until_nobody_runs(self, broadcast_id: str) -> None:
        lock, _ = self.store.keys.lock(f"broadcast:{broadcast_id}")
        async with asyncio.timeout(DEADLINE_S):
            while await self.store.redis.exists(lock):  # noqa: ASYNC110 - Redis is asked
                await asyncio.sleep(0.02)

    async def held(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The messageIds in each client's inbox."""
        slices = await Inbox(self.store).read(names, most=100, most_bytes=1 << 24)
        return {
            name: [message.message_id for message in each.messages] for name, each in zip(names, slices, strict=True)
        }

    async def received(self, name: str) -> list[str]:
        """The messageIds that an online client got, as soon as there is one."""
        return [frame["messageId"] for frame in await self.clients[name].until_business(1)]


@asynccontextmanager
async def running(redis_url: str, bus_url: str, namespace: str, online: Sequence[str]) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            running_cluster(redis_url, bus_url, namespace, nodes=2, dispatchers=2)
        )
        store = Store(redis_url, namespace=namespace)
        stack.push_async_callback(store.close)
        connector = aiohttp.TCPConnector(limit=0)  # else 100 clients are the most
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        site = Site(cluster, store)
        for place, name in enumerate(online):
            url = f"{cluster.socket_url(place % 2)}?clientId={name}"
            site.clients[name] = await stack.enter_async_context(connected(http, url))
        for client in site.clients.values():
            await client.receive_type(0)
        yield site


@pytest.fixture
async def site(valkey: LocalValkey, namespace: str) -> AsyncIterator[Site]:
    """2,000 clients, of whom 200 are online, on streams."""
    async with running(valkey.url, valkey.url, namespace, HERE) as site:
        await site.know(AWAY)
        yield site


async def test_everyone_is_reached_once_and_not_faster_than_asked(site: Site) -> None:
    """Progress is seen at the other dispatcher meanwhile; who is away has it in the inbox and gets it on connect."""
    begun = await site.begin(toAll=True, rate=1000)
    id_, message_id = begun["broadcastId"], begun["messageId"]
    assert ("running", 2000, 0, None) == tuple(begun[name] for name in ("state", "targets", "reached", "ended"))
    seen = await site.until(id_, lambda now: now["reached"] > 0)
    assert ("running", True) == (seen["state"], seen["reached"] < 2000)
    done = await site.until(id_, lambda now: now["state"] != "running")
    counts = {name: done[name] for name in ("state", "reached", "online", "offline", "failed")}
    assert {"state": "done", "reached": 2000, "online": 200, "offline": 1800, "failed": 0} == counts
    assert done["ended"] - done["created"] >= 1800  # all but the last page of 100 had their time: 1,900 ms
    assert {name: [message_id] for name in HERE} == {name: await site.received(name) for name in HERE}
    assert {name: [message_id] for name in AWAY} == await site.held(AWAY)
    url = f"{site.cluster.socket_url(1)}?clientId={AWAY[7]}"
    async with connected(site.cluster.http, url) as client:
        (frame,) = await client.until_business(1)
        assert (message_id, "hello", AWAY[7], 1) == tuple(frame[name] for name in ("messageId", "msg", "to", "msgType"))
        assert begun["created"] == frame["activeTime"]


async def test_after_an_abort_hardly_anybody_is_reached(site: Site) -> None:
    """No more than the page under way: who was counted has it, nobody else; it can be aborted once."""
    begun = await site.begin(toAll=True, rate=200)
    id_ = begun["broadcastId"]
    await site.until(id_, lambda now: now["reached"] >= 40)
    url = f"{site.cluster.url_of(site.cluster.dispatchers[1])}/v1/broadcasts/{id_}"
    async with site.cluster.http.delete(url) as answer:
        aborted = await answer.json()
        assert (200, "aborted") == (answer.status, aborted["state"])
    await site.until_nobody_runs(id_)
    final = await site.get(id_)
    assert ("aborted", aborted["ended"]) == (final["state"], final["ended"])
    assert aborted["reached"] <= final["reached"] <= aborted["reached"] + 20
    for name in HERE:
        if site.clients[name].business:
            assert [begun["messageId"]] == await site.received(name)
    with_it = [name for name, ids in (await site.held(AWAY)).items() if ids]
    assert final["offline"] == len(with_it)
    async with site.cluster.http.delete(url) as answer:
        assert 409 == answer.status


async def fails(role: Role) -> None:
    await role.kill()


async def leaves(role: Role) -> None:
    assert 0 == await role.stop()


@pytest.fixture
def bus_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param).url
    return url


@pytest.mark.parametrize(
    ("bus_url", "how", "most"),
    [("valkey", fails, 2), ("shared_rocketmq", fails, 2), ("valkey", leaves, 1)],
    indirect=["bus_url"],
)
async def test_another_dispatcher_goes_on(
    valkey: LocalValkey,
    namespace: str,
    bus_url: str,
    how: Callable[[Role], Awaitable[None]],
    most: int,
) -> None:
    """
    The one that runs it is killed, or told to end: everybody gets the message, and each target counts once.

    Who was on the page under way at a kill may get it twice, under the same messageId.
    """
    async with running(valkey.url, bus_url, namespace, HERE[:100]) as site:
        away = AWAY[:900]
        await site.know(away)
        begun = await site.begin(toAll=True, rate=300)
        id_, message_id = begun["broadcastId"], begun["messageId"]
        await site.until(id_, lambda now: now["reached"] >= 120)
        runner = await site.runner(id_)
        await how(site.cluster.dispatchers[runner])
        other = 1 - runner
        done = await site.until(id_, lambda now: now["state"] != "running", other)
        counts = [done[name] for name in ("state", "targets", "reached", "online", "offline", "failed")]
        assert ["done", 1000, 1000, 100, 900, 0] == counts
        assert any(line.get("event") == "broadcast_runs" for line in site.cluster.dispatchers[other].log)
        assert {name: [message_id] for name in away} == await site.held(away)
        got = [await site.received(name) for name in HERE[:100]]
        assert {message_id} == {each for ids in got for each in ids}
        assert max(map(len, got)) <= most


async def test_members_of_groups_are_reached_once(site: Site) -> None:
    """Also those who are in two of the groups, and those who never connected; nobody else."""
    both, here, never = [*AWAY[100:200], *HERE[:50]], HERE[50:60], ["never-1", "never-2"]
    groups = {"a": [*AWAY[:100], *both], "b": [*both, *here, *never]}
    for group_id, members in groups.items():
        answer = await site.cluster.post("/v1/groups", {"groupId": group_id, "members": members})
        assert 201 == answer.status
    begun = await site.begin(toGroups=["a", "b"], rate=500)
    assert (250 + 162, ["a", "b"]) == (begun["targets"], begun["toGroups"])
    done = await site.until(begun["broadcastId"], lambda now: now["state"] != "running")
    counts = [done[name] for name in ("state", "reached", "online", "offline", "failed")]
    assert ["done", 262, 60, 202, 0] == counts
    message_id = begun["messageId"]
    away = {name: ids for name, ids in (await site.held([*AWAY, *never])).items() if ids}
    assert {name: [message_id] for name in (*AWAY[:200], *never)} == away
    assert {name: [message_id] for name in HERE[:60]} == {name: await site.received(name) for name in HERE[:60]}
    assert [] == [name for name in HERE[60:] if site.clients[name].business]
