"""A janitor that is interrupted at the worst moment: between its mark and what it does behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from dispatcher.burial import Burials, dead_nodes
from dispatcher.janitor import Janitor
from dispatcher.lock import Lock
from dispatcher.nodes import LiveNodes
from dispatcher.outbox import Outbox
from dispatcher.publisher import Publisher
from dispatcher.reroute import Reroute
from pushfleet.local_valkey import LocalValkey
from shared.bus import Record
from shared.bus.streams import StreamsBus
from shared.bus.streams.reader import StreamsTopicReader
from shared.errors import BusUnavailable
from shared.registry import Held, Lease
from tests.harness.dispatcher import FakeNode, Site

pytestmark = pytest.mark.asyncio(loop_scope="session")
DEADLINE_S = 20.0


class SlowBus(StreamsBus):
    """Opens readers when `go` is set, or not at all."""

    asked: asyncio.Event
    go: asyncio.Event
    fails: bool

    async def open_reader(self, topic: str) -> StreamsTopicReader:
        self.asked.set()
        if self.fails:
            raise BusUnavailable("away")
        await self.go.wait()
        return await super().open_reader(topic)


@dataclass
class Scene:
    """A janitor at work, and the node that died."""

    site: Site
    bus: SlowBus
    node: FakeNode
    reroute: Reroute
    lock: Lock
    looks: list[asyncio.Task[None]] = field(default_factory=list)

    def look(self, *, lease_s: float = 60) -> asyncio.Task[None]:
        """One look, in the background."""
        site = self.site
        janitor = Janitor(site.store, site.registry, self.bus, self.reroute, site.namespace, lease_s)
        self.lock.life_s = max(2.0, lease_s / 2)
        self.looks.append(asyncio.create_task(janitor.look(self.lock)))
        return self.looks[-1]

    async def close(self) -> None:
        for look in self.looks:
            look.cancel()
            await done(look)

    async def until_asked(self) -> None:
        """Until the janitor has set its mark and turns to the bus."""
        async with asyncio.timeout(DEADLINE_S):
            await self.bus.asked.wait()

    async def is_marked(self) -> bool:
        return bool(await self.site.store.redis.exists(self.site.store.keys.burial(self.node.node_id)))

    async def steal_lock(self) -> Lock:
        """Its time has run out, and another dispatcher takes it."""
        await self.site.store.redis.delete(self.lock.key)
        thief = Lock(self.site.store, "janitor", life_s=60)
        assert await thief.hold()
        return thief


@pytest_asyncio.fixture(loop_scope="session")
async def scene(valkey: LocalValkey, namespace: str) -> AsyncIterator[Scene]:
    site = Site(valkey.url, namespace)
    node = site.silent_node()
    await site.bus.ensure_topic(node.topic)
    await node.lease()
    await site.store.redis.zadd(site.store.keys.starts, {f"{node.node_id} {node.epoch}": 1})
    await site.store.redis.delete(site.store.keys.lease(node.node_id))
    bus = SlowBus.from_url(valkey.url, namespace=namespace)
    assert isinstance(bus, SlowBus)
    bus.asked, bus.go, bus.fails = asyncio.Event(), asyncio.Event(), False
    await bus.ensure_topic("any")  # now it is connected
    nodes = LiveNodes(site.store, site.registry, namespace=namespace, lease_s=60)
    await nodes.start()
    publisher = Publisher(bus, Outbox(site.store, most_bytes=1 << 20))
    reroute = Reroute(bus, site.inbox, nodes, publisher)
    scene = Scene(site, bus, node, reroute, Lock(site.store, "janitor", life_s=60))
    yield scene
    await scene.close()
    await publisher.close()
    await nodes.close()
    await bus.close()
    await site.close()


async def done(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait((task,))


async def test_who_lost_the_lock_deletes_nothing(scene: Scene) -> None:
    """Another one finished, and the node is back with a topic of its own when the first one goes on."""
    site, node = scene.site, scene.node
    look = scene.look()
    await scene.until_asked()
    thief = await scene.steal_lock()
    burials = Burials(site.store, site.registry, lock_key=thief.key, token=thief.token)
    (dead,) = await dead_nodes(site.store)
    assert await burials.begin(node.node_id, life_s=60)
    await site.bus.drop_topic(node.topic)
    assert await burials.end(dead, buried=True)
    lease = Lease(epoch="another", url="")
    assert Held.YES is (await site.registry.take(node.node_id, lease, life_s=60)).held
    await site.bus.ensure_topic(node.topic)
    scene.bus.go.set()
    await done(look)
    await site.bus.publish(node.topic, [Record(b"x")])
    assert Held.YES is (await site.registry.renew(node.node_id, lease, life_s=60)).held
    assert [f"{node.node_id} another".encode()] == await site.store.redis.zrange(site.store.keys.starts, 0, -1)
    assert await thief.hold()


async def test_who_lost_the_lock_stops(scene: Scene) -> None:
    """It looks after its lock while it waits for the bus. The mark of who has it now stays."""
    look = scene.look(lease_s=1)
    await scene.until_asked()
    thief = await scene.steal_lock()
    burials = Burials(scene.site.store, scene.site.registry, lock_key=thief.key, token=thief.token)
    await burials.begin(scene.node.node_id, life_s=60)
    await done(look)
    assert await scene.is_marked()
    assert await thief.hold()


async def test_who_stops_leaves_no_mark_and_no_lock(scene: Scene) -> None:
    """The node may come back, and another dispatcher goes on, at once."""
    look = scene.look()
    await scene.until_asked()
    assert await scene.is_marked()
    look.cancel()
    await done(look)
    assert not await scene.is_marked()
    assert await Lock(scene.site.store, "janitor", life_s=60).hold()


async def test_a_bus_that_fails_in_the_middle_leaves_no_mark(scene: Scene) -> None:
    """The node may come back; if it does not the next look finds it."""
    scene.bus.fails = True
    await done(scene.look())
    assert scene.bus.asked.is_set()
    assert not await scene.is_marked()
    scene.bus.fails = False
    scene.bus.go.set()
    await done(scene.look())
    assert [] == await dead_nodes(scene.site.store)


async def test_the_lock_is_held_for_as_long_as_it_takes(scene: Scene) -> None:
    """Beyond its life; nobody else begins meanwhile."""
    look = scene.look(lease_s=1)
    await scene.until_asked()
    other = Lock(scene.site.store, "janitor", life_s=60)
    lives = 0
    async with asyncio.timeout(DEADLINE_S):
        while lives < 2:  # of the lock, each seen by its time to live going up again
            before = await scene.site.store.redis.pttl(scene.lock.key)
            await asyncio.sleep(0.05)
            lives += await scene.site.store.redis.pttl(scene.lock.key) > before
            assert not await other.hold()
    scene.bus.go.set()
    await done(look)
    assert [] == await dead_nodes(scene.site.store)
    assert await other.hold()
