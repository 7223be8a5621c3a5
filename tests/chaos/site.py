"""The whole of it: Valkey, RocketMQ, nodes and dispatchers as processes, proxies between them, and the load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from shared.store import Store
from tests.chaos.ledger import Ledger
from tests.chaos.load import Client, Sender
from tests.harness.cluster import Role
from tests.harness.proxy import Proxy

NAMESPACE = "chaos"
LEASE_S = 2.0
_WHOLE_S = 90.0


@dataclass
class Part:
    """A role with its proxies. `front` stands before a node's WebSocket port; `redis` between the role and Valkey."""

    module: str
    variables: dict[str, str]
    redis: Proxy
    role: Role
    port: int = 0
    front: Proxy | None = None

    async def restart(self) -> None:
        """The same settings and ports, a new process."""
        port_variable = "PUSH_NODE_PORT" if self.module == "gateway_node" else "PUSH_HTTP_PORT"
        self.role = Role(self.module, self.variables | {port_variable: str(self.port)})
        await self.role.start()


@dataclass
class Site:
    """See the module."""

    valkey: LocalValkey
    broker: LocalRocketMQ
    broker_proxy: Proxy
    http: aiohttp.ClientSession
    ledger: Ledger
    nodes: list[Part] = field(default_factory=list)
    dispatchers: list[Part] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    senders: list[Sender] = field(default_factory=list)

    def node_urls(self) -> list[str]:
        return [f"ws://127.0.0.1:{node.front.port}/websocket" for node in self.nodes if node.front is not None]

    def dispatcher_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{part.port}" for part in self.dispatchers]

    async def until_whole(self) -> float:
        """Until every part is healthy, every client has a session and nothing is missing; the seconds it took."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        while loop.time() - start < _WHOLE_S:
            if (
                all(client.connected for client in self.clients)
                and all([await self._is_healthy(part.role) for part in (*self.nodes, *self.dispatchers)])
                and not self.ledger.missing  # last: nothing may be answered between this and the verdict
            ):
                break
            await asyncio.sleep(0.1)
        return loop.time() - start

    async def until_inboxes_are_empty(self) -> int:
        """The messages left in inboxes when no more go."""
        store = Store(self.valkey.url, namespace=NAMESPACE)
        left = -1
        try:
            async with asyncio.timeout(30):
                while left:
                    left = len([key async for key in store.redis.scan_iter(f"{NAMESPACE}:*:inbox:*", count=1000)])
                    await asyncio.sleep(0.2 if left else 0)
        except TimeoutError:
            pass
        await store.close()
        return left

    async def _is_healthy(self, role: Role) -> bool:
        if not role.ready:
            return False
        try:
            async with self.http.get(role.health_url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


@asynccontextmanager
async def running_site(folder: Path, *, clients: int = 100, batches_a_second: float = 30.0) -> AsyncIterator[Site]:
    """All up and under load when entered."""
    async with AsyncExitStack() as stack:
        valkey = LocalValkey(folder / "valkey", fsync="always")
        # The broker tells clients 127.0.0.2, where the proxy listens on the broker's own port.
        broker = LocalRocketMQ(folder / "rocketmq", broker_options={"brokerIP1": "127.0.0.2"})
        await asyncio.gather(valkey.start(), broker.start())
        stack.push_async_callback(valkey.stop)
        stack.push_async_callback(broker.stop, grace_s=0)
        broker_proxy = await _proxy(stack, "127.0.0.1", broker.broker_port, host="127.0.0.2", port=broker.broker_port)
        # keepalive_timeout 0: a dispatcher that was killed must not be met again on an old connection
        connector = aiohttp.TCPConnector(limit=0)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        site = Site(valkey, broker, broker_proxy, http, Ledger())
        stack.push_async_callback(_stop, site)
        common = {
            "PUSH_BUS_URL": broker.url,
            "PUSH_NAMESPACE": NAMESPACE,
            "PUSH_AUTH": "off",
            "PUSH_LEASE": str(LEASE_S),
            "PUSH_ACK_TIMEOUT": "2",
            "PUSH_HEARTBEAT_TIMEOUT": "6",
            "PUSH_DRAIN_SECONDS": "2",
            "PUSH_RECONCILE_SECONDS": "5",
        }
        for module, parts in [("gateway_node", site.nodes)] * 3 + [("dispatcher", site.dispatchers)] * 2:
            parts.append(await _start(stack, site, module, common))
        await _load(stack, site, clients, batches_a_second)
        yield site


async def _start(stack: AsyncExitStack, site: Site, module: str, common: dict[str, str]) -> Part:
    address = urlsplit(site.valkey.url)
    redis = await _proxy(stack, "127.0.0.1", address.port or 0)
    variables = common | {"PUSH_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0"}
    ports = {"PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": "0", "PUSH_HTTP_PORT": "0"}
    part = Part(module, variables | {"PUSH_ADMIN_PORT": "0"}, redis, Role(module, variables | ports))
    await part.role.start()
    await part.role.until_healthy(site.http)
    part.port = part.role.ready.get("port") or part.role.ready["http_port"]
    if module == "gateway_node":
        part.front = await _proxy(stack, "127.0.0.1", part.port)
    return part


async def _load(stack: AsyncExitStack, site: Site, clients: int, batches_a_second: float) -> None:
    ids = [f"c{random.randrange(2**32):08x}-{number}" for number in range(clients)]
    site.clients = [Client(site.http, client_id, site.node_urls, site.ledger) for client_id in ids]
    site.senders = [Sender(site.http, site.dispatcher_urls, site.ledger, ids)]
    tasks = [asyncio.create_task(client.run()) for client in site.clients]
    stack.push_async_callback(_cancel, tasks)
    await site.until_whole()
    sending = [asyncio.create_task(sender.run(batches_a_second)) for sender in site.senders]
    stack.push_async_callback(_cancel, sending)


async def stop_sending(site: Site, tasks_end_s: float = 30.0) -> None:
    """Let what is under way be answered, and send no more."""
    async with asyncio.timeout(tasks_end_s):
        while any(sender.under_way for sender in site.senders):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _proxy(stack: AsyncExitStack, to_host: str, to_port: int, *, host: str = "127.0.0.1", port: int = 0) -> Proxy:
    proxy = Proxy(to_host, to_port, host=host, port=port)
    await proxy.start()
    stack.push_async_callback(proxy.close)
    return proxy


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _stop(site: Site) -> None:
    for sender in site.senders:
        await sender.close()
    await asyncio.gather(*(part.role.close() for part in (*site.nodes, *site.dispatchers)))
