"""
Where clients are: the sessions that count, read for business systems, and ended for them.

A session counts when it is in its client's route and its node lives with the epoch that the route names. What the table
of nodes does not know is asked once more after a fresh reading; then it is dead, whatever the route says.

A session is ended by a `close` line on its node's topic; its node closes the socket and takes it out of the route.
While the bus is away such lines wait in the outbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dispatcher.nodes import LiveNodes
from dispatcher.outbox import Line
from dispatcher.publisher import Publisher
from shared.errors import BadRequest, CloseCode, NotFound, TopicMissing, Unavailable
from shared.ids import client_of_session
from shared.keys import PARTITIONS
from shared.record import close_line
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_SESSIONS = Script(_LUA / "sessions.lua")
_INDEX = Script(_LUA / "index.lua")
_CLIENTS_A_CALL = 250
_PUBLISH_S = 5.0


@dataclass(frozen=True, slots=True)
class LiveSession:
    """`topic` is its node's. `device` "": it named none."""

    session_id: str
    client_id: str
    device: str
    topic: str


class Sessions:
    """See the module. All raise StoreUnavailable."""

    __slots__ = ("_nodes", "_publisher", "_store")

    def __init__(self, store: Store, nodes: LiveNodes, publisher: Publisher) -> None:
        self._store = store
        self._nodes = nodes
        self._publisher = publisher

    async def of(self, client_ids: Sequence[str]) -> list[list[LiveSession]]:
        """The sessions of each client, oldest first."""
        found: list[list[tuple[str, str, str]]] = []
        for start in range(0, len(client_ids), _CLIENTS_A_CALL):
            some = client_ids[start : start + _CLIENTS_A_CALL]
            found += await self._store.split(some, str, self._read_some)
        await self._know([(session_id, epoch) for sessions in found for session_id, epoch, _ in sessions])
        return [
            self._living(client_id, sorted(sessions, key=_stamp))
            for client_id, sessions in zip(client_ids, found, strict=True)
        ]

    async def living(self, client_id: str, sessions: Sequence[tuple[str, str]]) -> list[LiveSession]:
        """Those of a client's sessions (sessionId, epoch) that count."""
        await self._know(sessions)
        return self._living(client_id, [(session_id, epoch, "") for session_id, epoch in sessions])

    async def get(self, session_id: str) -> LiveSession:
        """Raises NotFound."""
        (sessions,) = await self.of([client_of_session(session_id)])
        for session in sessions:
            if session.session_id == session_id:
                return session
        raise NotFound(f"no session {session_id[:256]} is registered")

    async def at(self, node_id: str, cursor: str, limit: int) -> tuple[list[LiveSession], str]:
        """
        Some sessions of a node, about `limit`, and the cursor of those behind them; "" begins, and ends.

        Who is there from the first page to the last is on one of them. Raises NotFound, BadRequest.
        """
        partition, place = _read_cursor(cursor)
        await self._check_lives(node_id)
        found: list[LiveSession] = []
        while partition < PARTITIONS and len(found) < limit:
            index = self._store.keys.at(partition, node_id)
            answer = await self._store.run(_INDEX, (index,), (place, limit - len(found)))
            place = int(answer[0])
            found += await self._those([name.decode() for name in answer[1]])
            if not place:
                partition += 1
        return found, f"{partition}:{place}" if partition < PARTITIONS else ""

    async def end(self, sessions: Sequence[LiveSession], reason: str, code: CloseCode = CloseCode.KICKED) -> int:
        """Have their nodes close them; of how many there was a node. Raises Unavailable, Overloaded."""
        lines: dict[str, list[Line]] = {}
        for session in sessions:
            line = close_line(session.session_id, code, reason)
            lines.setdefault(session.topic, []).append((session.client_id, line))
        done = [self._publisher.submit(topic, some) for topic, some in lines.items()]
        try:
            async with asyncio.timeout(_PUBLISH_S):
                outcomes = await asyncio.gather(*done, return_exceptions=True)
        except TimeoutError:
            raise Unavailable("the bus does not answer in time; try again") from None
        ended = 0
        for some, outcome in zip(lines.values(), outcomes, strict=True):
            if outcome is None:
                ended += len(some)
            elif not isinstance(outcome, TopicMissing):  # that node is gone, and so are its sessions
                raise outcome
        return ended

    def _living(self, client_id: str, sessions: Sequence[tuple[str, str, str]]) -> list[LiveSession]:
        return [
            LiveSession(session_id, client_id, device, topic)
            for session_id, epoch, device in sessions
            if (topic := self._nodes.topic_of(session_id, epoch))
        ]

    async def _those(self, session_ids: list[str]) -> list[LiveSession]:
        """Of entries of an index, which name a session twice or one that has ended."""
        if not session_ids:
            return []
        wanted = set(session_ids)
        client_ids = sorted({client_of_session(session_id) for session_id in wanted})
        return [session for some in await self.of(client_ids) for session in some if session.session_id in wanted]

    async def _check_lives(self, node_id: str) -> None:
        if node_id not in {node.node_id for node in self._nodes.live()}:
            await self._nodes.refresh()
            if node_id not in {node.node_id for node in self._nodes.live()}:
                raise NotFound(f"no node {node_id[:64]} lives")

    async def _know(self, sessions: Sequence[tuple[str, str]]) -> None:
        """Have the table of nodes know whether their nodes live."""
        self._nodes.live()  # a table that is too old tells nothing
        strangers = [session for session in sessions if self._nodes.topic_of(*session) is None]
        if not strangers:
            return
        await self._nodes.refresh()
        for session_id, epoch in strangers:
            if self._nodes.topic_of(session_id, epoch) is None:
                self._nodes.found_dead(client_of_session(session_id), session_id, epoch)

    async def _read_some(self, client_ids: Sequence[str]) -> list[list[tuple[str, str, str]]]:
        names = [name for client_id in client_ids for name in self._store.keys.route_and_devices(client_id)]
        answers = await self._store.run(_SESSIONS, names, ())
        return [
            [(flat[at].decode(), flat[at + 1].decode(), flat[at + 2].decode()) for at in range(0, len(flat), 3)]
            for flat in answers
        ]


def _stamp(session: tuple[str, str, str]) -> str:
    return session[0].rpartition("_")[2]


def _read_cursor(cursor: str) -> tuple[int, int]:
    """Partition, and the place in its index. Raises BadRequest."""
    if not cursor:
        return 0, 0
    partition, _, place = cursor.partition(":")
    if not (_is_number(partition) and _is_number(place) and int(partition) < PARTITIONS):
        raise BadRequest("not a cursor of an answer to this", field="cursor")
    return int(partition), int(place)


def _is_number(text: str) -> bool:
    """One that Redis takes for a cursor: 64 bits."""
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 1 << 64
