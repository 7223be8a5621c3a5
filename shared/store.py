"""
Redis: one client of it in a process, and the Lua scripts that are the only way to what belongs to clients.

Redis is one server, the master that Sentinels name, or a cluster. The keys of a client lie in one of 64 partitions
(shared.keys). On a single server a batch is one call; on a cluster it is one a partition, all at once.

A script is sent by its hash; a server that does not know it (restarted, failed over) is sent the text once. Whatever
keeps Redis from answering becomes StoreUnavailable. Scripts of this project can all be run again with the same
arguments, so the client may repeat one whose answer was lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterError,
    ConnectionError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TimeoutError,
)

from shared.errors import StoreUnavailable
from shared.keys import Keys, partition_of
from shared.redis_clients import open_client
from shared.redis_url import Kind, read_redis_url

Item = TypeVar("Item")
Result = TypeVar("Result")

_AWAY = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    AuthenticationError,
    OutOfMemoryError,
    ClusterError,
    SlotNotCoveredError,
)
_AWAY_WORDS = (
    *("MISCONF", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
    *("Redis Cluster cannot be connected", "All slots are not covered", "startup_nodes could not agree"),
)
# uvloop raises a plain RuntimeError for a write to a connection that was reset a moment ago.
_ERRORS = (RedisError, RedisClusterException, OSError, RuntimeError)
_CLOSED = "the handler is closed"


def _is_away(error: Exception) -> bool:
    """Whether Redis cannot serve for now, as opposed to a command of ours that is wrong."""
    if isinstance(error, RuntimeError):
        return _CLOSED in str(error)
    return isinstance(error, (*_AWAY, OSError)) or str(error).startswith(_AWAY_WORDS)


class Script:
    """A Lua file, with the files it builds on put before it."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, path: Path, *before: Path) -> None:
        self.name = path.stem
        self.text = "\n".join(part.read_text("utf-8") for part in (*before, path))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Store:
    """
    The process's Redis. `available` tells whether the last exchange went well.

    `url`: see shared.redis_url. With `clustered` the keys of a call must lie in one partition: see `parts`.
    """

    __slots__ = ("_client", "_execute", "available", "clustered", "keys", "redis")

    def __init__(self, url: str, *, namespace: str) -> None:
        """Raises ValueError for a URL that cannot be understood."""
        place = read_redis_url(url)
        self.keys = Keys(namespace)
        self.available = False
        self.clustered = place.kind is Kind.CLUSTER
        self._client = open_client(place)
        self._execute = self._client.execute
        self.redis = self._client.redis

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The script's answer. Raises StoreUnavailable."""
        try:
            try:
                answer = await self._execute(("EVALSHA", script.sha, len(keys), *keys, *args))
            except NoScriptError:
                answer = await self._execute(("EVAL", script.text, len(keys), *keys, *args))
        except _ERRORS as error:
            raise self._failed(error) from error
        self.available = True
        _raise_if_cancelled()
        return answer

    async def parts(
        self,
        items: Sequence[Item],
        name_of: Callable[[Item], str],
        call: Callable[[Sequence[Item]], Awaitable[Result]],
    ) -> list[Result]:
        """
        The results of `call` for all items: of one call on a single server, of one a partition on a cluster.

        `name_of` gives what the item's keys are made of (its clientId). Raises what `call` raises, when all calls
        are done: on a cluster some may have gone well.
        """
        if not self.clustered:
            return [await call(items)]
        parted: dict[int, list[Item]] = {}
        for item in items:
            parted.setdefault(partition_of(name_of(item)), []).append(item)
        return await _all_of([call(part) for part in parted.values()])

    async def split(
        self,
        items: Sequence[Item],
        name_of: Callable[[Item], str],
        call: Callable[[Sequence[Item]], Awaitable[list[Result]]],
    ) -> list[Result]:
        """A result of `call` for each item, in order; otherwise as `parts`."""
        if not self.clustered:
            return await call(items)
        places: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(partition_of(name_of(item)), []).append(place)
        answers = await _all_of([call([items[place] for place in part]) for part in places.values()])
        results: dict[int, Result] = {}
        for part, answer in zip(places.values(), answers, strict=True):
            results.update(zip(part, answer, strict=True))
        return [results[place] for place in range(len(items))]

    async def ping(self) -> None:
        """Raises StoreUnavailable."""
        try:
            # A cluster that has lost slots answers PING still, but nothing that names a key.
            await self._execute(("EXISTS", self.keys.node_ids) if self.clustered else ("PING",))
        except _ERRORS as error:
            self.available = False
            raise _unavailable(error) from error
        self.available = True
        _raise_if_cancelled()

    async def close(self) -> None:
        await self._client.close()

    def _failed(self, error: Exception) -> Exception:
        """What to raise for it."""
        if not _is_away(error):
            if isinstance(error, MovedError | ClusterCrossSlotError) and not self.clustered:
                return StoreUnavailable("Redis is one node of a cluster; its URL begins with redis+cluster://")
            return error
        self.available = False
        return _unavailable(error)


def _raise_if_cancelled() -> None:
    """
    redis-py waits with asyncio.wait_for, which before Python 3.12 forgets a cancellation that comes as it is done.

    Without this a task that is cancelled then would go on for ever, and who waits for its end with it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"Redis does not answer ({_kind_of(error)}); try again")


def _kind_of(error: BaseException) -> str:
    """A word or two that hold nothing of a URL; what is wrong with a certificate, if it was that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason}"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


async def _all_of(calls: Sequence[Awaitable[Result]]) -> list[Result]:
    """The results when every call is done. Raises the first error."""
    if len(calls) == 1:
        return [await calls[0]]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return cast(list[Result], answers)
