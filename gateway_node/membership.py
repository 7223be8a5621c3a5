"""
Membership: clients make groups, join and leave them; the nodes that have sessions of theirs are told at once.

A session here is told by a call, one elsewhere by a `member` line on its node's topic. Should that line be lost, the
other node's sweep finds the change.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from gateway_node.commands import NewGroup, Refused
from gateway_node.hub import Hub
from gateway_node.neighbours import Neighbours
from shared.groups import Changed, Groups
from shared.ids import MessageIdMint
from shared.record import Kind, encode_line, line_head

_LIFE_MS = 9_999_999_999_999  # it says only that there is something to be read


class Membership:
    """
    `changed` is called with the sessionId of a session on this node whose client joined or left a group. `is_open`:
    clients may join groups that others made.
    """

    __slots__ = ("_changed", "_groups", "_hub", "_is_open", "_mint", "_neighbours")

    def __init__(
        self, groups: Groups, hub: Hub, neighbours: Neighbours, changed: Callable[[bytes], None], *, is_open: bool
    ) -> None:
        self._groups = groups
        self._hub = hub
        self._neighbours = neighbours
        self._changed = changed
        self._is_open = is_open
        self._mint = MessageIdMint()

    async def create(self, owner: str, name: str, members: tuple[str, ...]) -> NewGroup:
        """
        A group of `members` and its owner. Who may be in no more groups is left out.

        Raises Refused when that is the owner, and what Groups raises.
        """
        group_id = f"g{self._mint.mint()}"
        all_members = members if owner in members else (owner, *members)
        changed = await self._groups.create(group_id, name=name, owner=owner, members=all_members)
        self._tell(changed)
        refused = dict(changed.refused)
        if owner in refused:
            async for left in self._groups.delete(group_id):
                self._tell(left)
            raise Refused("group_limit", refused[owner])
        there = tuple(member for member in all_members if member not in refused)
        return NewGroup(group_id, name, there, changed.refused)

    async def change(self, client_id: str, group_id: str, *, leave: bool) -> None:
        """Join, or leave. Raises Refused when the client may not join, and what Groups raises."""
        if not leave and not self._is_open:
            raise Refused("forbidden", "clients do not join groups here by themselves")
        act = self._groups.remove if leave else self._groups.add
        changed = await act(group_id, (client_id,))
        self._tell(changed)
        for _, reason in changed.refused:
            raise Refused("group_limit", reason)

    def _tell(self, changed: Changed) -> None:
        for _, session_id, _ in changed.sessions:
            key = session_id.encode()
            if key in self._hub.by_id:
                self._changed(key)
            else:
                poke = orjson.dumps({"sessionId": session_id})
                self._neighbours.tell(session_id, encode_line(line_head(Kind.MEMBER, _LIFE_MS, 0), poke))
