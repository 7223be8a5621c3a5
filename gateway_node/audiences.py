"""
Audiences: which sessions of this node belong to what, and how they get what they have missed.

    registered -> attach: a cursor for everyone and for each group -> live, or behind: reads the timeline -> live

The node *enters* a group before it serves the first member here and leaves it behind the last; it is always in the
audience of everyone. Entering gives the order of the newest message, so a session whose cursor is there is live, and
any other reads what is between. Cursors that stand at the same place are served by one reading.

What brings a membership that changed is a `member` line, or the sweep: either way the client's audiences are read
again. The sweep also enters each audience anew: a record that never came is found by that, and its messages are read.
After the lease was lost nothing here is believed until each audience was entered under the new epoch and each session
registered again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import msgspec

from gateway_node.audience import NOT_BEGUN, Audience, Cursor
from gateway_node.backlog import Backlog
from gateway_node.cursor_moves import CursorMoves
from gateway_node.delivery import Delivery
from gateway_node.fanout import Fanout, Message
from gateway_node.hub import Hub
from gateway_node.metrics import MESSAGES_CUT, TIMELINE_GAPS
from gateway_node.session import Session
from shared.cursors import Cursors, Memberships
from shared.keys import EVERYONE
from shared.timeline import NO_SUCH_GROUP, Part, Timelines

_MOST_A_PART = 64
_MOST_BYTES_A_PART = 1 << 20


class _Member(msgspec.Struct):
    """What a `member` line says."""

    session_id: str = msgspec.field(name="sessionId")


_decoder = msgspec.json.Decoder(_Member)


@dataclass(frozen=True, slots=True)
class Place:
    """This node, as others know it."""

    node_id: str
    epoch: Callable[[], str]


class Audiences:
    """
    Owned by app.py. `turn` lets others have their turn, and waits while nothing may be sent.

    `tell` is called with a session, a code, words and a groupId, when there is something that its client should know.
    """

    __slots__ = (
        "_by_name",
        "_cursors",
        "_delivery",
        "_enters",
        "_fanout",
        "_fills",
        "_hub",
        "_moves",
        "_place",
        "_pulls",
        "_rereads",
        "_timelines",
        "everyone",
        "tell",
        "turn",
    )

    def __init__(
        self,
        place: Place,
        hub: Hub,
        timelines: Timelines,
        cursors: Cursors,
        delivery: Delivery,
        moves: CursorMoves,
        fanout: Fanout,
        by_name: dict[str, Audience],
    ) -> None:
        self._place = place
        self._hub = hub
        self._timelines = timelines
        self._cursors = cursors
        self._delivery = delivery
        self._moves = moves
        self._fanout = fanout
        self._by_name = by_name
        self.everyone = by_name[EVERYONE] = Audience(EVERYONE)
        self.turn: Callable[[], Awaitable[None]]
        self.tell: Callable[[Session, str, str, str | None], None]
        self._enters: Backlog[Audience] = Backlog("enter", self._enter, most=128)
        self._pulls: Backlog[Cursor] = Backlog("timeline", self._pull, most=128)
        self._fills: Backlog[Audience] = Backlog("gap", self._fill, most=1)
        self._rereads: Backlog[Session] = Backlog("audiences", self._reread, most=256)
        delivery.read_on = self._read_on
        fanout.fill = self._note_gap
        fanout.settle = self.settle

    # -- sessions --------------------------------------------------------------------------------------------

    async def prepare(self, names: Iterable[str]) -> None:
        """Enter those that nobody here is in yet, before sessions are told that they are connected."""
        new = [name for name in dict.fromkeys(names) if name not in self._by_name]
        if not new:
            return
        epoch = self._place.epoch()
        orders = await self._timelines.enter(self._place.node_id, epoch, new)
        for name, order in zip(new, orders, strict=True):
            if order != NO_SUCH_GROUP and epoch == self._place.epoch() and name not in self._by_name:
                audience = self._by_name[name] = Audience(name)
                self._entered(audience, order)

    def attach(self, session: Session, memberships: Memberships) -> None:
        """What Redis says of its client's audiences: when it is registered, and whenever that may have changed."""
        joined_anew = memberships.version != session.version
        session.version = memberships.version
        for name, order in memberships.cursors.items():
            cursor = session.cursors.get(name)
            if cursor is None:
                self._add(session, name, order, lasting=True)
            else:
                cursor.lasting = True
                self._resume(cursor, order)
                if joined_anew:
                    self._skip_to(cursor, order)
        for name, cursor in list(session.cursors.items()):
            if cursor.lasting and name not in memberships.cursors:
                self._remove(cursor)

    def attach_for_session(self, session: Session, groups: Iterable[str]) -> None:
        """Groups that its token names: from here on, for as long as the session lasts."""
        for name in groups:
            if name not in session.cursors:
                self._add(session, name, NOT_BEGUN, lasting=False)

    def detach(self, session: Session) -> None:
        """The session has ended."""
        for cursor in session.cursors.values():
            self._moves.last(cursor)
            cursor.audience.remove(session)
            self._leave_if_empty(cursor.audience)
        session.cursors = {}
        session.behind = None

    def changed(self, session_id: bytes) -> None:
        """Its client's memberships have changed, or may have."""
        session = self._hub.by_id.get(session_id)
        if session is not None and session.early is None:
            self._rereads.add(session)

    def member_line(self, envelope: bytes) -> None:
        """Raises ValueError when it cannot be read."""
        self.changed(_decoder.decode(envelope).session_id.encode())

    def begin(self, session: Session) -> int:
        """Where its client's cursor for everyone begins if Redis has none."""
        cursor = session.cursors.get(EVERYONE)
        return self.everyone.head if cursor is None else max(0, cursor.saved)

    def _add(self, session: Session, name: str, order: int, *, lasting: bool) -> None:
        audience = self._by_name.get(name)
        if audience is None:
            audience = self._by_name[name] = Audience(name)
            self._enters.add(audience)
        cursor = session.cursors[name] = audience.members[session] = Cursor(session, audience, order, lasting=lasting)
        self.settle(cursor)

    def _remove(self, cursor: Cursor) -> None:
        """Its client is no member any more; what is in the window need not be acknowledged."""
        del cursor.session.cursors[cursor.audience.name]
        cursor.audience.remove(cursor.session)
        self._leave_if_empty(cursor.audience)

    def _leave_if_empty(self, audience: Audience) -> None:
        if audience.is_group and not audience.members:
            self._enters.add(audience)

    def _resume(self, cursor: Cursor, order: int) -> None:
        """Redis says how far its client is, by this session or another."""
        if not cursor.paused:
            return
        cursor.paused = False
        session = cursor.session
        if session.suspended and session.window is not None:
            session.window.let_go(cursor, order)
        cursor.read_to = max(cursor.read_to, order)
        cursor.saved = order
        self.settle(cursor)

    def _skip_to(self, cursor: Cursor, order: int) -> None:
        """Its client may have left and joined anew, further on: what came between is not for it."""
        audience = cursor.audience
        if order > max(cursor.read_to, audience.head if cursor.live else 0):
            audience.fall_behind(cursor, order)
            cursor.read_to = cursor.saved = order
            self.settle(cursor)

    # -- the lease -------------------------------------------------------------------------------------------

    def suspend_all(self) -> None:
        """The lease was lost: enter each audience again. Sessions read on when `attach` is called for them."""
        for audience in self._by_name.values():
            audience.entering = True
            audience.waiting = []
            for cursor in audience.members.values():
                audience.fall_behind(cursor, max(audience.done, cursor.read_to))
                cursor.paused = cursor.lasting
            self._enters.add(audience)

    def enter_all(self) -> None:
        """Make sure that the records come here, and that none was missed."""
        for audience in self._by_name.values():
            self._enters.add(audience)

    # -- the way to live -------------------------------------------------------------------------------------

    def settle(self, cursor: Cursor) -> None:
        """It goes live if it has caught up, and reads on if not."""
        audience = cursor.audience
        if cursor.paused or cursor.live or audience.entering or cursor.session not in audience.members:
            return
        if cursor.read_to == NOT_BEGUN:
            cursor.read_to = cursor.saved = audience.head
        if cursor.read_to < audience.head:
            self._want(cursor)
        elif cursor.read_to == audience.head:
            audience.go_live(cursor)
        else:
            audience.waiting.append(cursor)

    def _want(self, cursor: Cursor) -> None:
        """Read its part of the timeline, now or when the window has room."""
        session = cursor.session
        if session.window is None or session.window.is_half_empty():
            self._ask(cursor)
        elif session.behind is None:
            session.behind = [cursor]
        elif cursor not in session.behind:
            session.behind.append(cursor)

    def _read_on(self, session: Session) -> None:
        behind, session.behind = session.behind, None
        for cursor in behind or ():
            self._ask(cursor)

    def _ask(self, cursor: Cursor) -> None:
        if not cursor.pulling:
            cursor.pulling = True
            self._pulls.add(cursor)

    async def _pull(self, cursors: list[Cursor]) -> None:
        asks = list(dict.fromkeys((cursor.audience.name, cursor.read_to) for cursor in cursors if _reads(cursor)))
        parts = {}
        if asks:
            found = await self._timelines.read(asks, most=_MOST_A_PART, most_bytes=_MOST_BYTES_A_PART)
            parts = dict(zip(asks, found, strict=True))
            await self.turn()  # the node may have been stopped since it asked, and its clients be elsewhere
        self._delivery.now = asyncio.get_running_loop().time()
        for cursor in cursors:
            cursor.pulling = False
            part = parts.get((cursor.audience.name, cursor.read_to))
            if part is not None and _reads(cursor):
                self._replay(cursor, part)
            else:
                self.settle(cursor)

    def _replay(self, cursor: Cursor, part: Part) -> None:
        session = cursor.session
        if part.cut > cursor.read_to:
            MESSAGES_CUT.inc()
            self._tell_cut(session, cursor.audience)
            cursor.read_to = part.cut
        window = self._delivery.window_of(session)
        now_ms = _now_ms()
        for entry in part.entries:
            if entry.order <= cursor.read_to:
                continue
            window.share(entry.message_id, cursor, entry.order)
            if not (window.knows(entry.message_id) or entry.but == session.session_id or entry.expires_ms <= now_ms):
                if not window.has_room(len(entry.template)):
                    self._want(cursor)
                    return
                self._delivery.send_held(
                    session, cursor, entry.order, entry.message_id, entry.template, entry.expires_ms
                )
            cursor.read_to = entry.order
        if not part.entries or part.entries[-1].order == part.last:
            cursor.read_to = max(cursor.read_to, part.last)
        self._moves.mark(cursor)
        self.settle(cursor)

    def _tell_cut(self, session: Session, audience: Audience) -> None:
        """It was away for longer than messages of the audience are kept."""
        whose = f"group {audience.name}" if audience.is_group else "everyone"
        words = f"messages to {whose} are gone that this client did not get: it was away for too long"
        self.tell(session, "messages_cut", words, audience.name if audience.is_group else None)

    # -- gaps ------------------------------------------------------------------------------------------------

    def _note_gap(self, audience: Audience) -> None:
        if not audience.filling:
            audience.filling = True
            TIMELINE_GAPS.inc()
            self._fills.add(audience)

    async def _fill(self, audiences: list[Audience]) -> None:
        """Read what is behind `head`, and send it to those who are live."""
        for audience in audiences:
            audience.filling = False
            if audience.entering:
                continue
            if not audience.has_live:
                self._enters.add(audience)  # nobody is sent what is missing: `head` goes on to the newest
                continue
            head = audience.head
            (part,) = await self._timelines.read(
                ((audience.name, head),), most=_MOST_A_PART, most_bytes=_MOST_BYTES_A_PART
            )
            await self.turn()
            if audience.entering or not part.entries:
                continue
            messages = [Message(entry.order, entry.expires_ms, entry.but, entry.template) for entry in part.entries]
            await self._fanout.catch_up(audience, messages, self.turn)
            if part.entries[-1].order < part.last:
                self._note_gap(audience)

    # -- entering and leaving --------------------------------------------------------------------------------

    async def _enter(self, audiences: list[Audience]) -> None:
        """Enter those that have members here, leave the others; their order is that of the calls."""
        epoch = self._place.epoch()
        distinct = list(dict.fromkeys(audiences))
        for audience in distinct:
            audience.checking = False
        enter = [audience for audience in distinct if audience.members or not audience.is_group]
        leave = [audience for audience in distinct if audience not in enter]
        if enter:
            orders = await self._timelines.enter(self._place.node_id, epoch, [each.name for each in enter])
            if epoch != self._place.epoch():
                return  # the lease was lost meanwhile, and all are to be entered again
            for audience, order in zip(enter, orders, strict=True):
                self._entered(audience, order)
        if leave:
            await self._timelines.leave([(audience.name, self._place.node_id, epoch) for audience in leave])
        for audience in leave:
            if audience.members:
                self._enters.add(audience)  # somebody came meanwhile
            elif self._by_name.get(audience.name) is audience:
                del self._by_name[audience.name]

    def _entered(self, audience: Audience, last: int) -> None:
        if last == NO_SUCH_GROUP:
            for cursor in list(audience.members.values()):
                self._remove(cursor)
                if not cursor.lasting:
                    words = f"there is no group {audience.name}, which the token names"
                    self.tell(cursor.session, "unknown_group", words, audience.name)
            return
        if not audience.entering and last <= audience.head:
            return
        if audience.has_live:
            self._note_gap(audience)
            return
        audience.entering = False
        audience.head = audience.done = last
        for cursor in list(audience.members.values()):
            self.settle(cursor)
        if audience.missed:
            audience.missed = False
            self._enters.add(audience)  # a record came that may be newer

    async def _reread(self, sessions: list[Session]) -> None:
        open_ones = [session for session in dict.fromkeys(sessions) if session.session_id in self._hub.by_id]
        if not open_ones:
            return
        found = await self._cursors.read([session.client_id for session in open_ones])
        for session, memberships in zip(open_ones, found, strict=True):
            if session.session_id in self._hub.by_id:
                self.attach(session, memberships)
                self._check(session)

    def _check(self, session: Session) -> None:
        """A group of its client may have been deleted and made anew: then nobody knows that members are here."""
        for cursor in session.cursors.values():
            audience = cursor.audience
            if audience.is_group and not audience.checking:
                audience.checking = True
                self._enters.add(audience)

    # -- the end ---------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Return when every audience that nobody is left of was left, and every cursor is where it belongs."""
        await asyncio.gather(self._enters.settled(), self._moves.finish())

    async def close(self, within_s: float) -> None:
        for backlog in (self._pulls, self._fills, self._rereads):
            await backlog.close(0.0)
        await self._enters.close(within_s)


def _reads(cursor: Cursor) -> bool:
    """Whether it is still there, and behind."""
    return not (cursor.live or cursor.paused or cursor.audience.entering) and (
        cursor.session in cursor.audience.members and cursor.read_to != NOT_BEGUN
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
