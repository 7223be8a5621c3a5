"""
An audience on this node: who of it is here, and how far each of them is. Pure state.

    attached --reads its part of the timeline--> live
        ^                                          |
        └── behind: window full, node cut off <────┘

A message comes to the node as one record; `head` is the order of the newest that came in sequence. A *live* session has
everything up to there and gets what comes next at once. One that is not is *behind*: it reads the timeline from its
cursor until it has caught up. `done` is `head` without what is being sent right now.

`read_to` of a live cursor is not kept up to date: that would cost every session for every message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.keys import EVERYONE

if TYPE_CHECKING:
    from gateway_node.session import Session

NOT_BEGUN = -1


class Cursor:
    """
    A session's place in an audience: `read_to` was sent to it, `saved` is what Redis knows to be acknowledged.

    `lasting`: Redis keeps it; else it begins where the session begins, and ends with it. `paused`: its node was cut
    off, and nobody knows yet what the client has acknowledged elsewhere. `pulling`: a part of the timeline is being
    read.
    """

    __slots__ = ("audience", "lasting", "live", "paused", "pulling", "read_to", "saved", "session")

    def __init__(self, session: Session, audience: Audience, read_to: int, *, lasting: bool) -> None:
        self.session = session
        self.audience = audience
        self.read_to = read_to
        self.saved = read_to
        self.lasting = lasting
        self.live = False
        self.paused = False
        self.pulling = False

    def acknowledged(self) -> int:
        """The order up to which the client has everything, as far as is known here."""
        session = self.session
        reached = max(self.audience.done, self.read_to) if self.live else self.read_to
        if not session.ack:
            return reached if session.connection.outbox_bytes == 0 else self.saved
        window = session.window
        first = window.first_order(self) if window is not None else 0
        return min(reached, first - 1) if first else reached


class Audience:
    """
    `entering`: the dispatchers may not send records here yet, and nobody knows what came before.

    `checking`: it is about to be entered again. `changes` counts those who went live, fell behind or left. `missed`: a
    record came meanwhile. `filling`: what is missing is about to be read. `waiting` are cursors that read further than
    the records have come.
    """

    __slots__ = (
        "acking",
        "changes",
        "checking",
        "done",
        "entering",
        "filling",
        "head",
        "members",
        "missed",
        "name",
        "plain",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.head = 0
        self.done = 0
        self.entering = True
        self.changes = 0
        self.checking = False
        self.missed = False
        self.filling = False
        self.members: dict[Session, Cursor] = {}
        self.plain: dict[Session, Cursor] = {}  # live, and their clients do not acknowledge
        self.acking: dict[Session, Cursor] = {}  # live, and they do
        self.waiting: list[Cursor] = []

    @property
    def is_group(self) -> bool:
        return self.name != EVERYONE

    @property
    def has_live(self) -> bool:
        return bool(self.plain or self.acking)

    def go_live(self, cursor: Cursor) -> None:
        cursor.live = True
        self.changes += 1
        live = self.acking if cursor.session.ack else self.plain
        live[cursor.session] = cursor

    def fall_behind(self, cursor: Cursor, read_to: int) -> None:
        """It has everything up to `read_to`, and gets nothing more by records."""
        if cursor.live:
            cursor.live = False
            cursor.read_to = read_to
            self.changes += 1
            live = self.acking if cursor.session.ack else self.plain
            live.pop(cursor.session, None)

    def wants(self, session: Session, first: int) -> bool:
        """Whether it is live, and has nothing yet of messages of which the first has this order."""
        cursor = self.acking.get(session) or self.plain.get(session)
        return cursor is not None and cursor.read_to < first

    def remove(self, session: Session) -> None:
        cursor = self.members.pop(session, None)
        if cursor is not None:
            self.fall_behind(cursor, max(self.done, cursor.read_to))

    def caught_up(self) -> list[Cursor]:
        """Those that waited for the records to come as far as they have read, and wait no more."""
        if not self.waiting:
            return []
        ready = [cursor for cursor in self.waiting if cursor.read_to <= self.head]
        self.waiting = [cursor for cursor in self.waiting if cursor.read_to > self.head]
        return ready
