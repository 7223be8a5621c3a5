"""
redis-py's clients behind one shape: of a server, of the master that Sentinels name, of a Redis Cluster.

Each finds its servers again by itself. A connection through Sentinels asks them for the master whenever it is made,
and is dropped when it finds itself on a replica. A cluster's client follows MOVED, and reads the map of slots anew
when a node does not answer. Both may take many tries for one command; a deadline bounds them.

On a cluster a batch goes out as a command a partition, all at once; a bound on how many are under way keeps them
from running out of connections, of which redis-py makes no more than it was told and queues for none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from hiredis import pack_command
from redis.asyncio import Connection, Redis, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError

from shared.redis_url import Kind, RedisUrl

_DEADLINE_S = 8.0
_ANSWER_S = 3.0
_CONNECT_S = 2.0
_SENTINEL_S = 1.0
_MOST_CONNECTIONS = 64
_MOST_AT_ONCE = 48

_PULLED_AWAY = (AttributeError, LookupError, RuntimeError)
"""What redis-py runs into when one command's fault closes the connections and the map that others are using."""


class _PackedInC:
    """redis-py's asyncio connections pack commands in Python: of a call with hundreds of words the larger part."""

    def pack_command(self, *words: Any) -> list[bytes]:
        if " " in words[0]:  # redis-py's own methods name some commands in two words
            words = (*words[0].split(), *words[1:])
        return [pack_command(words)]


class _Connection(_PackedInC, Connection):
    pass


class _SSLConnection(_PackedInC, SSLConnection):
    pass


class _SentinelConnection(_PackedInC, SentinelManagedConnection):
    pass


class _SentinelSSLConnection(_PackedInC, SentinelManagedSSLConnection):
    pass


class Client(Protocol):
    """What Store stands on. `redis` is redis-py's client itself, for what is not on a hot path."""

    redis: Redis

    async def execute(self, words: Sequence[Any]) -> Any:
        """The reply of a command. Raises redis-py's errors, TimeoutError."""

    async def close(self) -> None: ...


def open_client(url: RedisUrl) -> Client:
    """Nothing is connected yet."""
    if url.kind is Kind.CLUSTER:
        return _ClusterClient(url)
    if url.kind is Kind.SENTINEL:
        return _SentinelClient(url)
    return _SingleClient(url)


def open_sentinel(url: RedisUrl) -> Sentinel:
    """redis-py's client of the Sentinels. A question takes about a second for each of them that hangs."""
    options = parse_url(url.plain)
    of_sentinels: dict[str, Any] = {
        "username": url.sentinel_username or None,
        "password": url.sentinel_password or None,
        "ssl": _uses_tls(options),
        "socket_timeout": _SENTINEL_S,
        "socket_connect_timeout": _SENTINEL_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **{name: value for name, value in options.items() if name.startswith("ssl_")},
    }
    return Sentinel(list(url.hosts), sentinel_kwargs=of_sentinels)  # type: ignore[no-untyped-call]


def _uses_tls(options: Any) -> bool:
    return options.get("connection_class") is SSLConnection


def _retry() -> Retry:
    return Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), 2)


class _SingleClient:
    """One server. redis-py's timeouts and retries bound a command; nothing of ours stands in its way."""

    def __init__(self, url: RedisUrl) -> None:
        self.redis: Redis = Redis.from_url(
            url.plain,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_CONNECT_S,
            max_connections=_MOST_CONNECTIONS,
            retry=_retry(),
            protocol=2,
        )
        pool = self.redis.connection_pool
        pool.connection_class = _SSLConnection if issubclass(pool.connection_class, SSLConnection) else _Connection

    async def execute(self, words: Sequence[Any]) -> Any:
        return await self.redis.execute_command(*words)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self.redis.aclose()


class _SentinelClient:
    """The master of a service. Sentinels are asked with each new connection."""

    def __init__(self, url: RedisUrl) -> None:
        options: dict[str, Any] = {**parse_url(url.plain)}
        tls = _uses_tls(options)
        for name in ("host", "port"):
            del options[name]
        options["connection_class"] = _SentinelSSLConnection if tls else _SentinelConnection
        self._sentinel = open_sentinel(url)
        self.redis: Redis = self._sentinel.master_for(
            url.service,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_CONNECT_S,
            max_connections=_MOST_CONNECTIONS,
            retry=_retry(),
            protocol=2,
            **options,
        )

    async def execute(self, words: Sequence[Any]) -> Any:
        async with asyncio.timeout(_DEADLINE_S):
            return await self.redis.execute_command(*words)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self.redis.aclose()
        await self._sentinel.aclose()


class _ClusterClient:
    """A Redis Cluster. A command's keys must lie in one slot."""

    def __init__(self, url: RedisUrl) -> None:
        options: dict[str, Any] = {**parse_url(url.plain)}
        tls = _uses_tls(options)
        for name in ("host", "port", "db", "connection_class"):
            options.pop(name, None)
        cluster = self._cluster = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in url.hosts],
            dynamic_startup_nodes=False,  # asks either those of the URL or those it met; `execute` has it ask both
            reinitialize_steps=0,  # it would drop the connections of everybody; slots that moved are mended singly
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_CONNECT_S,
            max_connections=2 * _MOST_CONNECTIONS,
            retry=_retry(),
            protocol=2,
            ssl=tls,
            **options,
        )
        connection_class = _SSLConnection if tls else _Connection
        cluster.connection_kwargs["connection_class"] = connection_class
        for node in cluster.startup_nodes:
            node.connection_class = connection_class
        self.redis: Any = cluster
        self._named = dict(cluster.nodes_manager.startup_nodes)
        self._slots: object = None
        self._turns = asyncio.Semaphore(_MOST_AT_ONCE)

    async def execute(self, words: Sequence[Any]) -> Any:
        async with asyncio.timeout(_DEADLINE_S), self._turns:
            await self._cluster.initialize()
            manager = self._cluster.nodes_manager
            if manager.slots_cache is not self._slots:  # a new map
                self._slots = manager.slots_cache
                manager.startup_nodes = {**manager.nodes_cache, **self._named}
            try:
                return await self._cluster.execute_command(*words)
            except _PULLED_AWAY as error:
                raise ConnectionError("the cluster changed under the command") from error

    async def close(self) -> None:
        await self._cluster.aclose()
        # A client that waits for a new map of slots counts as closed, and keeps its connections.
        await self._cluster.nodes_manager.aclose()
        await self._cluster.nodes_manager.aclose("startup_nodes")
