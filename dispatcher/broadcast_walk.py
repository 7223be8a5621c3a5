"""
The walk through a broadcast's targets, a page at a time, that anybody may go on with from any page.

Its *sources* are walked one after the other: the groups in the order they were named, or the 64 partitions of the
clients that are known. A *place* in it is `<source>:<cursor>`; "" is its beginning, `end` its end. Who is a target all
the while is on a page; one may be on two, most of all when Redis was restarted and a source is walked anew. So those of
the source that a place is in are to be remembered: all of the groups, since a client may be in several, and the clients
of one partition.
"""

from __future__ import annotations

from shared.clients import KnownClients
from shared.errors import NotFound
from shared.groups import Groups
from shared.keys import PARTITIONS, partition_of

END = "end"


class Walk:
    """The targets of one broadcast: members of `groups`, everyone when there are none."""

    __slots__ = ("_clients", "_groups", "_members", "_sources")

    def __init__(self, groups: tuple[str, ...], members: Groups, clients: KnownClients) -> None:
        self._groups = groups
        self._members = members
        self._clients = clients
        self._sources = len(groups) or PARTITIONS

    async def page(self, place: str, most: int) -> tuple[list[str], str]:
        """About `most` targets from `place` on, and the place of the next page. Raises StoreUnavailable."""
        source, cursor = _source(place), place.partition(":")[2]
        found: list[str] = []
        while source < self._sources and len(found) < most:
            some, cursor = await self._some(source, cursor, most - len(found))
            found += some
            if not cursor:
                source += 1
        return list(dict.fromkeys(found)), f"{source}:{cursor}" if source < self._sources else END

    def to_remember(self, before: str, targets: list[str], place: str) -> tuple[tuple[str, ...], bool]:
        """
        Those of a page's targets who may be met again from `place` on, the page having begun at `before`.

        And whether nobody who was on an earlier page may be.
        """
        if self._groups:
            return tuple(targets), False
        if place == END:
            return (), True
        source = _source(place)
        return tuple(target for target in targets if partition_of(target) == source), source != _source(before)

    async def _some(self, source: int, cursor: str, most: int) -> tuple[list[str], str]:
        if not self._groups:
            return await self._clients.page(source, cursor, most)
        try:
            return await self._members.members(self._groups[source], cursor, most)
        except NotFound:  # deleted since
            return [], ""


def _source(place: str) -> int:
    return int(place.partition(":")[0] or 0)
