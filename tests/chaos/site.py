"""The whole of it: Valkey, RocketMQ, nodes and dispatchers as processes, proxies between them, and the load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from pushfleet.local_rocketmq import LocalRocketMQ
from pushfleet.local_valkey import LocalValkey
from pushfleet.ports import PortPicker
from shared.store import Store
from tests.chaos import full_disk
from tests.chaos.audiences import Audiences, behind
from tests.chaos.ledger import Ledger
from tests.chaos.load import Client, Sender
from tests.harness.cluster import Role
from tests.harness.proxy import Proxy

NAMESPACE = "chaos"
LEASE_S = 2.0
HEARTBEAT_TIMEOUT_S = 6.0
_WHOLE_S = 90.0
_SETTLED_S = 45.0
_HEALTH_S = 2.0
_ON_ITS_WAY_S = 1.0
_INF = float("inf")
_PLAIN = 10
_CHANGES_A_SECOND = 1.0
_SETTINGS = {
    "PUSH_NAMESPACE": NAMESPACE,
    "PUSH_AUTH": "off",
    "PUSH_LEASE": str(LEASE_S),
    "PUSH_ACK_TIMEOUT": "2",
    "PUSH_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT_S),
    "PUSH_DRAIN_SECONDS": "2",
    "PUSH_RECONCILE_SECONDS": "5",
    "PUSH_INBOX_MESSAGES": "100000",  # a full inbox answers 200 and says so in `content`: not what is tested here
    "PUSH_INBOX_BYTES": str(64 << 20),
}


@dataclass
class Part:
    """A role with its proxies: between it and Valkey, and between it and the broker."""

    module: str
    variables: dict[str, str]
    port: int
    redis: Proxy
    broker: Proxy
    role: Role

    async def restart(self) -> None:
        """The same settings and ports, a new process."""
        await self.role.close()
        self.role = Role(self.module, self.variables)
        await self.role.start()

    async def close(self) -> None:
        await self.role.close()


@dataclass
class Node(Part):
    """`front` stands before its WebSocket port."""

    front: Proxy

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.front.port}/websocket"


@dataclass
class Site:
    """See the module. `concerned` is filled by a fault: the clients it hits, if not all."""

    valkey: LocalValkey
    broker: LocalRocketMQ
    disk_full: Path | None
    http: aiohttp.ClientSession
    ports: PortPicker
    nodes: list[Node] = field(default_factory=list)
    dispatchers: list[Part] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    clients: list[Client] = field(default_factory=list)
    concerned: set[str] = field(default_factory=set)
    sender: Sender = field(init=False)
    audiences: Audiences = field(init=False)

    @property
    def parts(self) -> list[Part]:
        return [*self.nodes, *self.dispatchers]

    def node_urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def dispatcher_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{part.port}" for part in self.dispatchers]

    def concerns_clients_of(self, *parts: Part) -> None:
        """What is done to these parts concerns who is connected to them now; to a dispatcher, everybody."""
        urls = {part.url for part in parts if isinstance(part, Node)}
        if len(urls) == len(parts):
            self.concerned |= {client.client_id for client in self.clients if client.url in urls}

    async def until_whole(self, since: float = _INF) -> list[str]:
        """
        Until every part is healthy, every client has a session and nothing is missing; else what is not so.

        `since` is for when the load goes on: what was answered after that, less than a second ago, may be on its way.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + _WHOLE_S
        while True:
            faults = [f"{part.module} {part.port}" for part in self.parts if not await self._is_healthy(part.role)]
            away = sum(not client.connected for client in self.clients)
            faults += [f"{away} clients have no session"] * bool(away)
            # Last: nothing may be answered between this and the verdict.
            missing = self.ledger.missing(max(since, loop.time() - _ON_ITS_WAY_S))
            faults += [f"{missing} messages are missing"] * bool(missing)
            if not faults or loop.time() > end:
                return faults
            await asyncio.sleep(0.05)

    def spread(self) -> None:
        """Ask clients to move until each node has as many: one that was started again would have none to be hurt."""
        share = len(self.clients) // len(self.nodes)
        on = {url: [client for client in self.clients if client.url == url] for url in self.node_urls()}
        too_many = [client for some in on.values() for client in some[share + 1 :]]
        for url, some in on.items():
            for _ in range(share - len(some)):
                if too_many:
                    too_many.pop().move(url)

    async def settle(self) -> tuple[int, int, list[str]]:
        """
        Send no more, until all is answered and retired.

        Gives how many calls have no answer, how many inboxes are not empty, and which cursors have not reached the
        newest message of their audience.
        """
        unanswered = await self.sender.pause(_SETTLED_S)
        store = Store(self.valkey.url, namespace=NAMESPACE)
        ids = [client.client_id for client in self.clients]
        left, late = -1, [""]
        try:
            async with asyncio.timeout(_SETTLED_S):
                while left or late:
                    left = len([key async for key in store.redis.scan_iter(f"{NAMESPACE}:*:inbox:*", count=5000)])
                    late = await behind(store, ids)
                    await asyncio.sleep(0.05 if left or late else 0)
        except TimeoutError:
            pass
        finally:
            await store.close()
        return unanswered, left, late

    async def _is_healthy(self, role: Role) -> bool:
        if not role.ready:
            return False
        try:
            async with self.http.get(role.health_url, timeout=aiohttp.ClientTimeout(total=_HEALTH_S)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


@asynccontextmanager
async def running_site(
    folder: Path,
    *,
    clients: int = 100,
    batches_a_second: float = 30.0,
    audience_sends_a_second: float = 12.0,
    with_full_disk: bool = False,
) -> AsyncIterator[Site]:
    """All up and under load when entered. `with_full_disk`: see full_disk.py."""
    async with AsyncExitStack() as stack:
        flag = folder / "disk-is-full" if with_full_disk else None
        valkey = LocalValkey(folder / "valkey", fsync="always", end_with_parent=True)
        broker = LocalRocketMQ(folder / "rocketmq", variables=full_disk.variables(folder, flag) if flag else {})
        stack.push_async_callback(valkey.stop)
        stack.push_async_callback(broker.stop, grace_s=0)
        await asyncio.gather(valkey.start(), broker.start())
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        ports = PortPicker(lambda line: None)
        stack.callback(ports.close)
        site = Site(valkey, broker, flag, http, ports)
        for _ in range(3):
            site.nodes.append(await _start_node(stack, site))
        for _ in range(2):
            site.dispatchers.append(await _start_dispatcher(stack, site))
        stack.push_async_callback(_stop, site)  # before the proxies: they stop in order
        await asyncio.gather(*(part.role.until_healthy(http) for part in site.parts))
        await _load(stack, site, clients)
        sender, audiences = site.sender, site.audiences
        for work in (
            sender.run(batches_a_second),
            sender.keep_up(audience_sends_a_second, audiences.send),
            sender.keep_up(_CHANGES_A_SECOND, audiences.change),
        ):
            stack.push_async_callback(_cancel, [asyncio.create_task(work)])
        yield site


async def _start_node(stack: AsyncExitStack, site: Site) -> Node:
    port, variables, redis, broker = await _part(stack, site)
    front = await _proxy(stack, site, port)
    variables |= {
        "PUSH_NODE_PORT": str(port),
        "PUSH_ADMIN_PORT": str(_port(site)),
        "PUSH_NODE_URL": f"ws://127.0.0.1:{front.port}/websocket",
    }
    node = Node("gateway_node", variables, port, redis, broker, Role("gateway_node", variables), front)
    stack.push_async_callback(node.close)
    await node.role.start()
    return node


async def _start_dispatcher(stack: AsyncExitStack, site: Site) -> Part:
    port, variables, redis, broker = await _part(stack, site)
    variables |= {"PUSH_HTTP_PORT": str(port)}
    part = Part("dispatcher", variables, port, redis, broker, Role("dispatcher", variables))
    stack.push_async_callback(part.close)
    await part.role.start()
    return part


async def _part(stack: AsyncExitStack, site: Site) -> tuple[int, dict[str, str], Proxy, Proxy]:
    """A port, the settings, the proxies to Valkey and to the broker. The name server's answers lead to the latter."""
    redis = await _proxy(stack, site, site.valkey.port)
    broker = await _proxy(stack, site, site.broker.broker_port)
    names = await _proxy(stack, site, site.broker.name_server_port)
    names.translation = (b"127.0.0.1:%d" % site.broker.broker_port, b"127.0.0.1:%d" % broker.port)
    variables = _SETTINGS | {
        "PUSH_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0",
        "PUSH_BUS_URL": f"rocketmq://127.0.0.1:{names.port}",
    }
    return _port(site), variables, redis, broker


async def _load(stack: AsyncExitStack, site: Site, clients: int) -> None:
    """Clients that are connected, and groups of them; nothing is sent yet."""
    ids = [f"c{random.randrange(2**32):08x}-{number}" for number in range(clients)]
    plain = [f"p{random.randrange(2**32):08x}-{number}" for number in range(_PLAIN)]
    site.clients = [
        Client(site.http, client_id, site.node_urls, site.dispatcher_urls, site.ledger, plain=client_id in plain)
        for client_id in (*ids, *plain)
    ]
    site.sender = Sender(site.http, site.dispatcher_urls, site.ledger, ids)
    site.audiences = Audiences(site.sender, site.ledger, ids, plain)
    stack.push_async_callback(_cancel, [asyncio.create_task(client.run()) for client in site.clients])
    faults = await site.until_whole()
    assert not faults, faults
    stack.push_async_callback(site.sender.close)
    await site.audiences.create()


async def _proxy(stack: AsyncExitStack, site: Site, to_port: int) -> Proxy:
    proxy = Proxy("127.0.0.1", to_port, port=_port(site))
    await proxy.start()
    stack.push_async_callback(proxy.close)
    return proxy


def _port(site: Site) -> int:
    """Below those that the kernel takes for outgoing connections: it is free again after a restart."""
    return site.ports.pick(random.randrange(15_000, 32_000), "a part")


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _stop(site: Site) -> None:
    await asyncio.gather(*(part.close() for part in site.parts), return_exceptions=True)
