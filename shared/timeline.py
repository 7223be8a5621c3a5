"""
Timelines: every durable message of an audience, a group or everyone, once.

The dispatcher *adds* a message and learns which nodes host members in one script; a node *enters* an audience before it
serves its first member there and learns the newest order in one script, so one of the two sees the other. A node
*reads* a timeline from where a cursor stands (shared/cursors.py). A timeline keeps a message for a time, and is bounded
in messages and bytes: the oldest are let go, and `cut` says up to which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shared.keys import EVERYONE
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_ADD = Script(_LUA / "timeline_add.lua")
_READ = Script(_LUA / "timeline_read.lua")
_ENTER = Script(_LUA / "audience_enter.lua")
_LEAVE = Script(_LUA / "audience_leave.lua")
NO_SUCH_GROUP = -1


class AudienceMessage(msgspec.Struct, frozen=True):
    """
    A message to an audience. `expires_ms` 0: it is not stored, and only the nodes are asked for.

    `but`: a sessionId that does not get it. `again`: an earlier try may have stored it.
    """

    audience: str
    message_id: str
    expires_ms: int
    template: bytes
    but: str = ""
    again: bool = False


class Added(msgspec.Struct, frozen=True):
    """
    A message's order in its timeline (0: not stored; NO_SUCH_GROUP) and that of the one before it.

    `nodes` are (nodeId, epoch): those that host members of a group; of everyone every node does.
    """

    order: int
    after: int
    nodes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in a timeline."""

    order: int
    message_id: bytes
    expires_ms: int
    but: bytes
    template: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """What stands behind a cursor: the oldest of it. `last` is the newest order, `cut` that of the newest let go."""

    last: int
    cut: int
    entries: tuple[Entry, ...]


def _first(item: tuple[str, object]) -> str:
    return item[0]


def _added(answer: list[Any]) -> Added:
    nodes = tuple((answer[i].decode(), answer[i + 1].decode()) for i in range(2, len(answer), 2))
    return Added(answer[0], answer[1], nodes)


def _part(answer: list[Any]) -> Part:
    entries = tuple(
        Entry(answer[i], answer[i + 1], int(answer[i + 2]), answer[i + 3], answer[i + 4])
        for i in range(2, len(answer), 5)
    )
    return Part(answer[0], answer[1], entries)


class Timelines:
    """Timelines in Redis. Each call takes a batch; all raise StoreUnavailable."""

    __slots__ = ("_keep_ms", "_most_bytes", "_most_messages", "_store")

    def __init__(
        self, store: Store, *, most_messages: int = 10_000, most_bytes: int = 64 << 20, keep_s: float = 7 * 86_400
    ) -> None:
        """What a timeline keeps at most."""
        self._store = store
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self._keep_ms = int(keep_s * 1000)

    async def add(self, messages: Sequence[AudienceMessage]) -> list[Added]:
        """Store each message in its audience's timeline, then read which nodes host members, in one step."""
        return await self._store.split(messages, lambda message: message.audience, self._add_some)

    async def read(self, cursors: Sequence[tuple[str, int]], *, most: int, most_bytes: int) -> list[Part]:
        """What stands behind each (audience, order)."""

        async def read_some(some: Sequence[tuple[str, int]]) -> list[Part]:
            names: list[str] = []
            for audience, _ in some:
                names += self._store.keys.audience(audience)[:2]
            args = (most, most_bytes, *(order for _, order in some))
            return [_part(answer) for answer in await self._store.run(_READ, names, args)]

        return await self._store.split(cursors, _first, read_some)

    async def enter(self, node_id: str, epoch: str, audiences: Sequence[str]) -> list[int]:
        """The node hosts members of these from now on: the newest order of each, or NO_SUCH_GROUP."""

        async def enter_some(some: Sequence[str]) -> list[int]:
            names: list[str] = []
            for audience in some:
                about, _, _, where = self._store.keys.audience(audience)
                names += (about, where)
            args = (node_id, epoch, *(int(audience != EVERYONE) for audience in some))
            orders: list[int] = await self._store.run(_ENTER, names, args)
            return orders

        return await self._store.split(audiences, str, enter_some)

    async def leave(self, places: Sequence[tuple[str, str, str]]) -> int:
        """(group, nodeId, epoch): the node hosts no members of it any more; how many were there."""

        async def leave_some(some: Sequence[tuple[str, str, str]]) -> int:
            names = [self._store.keys.audience(group)[3] for group, _, _ in some]
            args = [word for _, node_id, epoch in some for word in (node_id, epoch)]
            left: int = await self._store.run(_LEAVE, names, args)
            return left

        return sum(await self._store.parts(places, lambda place: place[0], leave_some))

    async def _add_some(self, messages: Sequence[AudienceMessage]) -> list[Added]:
        names: list[str] = []
        args: list[str | int | bytes] = [self._most_messages, self._most_bytes, self._keep_ms]
        for message in messages:
            about, timeline, _, where = self._store.keys.audience(message.audience)
            names += (about, timeline, where)
            args += (message.message_id, message.expires_ms, message.template, message.but)
            args += (int(message.audience != EVERYONE), int(message.again))
        return [_added(answer) for answer in await self._store.run(_ADD, names, args)]
