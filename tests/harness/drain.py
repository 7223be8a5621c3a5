"""Drains in tests: asking for them, seeing how far they are, and what is left of a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson

from pushfleet.local_valkey import LocalValkey
from shared.bus import open_bus
from shared.errors import TopicMissing
from shared.store import Store
from tests.harness.client import Client
from tests.harness.cluster import Answer, Cluster, Role

DEADLINE_S = 25.0
FOREVER = 3600


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.02)


@asynccontextmanager
async def clients_on(cluster: Cluster, count: int, name: str = "c") -> AsyncIterator[list[Client]]:
    """c0, c1, ... with a session each, on the first node."""
    url = cluster.socket_url(0)
    clients = [Client(await cluster.http.ws_connect(f"{url}?clientId={name}{n}&ack=1")) for n in range(count)]
    try:
        for client in clients:
            await client.receive()
        yield clients
    finally:
        for client in clients:
            await client.close()


async def ask(cluster: Cluster, method: str, node: Role, **body: object) -> Answer:
    url = f"{cluster.dispatcher_url}/v1/nodes/{node.node_id}/drain"
    async with cluster.http.request(method, url, json=body or None) as answer:
        return Answer(answer.status, answer.headers.copy(), await answer.json(content_type=None))


async def seen(cluster: Cluster, node: Role) -> dict[str, Any] | None:
    """The node as the dispatcher lists it."""
    nodes = (await cluster.get("/v1/nodes")).body["nodes"]
    return next((one for one in nodes if one["nodeId"] == node.node_id), None)


async def until_seen(cluster: Cluster, node: Role, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await seen(cluster, node)
            if found is not None and holds(found):
                return found
            await asyncio.sleep(0.05)


def draining(found: dict[str, Any]) -> bool:
    return bool(found["state"] == "draining")


def serving(found: dict[str, Any]) -> bool:
    return bool(found["state"] == "serving")


def open_ones(clients: list[Client]) -> list[Client]:
    return [client for client in clients if not client.socket.closed]


def advice(client: Client) -> int:
    told: int = orjson.loads(client.close_reason)["reconnectIn"]
    return told


def logged(node: Role, event: str) -> list[dict[str, Any]]:
    return [line for line in node.log if line.get("event") == event]


async def left_in_redis(valkey: LocalValkey, namespace: str, node: Role) -> list[str]:
    """Whatever names the node, besides its clients' last node; and routes."""
    store = Store(valkey.url, namespace=namespace)
    redis: Any = store.redis
    left = [start.decode() for start in await redis.zrange(store.keys.starts, 0, -1)]
    left += [one.decode() for one in await redis.smembers(store.keys.node_ids)]
    left += [name.decode() async for name in redis.scan_iter(f"{namespace}:*")]
    await store.close()
    return [name for name in left if (node.node_id in name or ":route:" in name) and ":last:" not in name]


async def exists(bus_url: str, namespace: str, topic: str) -> bool:
    bus = open_bus(bus_url, namespace=namespace)
    try:
        return await bus.queue_count(topic) > 0
    except TopicMissing:
        return False
    finally:
        await bus.close()
