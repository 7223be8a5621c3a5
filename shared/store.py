"""
Redis: one client of it in a process, and the Lua scripts that are the only way to what belongs to clients.

A script is sent by its hash; a server that does not know it (restarted, failed over) is sent the text once. Whatever
keeps Redis from answering becomes StoreUnavailable. Scripts of this project can all be run again with the same
arguments, so the client may repeat one whose answer was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hiredis import pack_command
from redis.asyncio import Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)

from shared.errors import StoreUnavailable
from shared.keys import Keys

_AWAY = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    AuthenticationError,
    OutOfMemoryError,
)
_AWAY_WORDS = ("MISCONF", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")


def _is_away(error: RedisError) -> bool:
    """Whether Redis cannot serve for now, as opposed to a command of ours that is wrong."""
    return isinstance(error, _AWAY) or str(error).startswith(_AWAY_WORDS)


class Script:
    """A Lua file, with the files it builds on put before it."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, path: Path, *before: Path) -> None:
        self.name = path.stem
        self.text = "\n".join(part.read_text("utf-8") for part in (*before, path))
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


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


class Store:
    """The process's Redis. `available` tells whether the last exchange went well."""

    __slots__ = ("available", "keys", "redis")

    def __init__(self, url: str, *, namespace: str) -> None:
        self.keys = Keys(namespace)
        self.available = False
        self.redis: Redis = Redis.from_url(
            url,
            socket_timeout=3.0,
            socket_connect_timeout=2.0,
            max_connections=64,
            retry=Retry(ExponentialWithJitterBackoff(cap=0.5, base=0.05), 2),
            protocol=2,
        )
        pool = self.redis.connection_pool
        pool.connection_class = _SSLConnection if issubclass(pool.connection_class, SSLConnection) else _Connection

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The script's answer. Raises StoreUnavailable."""
        try:
            try:
                answer = await self._call("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                answer = await self._call("EVAL", script.text, len(keys), *keys, *args)
        except RedisError as error:
            if not _is_away(error):
                raise
            self.available = False
            raise StoreUnavailable(f"Redis does not answer ({type(error).__name__}); try again") from error
        except OSError as error:
            self.available = False
            raise StoreUnavailable(f"Redis does not answer ({type(error).__name__}); try again") from error
        self.available = True
        return answer

    async def _call(self, *words: Any) -> Any:
        return await self.redis.execute_command(*words)  # type: ignore[no-untyped-call]

    async def ping(self) -> None:
        """Raises StoreUnavailable."""
        try:
            await self._call("PING")
        except RedisError as error:
            self.available = False
            raise StoreUnavailable(f"Redis does not answer ({type(error).__name__}); try again") from error
        self.available = True

    async def close(self) -> None:
        await self.redis.aclose()
