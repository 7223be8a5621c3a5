"""The scripts that clean up behind dead nodes, on a real server and a real cluster."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from dispatcher.burial import Burials, DeadNode, LockLost, dead_nodes
from dispatcher.lock import Lock
from shared.ids import node_of_session
from shared.inbox import Inbox, StoredMessage
from shared.registry import Held, Joining, Lease, Registry
from shared.store import Store

NODE, OTHER = "10.0.0.1:9000", "10.0.0.2:9000"
_stamps = itertools.count(20260101000000000)


@dataclass
class Place:
    """A store, the registry in it, and what acts under a lock that is held."""

    store: Store
    registry: Registry
    lock: Lock

    @property
    def burials(self) -> Burials:
        return Burials(self.store, self.registry, lock_key=self.lock.key, token=self.lock.token)

    async def take(self, epoch: str, node_id: str = NODE) -> Held:
        lease = Lease(epoch=epoch, url="ws://n/websocket")
        return (await self.registry.take(node_id, lease, life_s=60)).held

    async def die(self, node_id: str = NODE) -> None:
        """As if the lease had ended now."""
        for start in await self.starts():
            if start.startswith(node_id):
                await self.store.redis.zadd(self.store.keys.starts, {start: 1})
        await self.store.redis.delete(self.store.keys.lease(node_id))

    async def connect(self, client_id: str, epoch: str, node_id: str = NODE) -> str:
        session_id = f"{node_id}_{client_id}_{next(_stamps)}"
        await self.register(session_id, client_id, epoch)
        return session_id

    async def register(self, session_id: str, client_id: str, epoch: str) -> None:
        joining = [Joining(client_id, session_id)]
        await self.registry.register(node_of_session(session_id), epoch, joining, most=1, most_bytes=1)

    async def route(self, client_id: str) -> dict[str, str]:
        (target,) = await Inbox(self.store).store([(client_id, StoredMessage("0" * 32, 0, b""))])
        return dict(target.sessions)

    async def index(self, node_id: str = NODE) -> set[str]:
        """The sessions of a node in all partitions."""
        names: set[str] = set()
        for partition in range(64):
            found: Any = await self.store.redis.smembers(self.store.keys.at(partition, node_id))
            names |= {name.decode() for name in found}
        return names

    async def starts(self) -> set[str]:
        members: Any = await self.store.redis.zrange(self.store.keys.starts, 0, -1)
        return {member.decode() for member in members}


@pytest.fixture(params=["valkey", "valkey_cluster"], ids=["single", "cluster"])
async def place(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Place]:
    store = Store(request.getfixturevalue(request.param).url, namespace=namespace)
    lock = Lock(store, "janitor", life_s=60)
    assert await lock.hold()
    yield Place(store, Registry(store), lock)
    await store.close()


async def test_a_start_is_dead_when_it_does_not_hold_the_lease(place: Place) -> None:
    """The lease has ended, was given back, or is another start's; one that was cleaned up behind is forgotten."""
    await place.take("e1")
    await place.take("f1", OTHER)
    assert [] == await dead_nodes(place.store)
    await place.take("e2")
    (dead,) = await dead_nodes(place.store)
    assert (NODE, ("e1",)) == (dead.node_id, dead.epochs)
    assert dead.ended_s < 0
    await place.registry.release(NODE, "e2", clean=False)
    await place.die(OTHER)
    found = {dead.node_id: dead for dead in await dead_nodes(place.store)}
    assert {NODE: {"e1", "e2"}, OTHER: {"f1"}} == {name: set(dead.epochs) for name, dead in found.items()}
    assert found[OTHER].ended_s > 0
    await place.registry.release(OTHER, "f1", clean=True)
    assert [NODE] == [dead.node_id for dead in await dead_nodes(place.store)]


async def test_routes_of_dead_epochs_go_and_others_stay(place: Place) -> None:
    """In every partition; names with `_` too; what was registered anew under another epoch stays, as do other nodes."""
    clients = [f"a_{number}_b" for number in range(300)]
    gone = [await place.connect(client, "e1") for client in clients]
    stays = await place.connect("a_1_b", "f1", OTHER)
    anew = await place.connect("again", "e1")
    await place.register(anew, "again", "e2")
    removed = await place.burials.clean_routes(DeadNode(NODE, ("e1",), 1.0))
    assert len(gone) == removed
    assert {"a_1_b": {stays: "f1"}} == {client: route for client in clients if (route := await place.route(client))}
    assert {anew: "e2"} == await place.route("again")
    assert {anew} == await place.index()
    assert {stays} == await place.index(OTHER)


async def test_entries_of_the_index_without_a_route_go(place: Place) -> None:
    """A send took the route out before; nothing counts it again."""
    session_id = await place.connect("alice", "e1")
    await place.store.redis.delete(place.store.keys.route("alice"))
    assert {session_id} == await place.index()
    assert 0 == await place.burials.clean_routes(DeadNode(NODE, ("e1",), 1.0))
    assert set() == await place.index()


async def test_a_node_that_is_buried_waits(place: Place) -> None:
    """It cannot take its lease until all is done; then nothing is left of its start, and it takes it as a new one."""
    await place.take("e1")
    await place.die()
    (dead,) = await dead_nodes(place.store)
    assert not await place.burials.end(dead, buried=False)
    assert {f"{NODE} e1"} == await place.starts()
    assert await place.burials.begin(NODE, life_s=60)
    assert Held.BURIAL is await place.take("e2")
    assert Held.YES is await place.take("f1", OTHER)
    assert await place.burials.end(dead, buried=True)
    assert {f"{OTHER} f1"} == await place.starts()
    assert Held.YES is await place.take("e2")
    assert {f"{OTHER} f1", f"{NODE} e2"} == await place.starts()


async def test_a_request_to_drain_goes_with_the_node(place: Place) -> None:
    """It was for the start that died, not for the next one at the same address."""
    await place.take("e1")
    await place.store.redis.set(place.store.keys.drain(NODE), "{}")
    await place.die()
    (dead,) = await dead_nodes(place.store)
    await place.burials.begin(NODE, life_s=60)
    await place.burials.end(dead, buried=True)
    assert 0 == await place.store.redis.exists(place.store.keys.drain(NODE))


async def test_a_node_that_lives_is_not_buried(place: Place) -> None:
    """It was faster: no mark, and only the dead start is forgotten."""
    await place.take("e1")
    await place.take("e2")
    (dead,) = await dead_nodes(place.store)
    assert not await place.burials.begin(NODE, life_s=60)
    assert 0 == await place.store.redis.exists(place.store.keys.burial(NODE))
    assert await place.burials.end(DeadNode(NODE, ("e1", "e2"), dead.ended_s), buried=False)
    assert {f"{NODE} e2"} == await place.starts()
    assert Held.YES is (await place.registry.renew(NODE, Lease(epoch="e2", url=""), life_s=60)).held


async def test_a_burial_that_is_broken_off_lets_the_node_in(place: Place) -> None:
    """Only by who set the mark: another janitor's stays."""
    await place.take("e1")
    await place.die()
    first = place.burials
    await first.begin(NODE, life_s=60)
    await first.stop(NODE)
    assert Held.YES is await place.take("e2")
    await place.die()
    await first.begin(NODE, life_s=60)
    await steal(place)
    await place.burials.begin(NODE, life_s=60)
    await first.stop(NODE)
    assert Held.BURIAL is await place.take("e3")


async def test_who_lost_the_lock_does_nothing(place: Place) -> None:
    """No mark, no start forgotten, whether another holds the lock or nobody."""
    await place.take("e1")
    await place.die()
    (dead,) = await dead_nodes(place.store)
    robbed = place.burials
    await steal(place)
    for _ in range(2):
        with pytest.raises(LockLost):
            await robbed.begin(NODE, life_s=60)
        for buried in (False, True):
            with pytest.raises(LockLost):
                await robbed.end(dead, buried=buried)
        assert 0 == await place.store.redis.exists(place.store.keys.burial(NODE))
        assert {f"{NODE} e1"} == await place.starts()
        await place.lock.release()


async def steal(place: Place) -> None:
    """The lock's time has run out, and another dispatcher takes it."""
    await place.store.redis.delete(place.lock.key)
    place.lock = Lock(place.store, "janitor", life_s=60)
    assert await place.lock.hold()
