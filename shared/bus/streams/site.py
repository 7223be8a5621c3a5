"""
Where the server of the streams is: one address, the master that Sentinels name, or the masters of a cluster.

Shared by the links of a bus. Sentinels are asked with each new connection. The map of a cluster's slots is kept until
a link finds it wrong; then the next to need it reads it anew, from the node that it was sent to by another, from
those it knew, or from those of the URL.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from typing import Any

from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, ConnectionError, RedisError

from shared.errors import BusUnavailable
from shared.logs import OncePerSecond, get_log
from shared.redis_clients import open_sentinel
from shared.redis_url import Kind, read_redis_url

Address = tuple[str, int]

_CONNECT_S = 2.0
_MAP_S = 1.0
_READ_BYTES = 256 * 1024
_SLOTS = 16384

_log = get_log("bus")


class Slots:
    """Which master has which slots; every slot has one. `nodes`: all of them, replicas too."""

    __slots__ = ("_firsts", "_owners", "nodes")

    def __init__(self, reply: list[Any], asked: Address) -> None:
        """
        From the reply of CLUSTER SLOTS. A node that does not know its own host is at the one that was asked.

        Raises ClusterDownError when there are slots that nobody has.
        """
        ranges = sorted((first, last, _address(owner, asked)) for first, last, owner, *_ in reply)
        missing = _SLOTS - sum(last - first + 1 for first, last, _ in ranges)
        if missing:
            raise ClusterDownError(f"nobody has {missing} of the slots")
        self._firsts = [first for first, _, _ in ranges]
        self._owners = [owner for _, _, owner in ranges]
        self.nodes = {_address(node, asked) for _, _, *nodes in reply for node in nodes}

    def owner(self, slot: int) -> Address:
        return self._owners[bisect_right(self._firsts, slot) - 1]


def _address(node: list[Any], asked: Address) -> Address:
    return (node[0] or b"").decode() or asked[0], int(node[1])


class Site:
    """See the module. `connected`: whether the last exchange went well."""

    __slots__ = (
        "_connection_class",
        "_hosts",
        "_known",
        "_noisy",
        "_options",
        "_reading",
        "_sentinel",
        "_service",
        "_slots",
        "clustered",
        "connected",
        "name",
    )

    def __init__(self, url: str) -> None:
        """Raises ValueError."""
        place = read_redis_url(url)
        options: dict[str, Any] = {**parse_url(place.plain)}
        self._connection_class: type[Connection] = options.pop("connection_class", Connection)
        self._options = {
            **{name: value for name, value in options.items() if name not in ("host", "port", "max_connections")},
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": _CONNECT_S,
            "socket_read_size": _READ_BYTES,
            "retry": Retry(NoBackoff(), 0),
        }
        self._hosts = place.hosts
        self._service = place.service
        self._sentinel = open_sentinel(place) if place.kind is Kind.SENTINEL else None
        self.clustered = place.kind is Kind.CLUSTER
        self._slots: Slots | None = None
        self._known: list[Address] = list(place.hosts)
        self._reading = asyncio.Lock()
        self.name = place.name
        self.connected = False
        self._noisy = OncePerSecond()

    def new_connection(self, address: Address) -> Connection:
        """Not connected yet."""
        host, port = address
        return self._connection_class(**self._options, host=host, port=port)

    async def master(self) -> Address:
        """The server to talk to; not of a cluster. Raises redis-py's ConnectionError."""
        if self._sentinel is None:
            return self._hosts[0]
        try:
            host, port = await self._sentinel.discover_master(self._service)
        except RedisError as error:
            raise ConnectionError(str(error)) from error
        return host, port

    async def slots(self) -> Slots:
        """The map of the cluster; one that was forgotten is read once for all who ask. Raises ClusterDownError."""
        if self._slots is not None:
            return self._slots
        async with self._reading:
            if self._slots is None:
                self._slots = await self._read_slots()
            return self._slots

    def forget_slots(self, slots: Slots, moved_to: Address | None = None) -> None:
        """This map was wrong, or a node of it is away. `moved_to` knows better."""
        if self._slots is not slots:
            return
        self._slots = None
        known = [address for address in {*slots.nodes, *self._hosts} if address != moved_to]
        random.shuffle(known)
        self._known = [moved_to, *known] if moved_to else known

    def away(self, reason: str) -> BusUnavailable:
        """What to raise when an exchange did not go well."""
        reason = reason or "no answer"
        self.connected = False
        if self._noisy.due():
            _log.warning("bus unavailable", peer=self.name, reason=reason)
        return BusUnavailable(f"{self.name}: {reason}")

    async def close(self) -> None:
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def _read_slots(self) -> Slots:
        reason = ""
        for address in self._known:
            connection = self.new_connection(address)
            try:
                async with asyncio.timeout(_MAP_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
                    await connection.send_command("CLUSTER", "SLOTS")
                    return Slots(await connection.read_response(disable_decoding=True), address)
            except (OSError, RedisError) as error:
                reason = str(error) or "no answer"
            finally:
                await connection.disconnect(nowait=True)
        raise ClusterDownError(reason)
