"""The `Bus` port over RocketMQ, and the keeper of its connections."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Sequence
from urllib.parse import parse_qs

import orjson

from shared.backoff import Backoff
from shared.bus.port import Record
from shared.bus.rocketmq import codes
from shared.bus.rocketmq.acl import Signer
from shared.bus.rocketmq.admin import Admin
from shared.bus.rocketmq.connection import Connections, ConnectionSettings
from shared.bus.rocketmq.health import Health
from shared.bus.rocketmq.producer import MOST_RECORD_BYTES, PRODUCER_GROUP, Producer
from shared.bus.rocketmq.reader import LoneReader
from shared.bus.rocketmq.route import Routes
from shared.bus.rocketmq.shared import PopReader
from shared.errors import BusUnavailable
from shared.redis_url import split_url

_KEEP_ALIVE_S = 30.0  # a broker closes what was silent for 120 s
_EXPECTED = "expected rocketmq://host:9876[,host:9876][?accessKey=&secretKey=&tls=1&tlsCa=file]"


class RocketMQBus:
    """
    See `shared.bus.port.Bus`. Connects when first used.

    Deadlines: publish 5 s, a topic's creation or deletion 10 s, each call to a broker 3 s.
    """

    def __init__(
        self, name_servers: list[str], *, signer: Signer | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._health = Health()
        self._connections = Connections(ConnectionSettings(signer, tls, self._health.note_broker))
        self._routes = Routes(name_servers, ConnectionSettings(signer, tls), self._health)
        self._admin = Admin(self._routes, self._connections)
        self._producer = Producer(self._routes, self._connections, self._health)
        self._readers: set[LoneReader | PopReader] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> RocketMQBus:
        """
        `rocketmq://host:9876[,host:9876]?accessKey=&secretKey=&tls=1&tlsCa=file`.

        `tls=1` verifies the servers' certificate (not its host name: brokers register by address), by the
        system's authorities or the PEM file `tlsCa`. Raises ValueError with what is expected.
        """
        parts = split_url(url)
        name_servers = [server for server in parts.netloc.split(",") if server]
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme != "rocketmq" or not name_servers or "@" in parts.netloc:
            raise ValueError(_EXPECTED)
        unknown = options.keys() - {"accessKey", "secretKey", "tls", "tlsCa"}
        if unknown or ("accessKey" in options) != ("secretKey" in options):
            raise ValueError(_EXPECTED)
        signer = Signer(options["accessKey"], options["secretKey"]) if "accessKey" in options else None
        tls = _tls_context(options.get("tlsCa", "")) if options.get("tls") == "1" else None
        return cls([_with_port(server) for server in name_servers], signer=signer, tls=tls)

    @property
    def max_record_bytes(self) -> int:
        return MOST_RECORD_BYTES

    @property
    def connected(self) -> bool:
        return self._health.connected

    async def ensure_topic(self, topic: str, *, queues: int = 1, most_records: int = 0) -> None:
        self._start()
        await self._admin.ensure_topic(topic, queues)

    async def drop_topic(self, topic: str) -> None:
        self._start()
        await self._admin.drop_topic(topic)

    async def queue_count(self, topic: str) -> int:
        self._start()
        route = await self._routes.get(topic)
        if not route.writable:
            raise BusUnavailable(f"no queue of {topic} may be written")
        return len(route.writable)

    async def publish(self, topic: str, records: Sequence[Record]) -> None:
        self._start()
        await self._producer.publish(topic, records)

    async def open_reader(self, topic: str) -> LoneReader:
        self._start()
        await self._routes.refresh(topic)
        reader = LoneReader(topic, self._routes, self._connections, self._admin, self._readers.discard)
        self._readers.add(reader)
        return reader

    async def open_shared(self, topic: str, group: str, *, invisible_s: float = 60.0) -> PopReader:
        self._start()
        await self._routes.refresh(topic)
        reader = PopReader(
            topic, group, invisible_s, self._routes, self._connections, self._admin, self._readers.discard
        )
        self._readers.add(reader)
        return reader

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        for reader in list(self._readers):
            await reader.close()
        await self._producer.close()
        await self._connections.close()
        await self._routes.close()

    # -- the keeper

    def _start(self) -> None:
        if self._closed:
            raise BusUnavailable("the bus is closed")
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="rocketmq keeper")

    async def _keep(self) -> None:
        """Every half minute, and every couple of seconds while a broker does not answer, greet all of them."""
        backoff = Backoff(1.0, 2.0)
        while True:
            if self._health.all_good:
                self._health.failure.clear()
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S):
                        await self._health.failure.wait()
                except TimeoutError:
                    pass
            await asyncio.sleep(0 if self._health.all_good else backoff.next_s())
            await self._greet()

    async def _greet(self) -> None:
        """Ask for the cluster, forget who left it, and send each known broker a heartbeat."""
        try:
            masters = set((await self._routes.cluster()).values())
        except BusUnavailable:
            masters = set(self._connections.addresses)
        else:
            self._health.keep_only(masters)
            await self._connections.keep_only(masters)
        greetings = (self._greet_one(address) for address in masters)
        await asyncio.gather(*greetings, return_exceptions=True)

    async def _greet_one(self, address: str) -> None:
        body = orjson.dumps(
            {
                "clientID": f"pushfleet@{os.getpid()}",
                "consumerDataSet": [],
                "producerDataSet": [{"groupName": PRODUCER_GROUP}],
            }
        )
        await self._connections.at(address).call(codes.HEARTBEAT, {}, body)


def _with_port(server: str) -> str:
    return server if server.rpartition(":")[2].isdigit() and ":" in server else f"{server}:9876"


def _tls_context(authorities: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authorities or None)
    context.check_hostname = False
    return context
