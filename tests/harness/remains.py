"""Dead nodes for tests: what Redis and the bus hold of them, and a janitor's part for a test to play."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from dispatcher.burial import Burials, dead_nodes
from dispatcher.lock import Lock
from shared.bus import open_bus
from shared.errors import TopicMissing
from shared.ids import node_topic
from shared.keys import PARTITIONS
from shared.registry import Registry
from shared.store import Store
from tests.harness.client import Client
from tests.harness.cluster import Cluster, Role

DEADLINE_S = 40.0


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await holds():  # noqa: ASYNC110 - Redis and the bus are asked
            await asyncio.sleep(0.02)


class Remains:
    """What Redis and the bus hold of nodes."""

    def __init__(self, redis_url: str, bus_url: str, namespace: str) -> None:
        self.store = Store(redis_url, namespace=namespace)
        self.lock = Lock(self.store, "janitor", life_s=60)
        self.bus = open_bus(bus_url, namespace=namespace)
        self._namespace = namespace

    async def starts(self, node_id: str) -> list[str]:
        members: Any = await self.store.redis.zrange(self.store.keys.starts, 0, -1)
        return [member.decode() for member in members if member.decode().startswith(node_id)]

    async def sessions(self, node_id: str) -> set[str]:
        found: set[str] = set()
        for partition in range(PARTITIONS):
            names: set[bytes] = await self.store.redis.smembers(self.store.keys.at(partition, node_id))  # type: ignore[assignment]
            found |= {name.decode() for name in names}
        return found

    async def routes(self, client_id: str) -> set[str]:
        names: list[bytes] = await self.store.redis.hkeys(self.store.keys.route(client_id))  # type: ignore[assignment]
        return {name.decode() for name in names}

    async def has_topic(self, node_id: str) -> bool:
        try:
            reader = await self.bus.open_reader(node_topic(self._namespace, node_id))
        except TopicMissing:
            return False
        await reader.close()
        return True

    async def until_gone(self, node_id: str) -> None:
        """Until nothing is known of the node."""
        keys = self.store.keys

        async def is_gone() -> bool:
            return not await self.starts(node_id)

        await until(is_gone)
        assert not await self.store.redis.exists(keys.lease(node_id), keys.burial(node_id))
        assert not await self.store.redis.sismember(keys.node_ids, node_id)
        assert set() == await self.sessions(node_id)
        assert not await self.has_topic(node_id)

    async def be_janitor(self) -> Burials:
        """Once nobody else is."""
        await until(self.lock.hold)
        return Burials(self.store, Registry(self.store), lock_key=self.lock.key, token=self.lock.token)

    async def until_dead(self, node_id: str) -> None:
        async def is_dead() -> bool:
            return not await self.store.redis.exists(self.store.keys.lease(node_id))

        await until(is_dead)

    async def until_marked(self, node_id: str) -> None:
        """Until a janitor buries it."""

        async def is_marked() -> bool:
            return bool(await self.store.redis.exists(self.store.keys.burial(node_id)))

        await until(is_marked)

    async def bury(self, burials: Burials, node_id: str) -> None:
        """What a janitor does behind the mark."""
        await self.bus.drop_topic(node_topic(self._namespace, node_id))
        (dead,) = [dead for dead in await dead_nodes(self.store) if dead.node_id == node_id]
        await burials.clean_routes(dead)
        assert await burials.end(dead, buried=True)

    async def close(self) -> None:
        await self.bus.close()
        await self.store.close()


@asynccontextmanager
async def remains_of(redis_url: str, bus_url: str, namespace: str) -> AsyncIterator[Remains]:
    remains = Remains(redis_url, bus_url, namespace)
    try:
        yield remains
    finally:
        await remains.close()


def node_id_of(node: Role) -> str:
    return str(node.ready["node_id"])


def socket_of(cluster: Cluster, node: int, client_id: str) -> str:
    return f"{cluster.socket_url(node)}?clientId={client_id}&ack=1"


def messages(client: Client) -> list[object]:
    return [message["msg"] for message in client.business]


def logged(cluster: Cluster, event: str) -> list[dict[str, object]]:
    return [line for role in cluster.dispatchers for line in role.log if line.get("event") == event]


async def until_arrives(cluster: Cluster, client: Client, client_id: str) -> None:
    """Until a message that nobody stores arrives: by a record, not by the inbox."""
    sent = 0
    async with asyncio.timeout(DEADLINE_S):
        while not any(str(message).startswith("live") for message in messages(client)):
            await cluster.send(client_id, f"live {sent}", durable=False)
            sent += 1
            await asyncio.sleep(0.1)
