"""
Inboxes: every durable message of a client until the client acknowledged it.

The dispatcher *stores* a message and reads the client's route in one script; a node *reads* a slice when a session
registers and as acknowledgements come, and *retires* what was acknowledged. Lua files in `lua/` hold the layout.
An inbox is bounded in messages and bytes; expired messages make room when it is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec

from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
SLICE = _LUA / "slice.lua"
_STORE = Script(_LUA / "store.lua")
_READ = Script(_LUA / "read.lua", SLICE)
_RETIRE = Script(_LUA / "retire.lua")
_ORDER = slice(0, 16)
_EXPIRES = slice(16, 29)
_TEMPLATE = slice(29, None)


class StoredMessage(msgspec.Struct, frozen=True):
    """A message for the store call. `expires_ms` 0: only the route is read. `template`: see shared.envelope."""

    message_id: str
    expires_ms: int
    template: bytes


class Stored(IntEnum):
    FULL = -1
    NOT_DURABLE = 0
    YES = 1


class Target(msgspec.Struct, frozen=True):
    """
    What the store call tells of one target: its sessions as (sessionId, epoch).

    `order` is the message's place in the inbox (epoch us), 0 when it was not stored.
    """

    stored: Stored
    order: int
    sessions: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message read from an inbox."""

    message_id: str
    order: int
    expires_ms: int
    template: bytes


@dataclass(frozen=True, slots=True)
class Slice:
    """The oldest messages of an inbox, and how many it holds in all."""

    held: int
    messages: tuple[Waiting, ...]


_EMPTY = Slice(0, ())


def read_slice(answer: list[Any]) -> Slice:
    """From slice.lua's answer."""
    if len(answer) == 1:
        return _EMPTY if not answer[0] else Slice(answer[0], ())
    messages = tuple(_waiting(answer[i], answer[i + 1]) for i in range(1, len(answer), 2))
    return Slice(answer[0], messages)


def _waiting(message_id: bytes, value: bytes) -> Waiting:
    return Waiting(message_id.decode(), int(value[_ORDER]), int(value[_EXPIRES]), value[_TEMPLATE])


_NOT_STORED = {0: Stored.NOT_DURABLE, -1: Stored.FULL}


def _target(answer: list[Any]) -> Target:
    place: int = answer[0]
    sessions: tuple[tuple[str, str], ...]
    if len(answer) == 3:  # nearly always
        sessions = ((answer[1].decode(), answer[2].decode()),)
    else:
        sessions = tuple((answer[i].decode(), answer[i + 1].decode()) for i in range(1, len(answer), 2))
    if place > 0:
        return Target(Stored.YES, place, sessions)
    return Target(_NOT_STORED[place], 0, sessions)


def _client_of(item: tuple[str, object]) -> str:
    return item[0]


class Inbox:
    """Inboxes in Redis. Each call takes a batch; all raise StoreUnavailable."""

    __slots__ = ("_most_bytes", "_most_messages", "_store")

    def __init__(self, store: Store, *, most_messages: int = 1000, most_bytes: int = 4 << 20) -> None:
        self._store = store
        self._most_messages = most_messages
        self._most_bytes = most_bytes

    async def store(self, targets: Sequence[tuple[str, StoredMessage]]) -> list[Target]:
        """Store a message for each (clientId, message), then read the client's route, in one step."""
        return await self._store.split(targets, _client_of, self._store_some)

    async def read(self, client_ids: Sequence[str], *, most: int, most_bytes: int) -> list[Slice]:
        """The oldest messages of each client's inbox."""
        inbox = self._store.keys.inbox

        async def read_some(some: Sequence[str]) -> list[Slice]:
            names = [inbox(client_id) for client_id in some]
            return [read_slice(answer) for answer in await self._store.run(_READ, names, (most, most_bytes))]

        return await self._store.split(client_ids, str, read_some)

    async def retire(self, messages: Sequence[tuple[str, str | bytes]]) -> int:
        """Take out messages (clientId, messageId); how many of them were there."""
        return sum(await self._store.parts(messages, _client_of, self._retire_some))

    async def _store_some(self, targets: Sequence[tuple[str, StoredMessage]]) -> list[Target]:
        inbox_and_route = self._store.keys.inbox_and_route
        names: list[str] = []
        messages: list[bytes | str | int] = []
        places: dict[int, int] = {}
        which: list[int] = []
        for client_id, message in targets:
            names += inbox_and_route(client_id)
            place = places.get(id(message))
            if place is None:
                place = places[id(message)] = len(places) + 1
                messages += (message.message_id, message.expires_ms, message.template)
            which.append(place)
        args = (self._most_messages, self._most_bytes, len(places), *messages, *which)
        return [_target(answer) for answer in await self._store.run(_STORE, names, args)]

    async def _retire_some(self, messages: Sequence[tuple[str, str | bytes]]) -> int:
        inbox = self._store.keys.inbox
        retired: int = await self._store.run(
            _RETIRE,
            [inbox(client_id) for client_id, _ in messages],
            [message_id for _, message_id in messages],
        )
        return retired
