"""
One connection to Redis, used by one exchange at a time.

An exchange writes any number of commands and reads as many replies. It connects when there is no connection, and
tries again with jittered backoff, until its deadline, while the server is away: refuses, loads its data, is a
replica, is out of memory or cannot write to its disk. A retried exchange may have been carried out before, so
everything sent here may be done twice without harm; a record published twice is within "at least once".

The scripts are loaded whenever a connection is made, so EVALSHA finds them also after the server was restarted.
An exchange that is cancelled or times out drops the connection, since replies would be out of step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis import exceptions
from redis.asyncio.connection import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.backoff import Backoff
from shared.bus.streams.scripts import ALL, Script
from shared.errors import BusError, BusUnavailable
from shared.logs import OncePerSecond, get_log
from shared.metrics import BUS_RECONNECTS

Argument = bytes | int
Command = tuple[Argument, ...]

DEADLINE_S = 5.0

_CONNECT_S = 2.0
_READ_BYTES = 256 * 1024


class _Away(Exception):
    """The server cannot do it now."""


_AWAY = (
    _Away,
    OSError,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.NoScriptError,
)
_AWAY_WORDS = ("MISCONF", "BUSY ", "NOREPLICAS", "MASTERDOWN", "UNBLOCKED")

_log = get_log("bus")


class Site:
    """Where the server is, and whether the last exchange with it went well; shared by the links of a bus."""

    __slots__ = ("connected", "name", "noisy", "pool")

    def __init__(self, url: str) -> None:
        self.pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=_CONNECT_S,
            socket_read_size=_READ_BYTES,
            retry=Retry(NoBackoff(), 0),
        )
        options = self.pool.connection_kwargs
        self.name = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self.connected = False
        self.noisy = OncePerSecond()

    def new_connection(self) -> Connection:
        """Not connected yet."""
        connection: Connection = self.pool.make_connection()  # type: ignore[no-untyped-call]
        return connection


class Link:
    """See the module."""

    __slots__ = ("_connection", "_lock", "_lost", "_made", "_site")

    def __init__(self, site: Site) -> None:
        self._site = site
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._lost = False
        self._made = False

    async def exchange(self, commands: Sequence[Command], *, deadline_s: float = DEADLINE_S) -> list[Any]:
        """
        The raw replies (RESP2), in order. Tries until the deadline.

        Raises BusUnavailable; BusError for a command that the server refuses.
        """
        backoff = Backoff(0.02, 0.5)
        reason = "no answer"
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    try:
                        return await self._once(commands)
                    except _Away as error:
                        reason = str(error)
                    await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            self._away(reason)
            raise BusUnavailable(f"{self._site.name}: {reason}") from None

    async def wait(self, command: Command, *, wait_s: float) -> Any:
        """One try of a command that blocks up to `wait_s` on the server. Raises BusUnavailable, BusError."""
        try:
            async with asyncio.timeout(wait_s + DEADLINE_S):
                return (await self._once((command,)))[0]
        except (TimeoutError, _Away) as error:
            reason = str(error) or "no answer"
            self._away(reason)
            raise BusUnavailable(f"{self._site.name}: {reason}") from None

    async def close(self) -> None:
        """Drop the connection. A later exchange makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _once(self, commands: Sequence[Command]) -> list[Any]:
        """One try. Raises _Away, and BusError, after which the connection is still good."""
        async with self._lock:
            try:
                replies = await self._talk(commands)
            except BusError:
                raise
            except _AWAY as error:
                # The next connection loads the scripts again, and may find another server behind the name.
                self._lost = True
                await self.close()
                raise _Away(str(error)) from None
            except BaseException:
                await self.close()
                raise
        self._site.connected = True
        return replies

    async def _talk(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        if connection is None or not connection.is_connected:
            connection = await self._connect()
        await connection.send_packed_command(_packed(commands), check_health=False)
        replies = [await _reply(connection) for _ in commands]
        _raise_refusal(replies)
        return replies

    async def _connect(self) -> Connection:
        connection = self._site.new_connection()
        commands: list[Command] = [(b"SCRIPT", b"LOAD", script.text) for script in ALL]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(_packed(commands), check_health=False)
            _raise_refusal([await _reply(connection) for _ in commands])
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        if self._made and self._lost:
            BUS_RECONNECTS.labels(self._site.name).inc()
            _log.info("bus reconnected", peer=self._site.name)
        self._made, self._lost = True, False
        return connection

    def _away(self, reason: str) -> None:
        self._lost = True
        self._site.connected = False
        if self._site.noisy.due():
            _log.warning("bus unavailable", peer=self._site.name, reason=reason)


def call(script: Script, marker: bytes, *arguments: Argument) -> Command:
    """The command that runs a script on a topic."""
    return (b"EVALSHA", script.sha, 1, marker, *arguments)


def _packed(commands: Sequence[Command]) -> list[bytes]:
    return [pack_command(command) for command in commands]  # type: ignore[arg-type]  # its stub allows one argument


async def _reply(connection: Connection) -> Any:
    """The reply, or the error that the server replied."""
    try:
        return await connection.read_response(disable_decoding=True)
    except exceptions.ResponseError as error:
        return error


def _raise_refusal(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            if isinstance(reply, _AWAY) or str(reply).startswith(_AWAY_WORDS):
                raise _Away(str(reply))
            raise BusError(str(reply))
