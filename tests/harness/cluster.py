"""
A cluster of real processes for tests: gateway nodes and dispatchers on free ports.

A role is ready when it wrote its `ready` line, and healthy when /healthz says 200. Its log is kept in memory and shown
when a wait runs out. Roles are stopped by their pid, with the context they were started in.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

DEADLINE_S = 30.0


class Role:
    """A process of a role: `python -m gateway_node` or `python -m dispatcher`."""

    def __init__(self, module: str, variables: Mapping[str, str]) -> None:
        self._module = module
        self._variables = dict(variables)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.log: list[dict[str, Any]] = []
        self.ready: dict[str, Any] = {}

    @property
    def node_id(self) -> str:
        """Of a node."""
        return str(self.ready["node_id"])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def health_url(self) -> str:
        port = self.ready.get("port") or self.ready["http_port"]
        return f"{'https' if self._variables.get('PUSH_TLS_CERT') else 'http'}://127.0.0.1:{port}/healthz"

    async def start(self) -> None:
        """Until its ready line."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PUSH_")}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            env=inherited | self._variables,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read_log())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait((ready, self._reading), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        assert self._ready.is_set(), f"{self._module} did not get ready:\n{self.log_text()}"

    async def until_healthy(self, http: aiohttp.ClientSession, status: int = 200) -> None:
        """Until /healthz answers `status`."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                async with http.get(self.health_url) as answer:
                    if answer.status == status:
                        return
                await asyncio.sleep(0.02)

    async def until_logged(self, event: str) -> dict[str, Any]:
        """Until a log line of this event; gives the line."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for line in self.log:
                    if line.get("event") == event:
                        return line
                await asyncio.sleep(0.02)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        return await self._end(signal.SIGTERM)

    def terminate(self) -> None:
        """SIGTERM, and no waiting."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself or was terminated."""
        assert self._process is not None
        assert self._reading is not None
        async with asyncio.timeout(DEADLINE_S):
            code = await self._process.wait()
            await self._reading
        return code

    async def restart(self) -> None:
        """Once it has ended: another start at the same address, until its ready line."""
        port = str(self.ready["port"])
        self._variables |= {"PUSH_NODE_PORT": port}
        self._ready.clear()
        await self.start()

    async def kill(self) -> None:
        """SIGKILL: no drain, no goodbye."""
        await self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self.ended()

    async def close(self) -> None:
        if self._process is None:
            return
        try:
            await self.stop()
        except TimeoutError:
            await self.kill()
            raise AssertionError(f"{self._module} did not stop:\n{self.log_text()}") from None

    def log_text(self) -> str:
        return "\n".join(orjson.dumps(line).decode() for line in self.log[-40:])

    async def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            try:
                fields = orjson.loads(line)
            except orjson.JSONDecodeError:
                fields = {"event": "not JSON", "text": line.decode(errors="replace")}
            self.log.append(fields)
            if fields.get("event") == "ready":
                self.ready = fields
                self._ready.set()


@dataclass
class Cluster:
    """Some nodes and dispatchers on one Redis and one bus."""

    variables: dict[str, str]
    http: aiohttp.ClientSession
    nodes: list[Role] = field(default_factory=list)
    dispatchers: list[Role] = field(default_factory=list)

    @property
    def dispatcher_url(self) -> str:
        return self.url_of(self.dispatchers[0])

    @staticmethod
    def url_of(dispatcher: Role) -> str:
        return dispatcher.health_url.removesuffix("/healthz")

    def socket_url(self, node: int = 0) -> str:
        return self.nodes[node].health_url.replace("http", "ws", 1).replace("/healthz", "/websocket")

    async def add_node(self, **variables: str) -> Role:
        """A node on free ports, healthy."""
        ports = {"PUSH_NODE_PORT": "0", "PUSH_ADMIN_PORT": "0"}
        node = Role("gateway_node", self.variables | ports | variables)
        self.nodes.append(node)
        await node.start()
        await node.until_healthy(self.http)
        return node

    async def add_dispatcher(self, **variables: str) -> Role:
        """A dispatcher on a free port, healthy."""
        dispatcher = Role("dispatcher", self.variables | {"PUSH_HTTP_PORT": "0"} | variables)
        self.dispatchers.append(dispatcher)
        await dispatcher.start()
        await dispatcher.until_healthy(self.http)
        return dispatcher

    async def post(self, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> Answer:
        """To the first dispatcher. `body` may be bytes, or anything JSON."""
        return await self.post_to(self.dispatcher_url, path, body, headers=headers)

    async def post_to(self, url: str, path: str, body: object, *, headers: Mapping[str, str] | None = None) -> Answer:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        async with self.http.post(url + path, data=data, headers=headers) as response:
            return Answer(response.status, response.headers.copy(), orjson.loads(await response.read()))

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        async with self.http.get(self.dispatcher_url + path, headers=headers) as response:
            return Answer(response.status, response.headers.copy(), orjson.loads(await response.read()))

    async def send(self, to: str | list[str], msg: object, **fields: object) -> Answer:
        """POST /message/send, which must succeed."""
        answer = await self.post("/message/send", {"to": to, "msg": msg, **fields})
        assert answer.status == 200, answer
        return answer


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with its JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def message_id(self) -> str:
        return self.headers["X-Message-Id"]


@asynccontextmanager
async def running_cluster(
    redis_url: str,
    bus_url: str,
    namespace: str,
    *,
    nodes: int = 1,
    dispatchers: int = 1,
    tls: ssl.SSLContext | bool = True,
    **variables: str,
) -> AsyncIterator[Cluster]:
    """
    Healthy when entered; every role must stop with exit code 0 on SIGTERM at the end.

    `tls` is what the cluster's `http` trusts.
    """
    common = {
        "PUSH_REDIS_URL": redis_url,
        "PUSH_BUS_URL": bus_url,
        "PUSH_NAMESPACE": namespace,
        "PUSH_AUTH": "off",
        "PUSH_DRAIN_SECONDS": "0",
    }
    async with AsyncExitStack() as stack:
        timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
        connector = aiohttp.TCPConnector(ssl=tls)
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout, connector=connector))
        cluster = Cluster(common | variables, http)
        stack.push_async_callback(_close_all, cluster)
        await asyncio.gather(
            *(cluster.add_node() for _ in range(nodes)), *(cluster.add_dispatcher() for _ in range(dispatchers))
        )
        yield cluster


async def _close_all(cluster: Cluster) -> None:
    await asyncio.gather(*(role.close() for role in (*cluster.nodes, *cluster.dispatchers)))
