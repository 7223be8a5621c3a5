"""
Member lines: nodes are told that the audiences of sessions of theirs changed.

A line is only a word to look: the node reads what the client's audiences are now, so a line that comes twice, late or
out of order does no harm, and one that is lost is made good by the node's sweep. A session on a node that does not live
needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from dispatcher.nodes import LiveNodes
from dispatcher.outbox import Line
from dispatcher.publisher import Publisher
from shared.errors import PushfleetError, StoreUnavailable, TopicMissing
from shared.logs import OncePerSecond, get_log
from shared.record import Kind, encode_line, line_head

_HEAD = line_head(Kind.MEMBER, 9_999_999_999_999, 0)
_PUBLISH_S = 5.0
_log = get_log("dispatcher")


class MemberLines:
    """For whoever changes memberships."""

    __slots__ = ("_complaint", "_nodes", "_publisher")

    def __init__(self, nodes: LiveNodes, publisher: Publisher) -> None:
        self._nodes = nodes
        self._publisher = publisher
        self._complaint = OncePerSecond()

    async def tell(self, sessions: Sequence[tuple[str, str, str]]) -> None:
        """
        Send a line for each session (clientId, sessionId, epoch); returns when the bus has them, or within seconds.

        Never raises for what keeps a line from its node: the membership has changed all the same.
        """
        topic_of = self._nodes.topic_of
        if any(topic_of(session_id, epoch) is None for _, session_id, epoch in sessions):
            with suppress(StoreUnavailable):
                await self._nodes.refresh()  # one that started a moment ago
                self._forget_dead(sessions)
        lines: dict[str, list[Line]] = {}
        for client_id, session_id, epoch in sessions:
            topic = topic_of(session_id, epoch)
            if topic:
                line = encode_line(_HEAD, b'{"sessionId":"%b"}' % session_id.encode())
                lines.setdefault(topic, []).append((client_id, line))
        await self._publish(lines)

    def _forget_dead(self, sessions: Sequence[tuple[str, str, str]]) -> None:
        """With a fresh table: so that they cost no further reading."""
        for client_id, session_id, epoch in sessions:
            if self._nodes.topic_of(session_id, epoch) is None:
                self._nodes.found_dead(client_id, session_id, epoch)

    async def _publish(self, lines: dict[str, list[Line]]) -> None:
        under_way: list[asyncio.Future[None]] = []
        for topic, some in lines.items():
            try:
                under_way.append(self._publisher.submit(topic, some))
            except PushfleetError as error:
                self._failed(error)
        if not under_way:
            return
        done, late = await asyncio.wait(under_way, timeout=_PUBLISH_S)
        for future in done:
            fault = None if future.cancelled() else future.exception()
            if isinstance(fault, TopicMissing):
                self._nodes.refresh_soon()
            elif fault is not None:
                self._failed(fault)
        if late:
            self._failed(TimeoutError(f"the bus takes longer than {_PUBLISH_S:g} s"))

    def _failed(self, error: BaseException) -> None:
        if self._complaint.due():
            _log.warning("member_lines_not_sent", reason=str(error))
