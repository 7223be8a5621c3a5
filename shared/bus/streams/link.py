"""
Exchanges with Redis: any number of commands, and as many replies.

A `Link` is one connection, used by one exchange at a time. It connects when there is no connection, and tries again
with jittered backoff, until its deadline, while the server is away: refuses, loads its data, is a replica, is out of
memory or cannot write to its disk. A retried exchange may have been carried out before, so everything sent here may
be done twice without harm; a record published twice is within "at least once".

The scripts are loaded whenever a connection is made, so EVALSHA finds them also after the server was restarted.
An exchange that is cancelled or times out drops the connection, since replies would be out of step.

On a Redis Cluster a `ClusterLink` keeps a link for each master that it has to do with, and sends each the commands of
its slots. What came back from none of them in good order is sent again, after the map of slots was read anew: all
commands of one topic, in their order, since they go to one master.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from hiredis import pack_command
from redis import exceptions
from redis.asyncio.connection import Connection
from redis.crc import key_slot

from shared.backoff import Backoff
from shared.bus.streams.scripts import ALL, Script
from shared.bus.streams.site import Address, Site, Slots
from shared.errors import BusError
from shared.logs import get_log
from shared.metrics import BUS_RECONNECTS

Argument = bytes | int
Command = tuple[Argument, ...]

DEADLINE_S = 5.0

_AWAY = (
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

_PLACE_OF_KEY: dict[Argument, int] = {b"EVALSHA": 3, b"XREAD": 6, b"XREADGROUP": 9}
"""Where a command of ours names its first key, if not at once."""

_log = get_log("bus")


class Away(Exception):
    """The server cannot do it now. `moved_to`: another can, as far as it knows."""

    def __init__(self, reason: str, moved_to: Address | None = None) -> None:
        super().__init__(reason or "no answer")
        self.moved_to = moved_to


class Exchanges(Protocol):
    """What the parts of the bus talk through."""

    async def exchange(self, commands: Sequence[Command], *, deadline_s: float = DEADLINE_S) -> list[Any]:
        """
        The raw replies (RESP2), in order. Tries until the deadline.

        Raises BusUnavailable; BusError for a command that the server refuses.
        """

    async def wait(self, command: Command, *, wait_s: float) -> Any:
        """One try of a command that blocks up to `wait_s` on the server. Raises BusUnavailable, BusError."""

    async def close(self) -> None:
        """Drop the connections. A later exchange makes new ones."""


def open_link(site: Site) -> Exchanges:
    """Nothing is connected yet."""
    return ClusterLink(site) if site.clustered else Link(site)


class Link:
    """One connection; see the module and Exchanges. `address`: of a node of a cluster, else the site knows."""

    __slots__ = ("_address", "_connection", "_lock", "_lost", "_made", "_site")

    def __init__(self, site: Site, address: Address | None = None) -> None:
        self._site = site
        self._address = address
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._lost = False
        self._made = False

    async def exchange(self, commands: Sequence[Command], *, deadline_s: float = DEADLINE_S) -> list[Any]:
        """See Exchanges."""
        backoff = Backoff(0.02, 0.5)
        reason = "no answer"
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    try:
                        return await self.once(commands)
                    except Away as error:
                        reason = str(error)
                    await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            self._lost = True
            raise self._site.away(reason) from None

    async def wait(self, command: Command, *, wait_s: float) -> Any:
        """See Exchanges."""
        try:
            async with asyncio.timeout(wait_s + DEADLINE_S):
                return (await self.once((command,)))[0]
        except (TimeoutError, Away) as error:
            self._lost = True
            raise self._site.away(str(error)) from None

    async def close(self) -> None:
        """See Exchanges."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def once(self, commands: Sequence[Command]) -> list[Any]:
        """One try. Raises Away, and BusError, after which the connection is still good."""
        async with self._lock:
            try:
                replies = await self._talk(commands)
            except BusError:
                raise
            except Away:
                await self._drop()
                raise
            except _AWAY as error:
                await self._drop()
                raise Away(str(error)) from None
            except BaseException:
                await self.close()
                raise
        self._site.connected = True
        return replies

    async def _drop(self) -> None:
        # The next connection loads the scripts again, and may find another server behind the name.
        self._lost = True
        await self.close()

    async def _talk(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        if connection is None or not connection.is_connected:
            connection = await self._connect()
        await connection.send_packed_command(_packed(commands), check_health=False)
        replies = [await _reply(connection) for _ in commands]
        self._raise_refusal(replies)
        return replies

    async def _connect(self) -> Connection:
        connection = self._site.new_connection(self._address or await self._site.master())
        commands: list[Command] = [(b"SCRIPT", b"LOAD", script.text) for script in ALL]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(_packed(commands), check_health=False)
            self._raise_refusal([await _reply(connection) for _ in commands])
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection
        if self._made and self._lost:
            BUS_RECONNECTS.labels(self._site.name).inc()
            _log.info("bus reconnected", peer=self._site.name)
        self._made, self._lost = True, False
        return connection

    def _raise_refusal(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                if self._address is not None and isinstance(reply, exceptions.AskError):
                    raise Away(str(reply), (reply.host or self._address[0], reply.port))
                if isinstance(reply, _AWAY) or str(reply).startswith(_AWAY_WORDS):
                    raise Away(str(reply))
                raise BusError(str(reply))


class ClusterLink:
    """A link a master; see the module and Exchanges."""

    __slots__ = ("_links", "_site")

    def __init__(self, site: Site) -> None:
        self._site = site
        self._links: dict[Address, Link] = {}

    async def exchange(self, commands: Sequence[Command], *, deadline_s: float = DEADLINE_S) -> list[Any]:
        """See Exchanges."""
        backoff = Backoff(0.02, 0.5)
        replies: dict[int, Any] = {}
        reason = "no answer"
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    try:
                        await self._round(commands, replies)
                        return [replies[place] for place in range(len(commands))]
                    except Away as error:
                        reason = str(error)
                    await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            raise self._site.away(reason) from None

    async def wait(self, command: Command, *, wait_s: float) -> Any:
        """See Exchanges."""
        replies: dict[int, Any] = {}
        try:
            async with asyncio.timeout(wait_s + DEADLINE_S):
                await self._round((command,), replies)
        except (TimeoutError, Away) as error:
            raise self._site.away(str(error)) from None
        return replies[0]

    async def close(self) -> None:
        """See Exchanges."""
        links, self._links = self._links, {}
        await asyncio.gather(*(link.close() for link in links.values()))

    async def _round(self, commands: Sequence[Command], replies: dict[int, Any]) -> None:
        """Send what has no reply yet. Raises Away, BusError, when every master was asked."""
        slots = await self._slots()
        shares: dict[Address, list[int]] = {}
        for place, command in enumerate(commands):
            if place not in replies:
                shares.setdefault(slots.owner(_slot_of(command)), []).append(place)
        calls = [self._share(address, commands, places, replies) for address, places in shares.items()]
        try:
            faults = [fault for fault in await asyncio.gather(*calls) if fault is not None]
        except BaseException:
            self._site.forget_slots(slots)  # a master that hangs may have been replaced
            raise
        away = [fault for fault in faults if isinstance(fault, Away)]
        if away:
            self._site.forget_slots(slots, next((fault.moved_to for fault in away if fault.moved_to), None))
        if faults:
            raise next((fault for fault in faults if isinstance(fault, BusError)), faults[0])

    async def _slots(self) -> Slots:
        try:
            return await self._site.slots()
        except exceptions.ClusterDownError as error:
            raise Away(str(error)) from None

    async def _share(
        self, address: Address, commands: Sequence[Command], places: list[int], replies: dict[int, Any]
    ) -> Away | BusError | None:
        """What a master answers is put into `replies`; gives what went wrong."""
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(self._site, address)
        try:
            replies.update(zip(places, await link.once([commands[place] for place in places]), strict=True))
        except (Away, BusError) as error:
            return error
        return None


def _slot_of(command: Command) -> int:
    key = command[_PLACE_OF_KEY.get(command[0], 1)]
    assert isinstance(key, bytes)
    return key_slot(key)


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
