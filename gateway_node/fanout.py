"""
Fan-out: a message of an audience, to each session of it on this node.

Records of an audience are taken in sequence: each says which order the message before it has. One that was seen already
is passed over; when one is missing, be it late or lost, the timeline is read (`fill` is asked for).

What differs between sessions, sessionId and `to`, is one run of bytes in the envelope: the session's address. So the
frames of a session are its address joined between parts that are the same for all sessions whose addresses are of the
same length. Messages that wait together go to a session in one write. A large audience is gone through in slices of a
few ms, between which everything else has its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from gateway_node.audience import Audience, Cursor
from gateway_node.cursor_moves import CursorMoves
from gateway_node.delivery import Delivery
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from gateway_node.websocket.frames import TEXT, frame_header, text_frame
from gateway_node.window import Recent
from shared.envelope import cut_template, message_id_of
from shared.record import AudienceLine

_MOST_BYTES_A_WRITE = 32 << 10
_LEAST_BYTES_A_WRITE = 1 << 10
_BYTES_A_TURN = 2 << 20
_PLAIN_A_TURN = 250  # sessions
_HELD_A_TURN = 125  # those with a window cost twice as much, and acknowledgements come back

Turn = Callable[[], Awaitable[None]]
Write = Callable[[Audience, Sequence[Session], "Batch"], None]


class Message:
    """A message on its way to many sessions; `head` and `tail` stand around a session's address."""

    __slots__ = ("but", "expires_ms", "head", "message_id", "order", "size", "tail", "template")

    def __init__(self, order: int, expires_ms: int, but: bytes, template: bytes) -> None:
        """Raises ValueError when `template` is not one."""
        self.order = order
        self.expires_ms = expires_ms
        self.but = but
        self.template = template
        self.message_id = message_id_of(template)
        self.head, self.tail = cut_template(template)
        self.size = len(template)


class Around(dict[int, tuple[bytes, ...]]):
    """What stands before, between and behind addresses of a length, frame headers included; by that length."""

    def __init__(self, messages: Sequence[Message]) -> None:
        super().__init__()
        self._messages = messages

    def __missing__(self, length: int) -> tuple[bytes, ...]:
        parts: list[bytes] = [b""]
        for message in self._messages:
            parts[-1] += frame_header(TEXT, len(message.head) + length + len(message.tail)) + message.head
            parts.append(message.tail)
        self[length] = around = tuple(parts)
        return around


class Batch:
    """
    Messages that go to each session in one write. `size` is that of their templates, `buts` who does not get all.
    """

    __slots__ = ("around", "buts", "messages", "size")

    def __init__(self, messages: Sequence[Message], size: int) -> None:
        self.messages = messages
        self.size = size
        self.buts = {message.but for message in messages if message.but}
        self.around = Around(messages)


class Fanout:
    """
    `audiences` are those on this node by name; `settle` is called with cursors that may go live or have to read on.

    `loose` remembers the ids of what was sent without being stored; `handed_out` is the number of bytes that went to
    each session so far; the other numbers are for the consumer to count.
    """

    __slots__ = (
        "_audiences",
        "_busy",
        "_delivery",
        "_moves",
        "_settings",
        "_since_turn",
        "_turn_at",
        "delivered",
        "duplicates",
        "fill",
        "handed_out",
        "loose",
        "set_aside",
        "settle",
        "unknown",
    )

    def __init__(
        self,
        audiences: dict[str, Audience],
        delivery: Delivery,
        moves: CursorMoves,
        loose: Recent,
        settings: GatewaySettings,
    ) -> None:
        self._audiences = audiences
        self._delivery = delivery
        self._moves = moves
        self._settings = settings
        self._busy = asyncio.Lock()
        self._since_turn = 0
        self._turn_at = 0
        self.fill: Callable[[Audience], None]
        self.settle: Callable[[Cursor], None]
        self.handed_out = 0
        self.loose = loose
        self.delivered = 0
        self.duplicates = 0
        self.set_aside = 0
        self.unknown = 0

    # -- records ---------------------------------------------------------------------------------------------

    async def receive(self, lines: Sequence[AudienceLine], turn: Turn) -> None:
        """
        Lines of one audience, in the order they came.

        `turn` is awaited between slices of sessions: whatever else there is to do is not held up by a large node, and
        nothing is sent on while the sockets cannot keep up.
        """
        audience = self._audiences.get(lines[0].audience)
        if audience is None:
            self.unknown += len(lines)
            return
        messages = [message for line in lines if (message := self._message(line))]
        async with self._busy:
            await self._send_loose(audience, [message for message in messages if not message.order], turn)
            stored = [message for message in messages if message.order]
            await self._send_stored(audience, stored, {line.order: line.after for line in lines}, turn)

    async def catch_up(self, audience: Audience, messages: Sequence[Message], turn: Turn) -> None:
        """Messages that were read from the timeline, all behind `head` that there are up to the last of them."""
        async with self._busy:
            ready = [message for message in messages if message.order > audience.head]
            if ready:
                await self._send_all(audience, ready, turn)

    def _message(self, line: AudienceLine) -> Message | None:
        try:
            return Message(line.order, line.expires_ms, line.but, line.template)
        except ValueError:
            self.set_aside += 1
            return None

    async def _send_loose(self, audience: Audience, messages: Sequence[Message], turn: Turn) -> None:
        now_ms = time.time_ns() // 1_000_000
        fresh = []
        for message in messages:
            if message.message_id in self.loose or message.expires_ms <= now_ms:
                self.duplicates += 1
                continue
            self.loose.add(message.message_id)
            fresh.append(message)
        for batch in self._batches(fresh):
            await self._slices(audience, list(audience.members), batch, self._write_plain, turn, -1)

    async def _send_stored(
        self, audience: Audience, messages: Sequence[Message], after: dict[int, int], turn: Turn
    ) -> None:
        if audience.entering:
            audience.missed = audience.missed or bool(messages)
            return
        ready: list[Message] = []
        head = audience.head
        for message in messages:
            if message.order <= head:
                self.duplicates += 1
            elif after[message.order] > head:
                self.fill(audience)
                break
            else:
                ready.append(message)
                head = message.order
        if ready:
            await self._send_all(audience, ready, turn)

    # -- sending ---------------------------------------------------------------------------------------------

    async def _send_all(self, audience: Audience, messages: Sequence[Message], turn: Turn) -> None:
        audience.head = messages[-1].order
        now_ms = time.time_ns() // 1_000_000
        as_of = audience.changes
        for batch in self._batches([message for message in messages if message.expires_ms > now_ms]):
            if audience.plain:
                write = self._write_group if audience.is_group else self._write_plain
                await self._slices(audience, list(audience.plain), batch, write, turn, as_of)
            if audience.acking:
                await self._slices(audience, list(audience.acking), batch, self._write_acking, turn, as_of)
            audience.done = batch.messages[-1].order
        audience.done = audience.head
        if audience.plain:
            self._moves.mark_plain(audience)
        for cursor in audience.caught_up():
            self.settle(cursor)

    def _batches(self, messages: Sequence[Message]) -> list[Batch]:
        """Each a small part of an outbox, and with many sessions of what may wait for all of them together."""
        settings = self._settings
        share = settings.max_outbox_total // max(1, 2 * self._delivery.sessions)
        most = max(_LEAST_BYTES_A_WRITE, min(_MOST_BYTES_A_WRITE, settings.max_outbox // 8, share))
        batches: list[Batch] = []
        part: list[Message] = []
        size = 0
        for message in messages:
            part.append(message)
            size += message.size
            if size > most:
                batches.append(Batch(part, size))
                part, size = [], 0
        if part:
            batches.append(Batch(part, size))
        return batches

    async def _slices(
        self,
        audience: Audience,
        sessions: list[Session],
        batch: Batch,
        write: Write,
        turn: Turn,
        as_of: int,
    ) -> None:
        """
        Write to these sessions, a slice a turn.

        `as_of`: what `changes` was when `head` was moved on to these messages. Where it is another by now, sessions
        that are not live any more, or have the messages already (they went live with `head`), are passed over. -1: it
        is for whoever is there.
        """
        first = batch.messages[0].order
        most = _PLAIN_A_TURN if write == self._write_plain else _HELD_A_TURN
        a_turn = max(1, min(most, _BYTES_A_TURN // batch.size))
        if self.handed_out + batch.size > self._turn_at:
            await turn()
            self._since_turn = 0
            self._turn_at = self.handed_out + self._settings.max_outbox // 8
        self.handed_out += batch.size
        for start in range(0, len(sessions), a_turn):
            some: Sequence[Session] = sessions[start : start + a_turn]
            if self._since_turn + len(some) > a_turn:
                await turn()
                self._since_turn = 0
            self._since_turn += len(some)
            if audience.changes != as_of and as_of >= 0:
                some = [session for session in some if audience.wants(session, first)]
            write(audience, some, batch)

    def _write_plain(self, audience: Audience, sessions: Sequence[Session], batch: Batch) -> None:
        """To sessions that do not acknowledge."""
        if batch.buts:
            self._write_plain_but(sessions, batch)
            return
        count = len(batch.messages)
        around = batch.around
        for session in sessions:
            address = session.address
            session.connection.send_now(address.join(around[len(address)]))
            session.delivered += count
        self.delivered += count * len(sessions)

    def _write_plain_but(self, sessions: Sequence[Session], batch: Batch) -> None:
        """Some of these do not get all of it."""
        for session in sessions:
            if session.session_id in batch.buts:
                self._write_some(session, [each for each in batch.messages if each.but != session.session_id])
            else:
                self._write_all(session, batch)

    def _write_group(self, audience: Audience, sessions: Sequence[Session], batch: Batch) -> None:
        """As `_write_plain`; a message may go to several groups of a client, or to it and its group."""
        for session in sessions:
            window = self._delivery.window_of(session)
            fresh = [
                each for each in batch.messages if each.but != session.session_id and not window.knows(each.message_id)
            ]
            for message in fresh:
                window.remember(message.message_id)
            if len(fresh) == len(batch.messages):
                self._write_all(session, batch)
            else:
                self._write_some(session, fresh)

    def _write_acking(self, audience: Audience, sessions: Sequence[Session], batch: Batch) -> None:
        """To sessions that acknowledge: through their windows. Where one is full the session falls behind."""
        delivery = self._delivery
        cursors = audience.acking
        for session in sessions:
            cursor = cursors.get(session)
            if cursor is None:
                continue  # it has left meanwhile
            window = delivery.window_of(session)
            fresh: list[Message] = []
            for message in batch.messages:
                if message.but == session.session_id or window.knows(message.message_id):
                    window.share(message.message_id, cursor, message.order)
                    self._moves.mark(cursor)
                    continue
                if not window.has_room(message.size):
                    self._fall_behind(audience, cursor, message)
                    break
                delivery.hold(session, cursor, message.order, message.message_id, message.template, message.expires_ms)
                fresh.append(message)
            if len(fresh) == len(batch.messages):
                self._write_all(session, batch)
            else:
                self._write_some(session, fresh)

    def _fall_behind(self, audience: Audience, cursor: Cursor, message: Message) -> None:
        """Its window has no room for this message."""
        audience.fall_behind(cursor, message.order - 1)
        self.settle(cursor)

    def _write_all(self, session: Session, batch: Batch) -> None:
        session.connection.send_now(session.address.join(batch.around[len(session.address)]))
        session.delivered += len(batch.messages)
        self.delivered += len(batch.messages)

    def _write_some(self, session: Session, messages: Sequence[Message]) -> None:
        for message in messages:
            session.connection.send(text_frame(b"".join((message.head, session.address, message.tail))))
        session.delivered += len(messages)
        self.delivered += len(messages)
