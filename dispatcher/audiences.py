"""
Sends to audiences: one entry in a timeline, one line to each node that hosts members.

    check that each group is there -> add to timelines, read where members are -> a line for each of these nodes

What it costs is the number of nodes, however many the members are. Everyone is on every node: there the table of nodes
is read anew *after* the message was added, so a node that took its lease a moment ago is either in it, or finds the
message in the timeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress

from dispatcher.nodes import LiveNodes
from dispatcher.order import Order
from shared.batching import Batcher
from shared.errors import NotFound, PushfleetError, StoreUnavailable
from shared.keys import EVERYONE
from shared.record import audience_head, encode_line
from shared.timeline import NO_SUCH_GROUP, Added, AudienceMessage, Timelines

_ASK_ONLY = "0" * 32


class AudienceSends:
    """For all sends of the process, in batches."""

    __slots__ = ("_add", "_gone", "_nodes")

    def __init__(self, timelines: Timelines, nodes: LiveNodes) -> None:
        self._nodes = nodes
        self._add: Batcher[AudienceMessage, Added] = Batcher("timeline", timelines.add, most=128)

        async def leave(places: list[tuple[str, str, str]]) -> list[None]:
            await timelines.leave(places)
            return [None] * len(places)

        self._gone: Batcher[tuple[str, str, str], None] = Batcher("where", leave)

    async def close(self) -> None:
        await self._add.close()
        await self._gone.close()

    async def check(self, orders: Sequence[Order]) -> None:
        """An order that names a group which is not there gets its error, before anything of it is stored."""
        asked = [
            (order, place, AudienceMessage(group, _ASK_ONLY, 0, b""))
            for order in orders
            if len(order.send.groups) + len(order.send.targets) > 1
            for place, group in enumerate(order.send.groups)
        ]
        found = await self._add.submit([message for _, _, message in asked])
        for (order, place, message), added in zip(asked, found, strict=True):
            if added.order == NO_SUCH_GROUP and order.error is None:
                order.error = _no_such_group(message.audience, place)

    async def add(self, orders: Sequence[Order]) -> list[tuple[Order, str, bytes]]:
        """
        Store what goes to audiences; gives the lines, each with its topic.

        An order that fails has its error. Raises StoreUnavailable, Overloaded: then nobody knows what was stored.
        """
        messages = [(order, message) for order in orders for message in _messages(order)]
        found = await self._add.submit([message for _, message in messages])
        if any(message.audience == EVERYONE for _, message in messages):
            with suppress(StoreUnavailable):  # then the last table may serve
                await self._nodes.refresh()
        lines: list[tuple[Order, str, bytes]] = []
        for (order, message), added in zip(messages, found, strict=True):
            if added.order == NO_SUCH_GROUP:
                order.error = _no_such_group(message.audience, order.send.groups.index(message.audience))
                continue
            head = audience_head(order.expires_ms, added.order, added.after, message.audience, message.but)
            line = encode_line(head, message.template)
            lines += [(order, topic, line) for topic in await self._topics(message.audience, added)]
        return lines

    async def _topics(self, audience: str, added: Added) -> list[str]:
        """Raises StoreUnavailable."""
        if audience == EVERYONE:
            return self._nodes.topics()
        known = [self._nodes.topic_of(node_id, epoch) for node_id, epoch in added.nodes]
        if None in known:
            await self._nodes.refresh()
            known = [self._nodes.topic_of(node_id, epoch) for node_id, epoch in added.nodes]
        dead = [(audience, *node) for node, topic in zip(added.nodes, known, strict=True) if not topic]
        if dead:
            self._forget(dead)
        return [topic for topic in known if topic]

    def _forget(self, places: list[tuple[str, str, str]]) -> None:
        """Nodes that died host nobody; should it fail the next send finds them again."""
        with suppress(PushfleetError):
            self._gone.submit(places).add_done_callback(_seen)


def _messages(order: Order) -> Iterator[AudienceMessage]:
    send = order.send
    expires_ms = order.expires_ms if send.durable else 0
    for audience in (EVERYONE,) if send.everyone else send.groups:
        template = order.message.template if audience == EVERYONE else order.template_for(audience)
        yield AudienceMessage(audience, order.message_id, expires_ms, template, send.but, order.again)


def _no_such_group(group: str, place: int) -> NotFound:
    return NotFound(f"there is no group {group}", field=f"toGroups[{place}]")


def _seen(done: asyncio.Future[list[None]]) -> None:
    if not done.cancelled():
        done.exception()
