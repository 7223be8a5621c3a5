"""
A real dispatcher process, and a node's side of the world for it: leases, routes and topics without a gateway.

The nodes here register as a gateway does and collect the lines of their topics, so a test sees what a dispatcher sends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from typing import Any

import aiohttp
import msgspec
import orjson

from shared.bus import Bus, Record, TopicReader, open_bus
from shared.ids import SessionIdMint, node_topic
from shared.inbox import Inbox
from shared.record import Kind, decode_audience, decode_line, is_audience, split_lines
from shared.registry import Joining, Lease, Registry
from shared.store import Store
from shared.upstream import UpstreamSend, encode_upstream, upstream_topic

DEADLINE_S = 20.0


class DispatcherProcess:
    """`python -m dispatcher` with its log; `url` once it listens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reading = asyncio.create_task(self._read())
        self._changed = asyncio.Event()
        self.log: list[dict[str, Any]] = []
        self.text = ""
        self.url = ""

    async def until(self, event: str) -> dict[str, Any]:
        """The first log line of this event."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for line in self.log:
                    if line["event"] == event:
                        return line
                assert not self._reading.done(), f"ended without {event!r}:\n{self.text}"
                self._changed.clear()
                await self._changed.wait()

    def ask_to_stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(DEADLINE_S):
            await self._reading
            return await self._process.wait()

    async def stop(self) -> int:
        if self._process.returncode is None:
            self.ask_to_stop()
        try:
            return await self.ended()
        except TimeoutError:
            self._process.kill()
            raise

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            self.text += raw.decode()
            with suppress(orjson.JSONDecodeError):
                self.log.append(orjson.loads(raw))
            self._changed.set()
        self._changed.set()


async def start_dispatcher(redis_url: str, namespace: str, **environ: str) -> DispatcherProcess:
    """A dispatcher on a free port; whoever starts it stops it."""
    settings = {
        "PUSH_REDIS_URL": redis_url,
        "PUSH_NAMESPACE": namespace,
        "PUSH_HTTP_HOST": "127.0.0.1",
        "PUSH_HTTP_PORT": "0",
        "PUSH_AUTH": "off",
        **environ,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PUSH_")}
    return DispatcherProcess(
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dispatcher", env={**inherited, **settings}, stderr=asyncio.subprocess.PIPE
        )
    )


@asynccontextmanager
async def running_dispatcher(redis_url: str, namespace: str, **environ: str) -> AsyncIterator[DispatcherProcess]:
    """Entered when it listens, which may be before it is ready."""
    dispatcher = await start_dispatcher(redis_url, namespace, **environ)
    try:
        line = await dispatcher.until("listening")
        dispatcher.url = f"http://127.0.0.1:{line['http_port']}"
        yield dispatcher
    finally:
        await dispatcher.stop()


class Delivery(msgspec.Struct):
    """A line of a node's topic; `envelope` is its bytes, `place` its order in the inbox or the timeline."""

    kind: str
    expires_ms: int
    place: int
    envelope: bytes
    audience: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = orjson.loads(self.envelope)
        return fields


def _delivery(line: bytes) -> Delivery:
    if is_audience(line):
        read = decode_audience(line)
        return Delivery("audience", read.expires_ms, read.order, read.template, read.audience)
    kind, expires_ms, place, envelope = decode_line(line)
    return Delivery(Kind(kind).name.lower(), expires_ms, place, envelope)


class FakeNode:
    """A node's lease, its sessions' routes, and the lines that come to its topic."""

    def __init__(self, site: Site, node_id: str, epoch: str) -> None:
        self.node_id = node_id
        self.epoch = epoch
        self.topic = node_topic(site.namespace, node_id)
        self.lines: list[Delivery] = []
        self._site = site
        self._mint = SessionIdMint(node_id)
        self._changed = asyncio.Event()
        self._reader: TopicReader | None = None
        self._reading: asyncio.Task[None] | None = None

    async def lease(self, *, life_s: float = 3600, **fields: Any) -> None:
        lease = Lease(**{"epoch": self.epoch, "url": f"ws://{self.node_id}/websocket", **fields})
        await self._site.registry.take(self.node_id, lease, life_s=life_s)

    async def release(self) -> None:
        await self._site.registry.release(self.node_id, self.epoch, clean=True)

    async def listen(self) -> None:
        await self._site.bus.ensure_topic(self.topic)
        self._reader = await self._site.bus.open_reader(self.topic)
        self._reading = asyncio.create_task(self._read(self._reader))

    async def connect(self, client_id: str) -> str:
        """A session of this client; gives its sessionId."""
        session_id = self._mint.mint(client_id, int(time.time() * 1000))
        joining = [Joining(client_id, session_id)]
        await self._site.registry.register(self.node_id, self.epoch, joining, most=1, most_bytes=1)
        return session_id

    async def lines_of(self, message_id: str, count: int = 1) -> list[Delivery]:
        """The lines of a message, as soon as there are `count`."""
        return await self.lines_with(f'"messageId":"{message_id}"', count)

    async def lines_with(self, text: str, count: int = 1) -> list[Delivery]:
        """The lines whose envelope holds this text, as soon as there are `count`."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [line for line in self.lines if text.encode() in line.envelope]
                if len(found) >= count:
                    return found
                self._changed.clear()
                await self._changed.wait()

    async def until(self, kind: str, count: int) -> list[Delivery]:
        """The lines of a kind, as soon as there are `count`."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [line for line in self.lines if line.kind == kind]
                if len(found) >= count:
                    return found
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        if self._reading is not None and self._reader is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
            await self._reader.close()
            self._reading = None

    async def _read(self, reader: TopicReader) -> None:
        while True:
            for record in await reader.fetch():
                for line in split_lines(record.body):
                    self.lines.append(_delivery(line))
            reader.commit()
            self._changed.set()


class Site:
    """Redis and the bus of one namespace, as nodes and tests use them."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.namespace = namespace
        self.store = Store(redis_url, namespace=namespace)
        self.registry = Registry(self.store)
        self.inbox = Inbox(self.store)
        self.bus: Bus = open_bus(redis_url, namespace=namespace)
        self._nodes: list[FakeNode] = []
        self._next = 1

    async def node(self, **lease: Any) -> FakeNode:
        """A node that lives and reads its topic."""
        node = self.silent_node()
        await node.listen()
        await node.lease(**lease)
        return node

    def silent_node(self, node_id: str = "", epoch: str = "") -> FakeNode:
        """A node without lease and topic so far."""
        number, self._next = self._next, self._next + 1
        node = FakeNode(self, node_id or f"10.0.0.{number}:9000", epoch or f"epoch{number}")
        self._nodes.append(node)
        return node

    async def held(self, client_id: str) -> list[str]:
        """The messageIds in a client's inbox."""
        (part,) = await self.inbox.read([client_id], most=1000, most_bytes=1 << 24)
        return [waiting.message_id for waiting in part.messages]

    async def routes(self, client_id: str) -> set[str]:
        """The sessionIds in a client's route."""
        names: list[bytes] = await self.store.redis.hkeys(self.store.keys.route(client_id))  # type: ignore[assignment]
        return {name.decode() for name in names}

    async def until_acknowledged(self) -> None:
        """Until no upstream record is taken and unacknowledged."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                pending = 0
                async for name in self.store.redis.scan_iter(f"{self.namespace}*upstream*", _type="STREAM"):
                    pending += sum(int(group["pending"]) for group in await self.store.redis.xinfo_groups(name))
                if not pending:
                    return
                await asyncio.sleep(0.02)

    async def publish_upstream(self, *bodies: bytes | UpstreamSend) -> None:
        records = [Record(body if isinstance(body, bytes) else encode_upstream(body)) for body in bodies]
        await self.bus.publish(upstream_topic(self.namespace), records)

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()
        await self.bus.close()
        await self.store.close()


class Answer(msgspec.Struct):
    """A four-field answer."""

    status: int
    headers: Any
    text: str

    @property
    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = orjson.loads(self.text)
        return fields

    @property
    def content(self) -> Any:
        return self.fields["content"]

    @property
    def message_id(self) -> str:
        return str(self.headers["X-Message-Id"])


class Caller:
    """Sends to a dispatcher over HTTP."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str = "") -> None:
        self._http = http
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def send(self, to: Any = None, msg: Any = "hello", **fields: Any) -> Answer:
        body = {"to": to, "msg": msg, **{name.rstrip("_"): value for name, value in fields.items()}}
        return await self.post("/message/send", orjson.dumps(body))

    async def send_list(self, *items: Any) -> Answer:
        return await self.post("/message/sendList", orjson.dumps(items))

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        data = BytesIO(body) if isinstance(body, bytes) else body  # large bytes are warned about
        return await self.request("POST", path, data=data, headers={**self._headers, **headers})

    async def get(self, path: str, **query: str) -> Answer:
        return await self.request("GET", path, params=query, headers=self._headers)

    async def request(self, method: str, path: str, **options: Any) -> Answer:
        async with asyncio.timeout(DEADLINE_S), self._http.request(method, self._url + path, **options) as answer:
            return Answer(answer.status, answer.headers, await answer.text())
