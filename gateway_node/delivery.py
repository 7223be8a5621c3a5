"""
Delivery: envelopes to sessions, acknowledgements back, and replay of the inbox.

A direct message goes through the session's window, whether it came by record or by replay, so the client sees it once.
A session without `ack=1` has its window emptied when the kernel took the bytes; one with it, by the client. Either
way the message is then *retired* from the inbox, in batches.

Replay reads the inbox in slices. The next slice is read when there is room in the window and every retirement before it
is done, so that a slice never brings what was acknowledged already. The session is live when a slice reached the
inbox's end and no record was passed over meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from gateway_node.audience import Cursor
from gateway_node.backlog import Backlog
from gateway_node.cursor_moves import CursorMoves
from gateway_node.hub import Hub
from gateway_node.metrics import REPLAYED, RESENT, RETIRED
from gateway_node.session import Session
from gateway_node.settings import GatewaySettings
from gateway_node.websocket.frames import text_frame
from gateway_node.window import Recent, Window, Written
from shared.envelope import fill_template, message_id_of, session_id_of
from shared.inbox import Inbox, Slice

_MOST_EARLY = 64


class Delivery:
    """
    See the module. `now` (event loop clock, s) is set by who calls in a batch; `loose` is the fan-out's.

    `read_on` is called with sessions whose window has room, when they are behind in an audience. `until_clear` waits
    while nothing may be sent.
    """

    def __init__(self, hub: Hub, inbox: Inbox, settings: GatewaySettings, moves: CursorMoves, loose: Recent) -> None:
        self.now = 0.0
        self.read_on: Callable[[Session], None]
        self.until_clear: Callable[[], Awaitable[None]] = _at_once
        self._suspensions = 0
        self.delivered = 0
        self.duplicates = 0
        self.unknown = 0
        self._hub = hub
        self._inbox = inbox
        self._settings = settings
        self._ack_timeout_s = settings.ack_timeout_s
        # What replay sends at once must not make a slow consumer of a client that has only just come.
        self._window_bytes = min(settings.window_bytes, settings.max_outbox // 2)
        self._written: list[Session] = []
        self._unacked: set[Session] = set()
        self._moves = moves
        self._loose = loose
        self.retirements: Backlog[tuple[str, bytes]] = Backlog("retire", self._retire)
        self._pulls: Backlog[Session] = Backlog("pull", self._pull, most=64)

    async def close(self, within_s: float) -> None:
        await self._pulls.close(0.0)
        await self.retirements.close(within_s)

    # -- records ---------------------------------------------------------------------------------------------

    def direct(self, envelope: bytes, expires_ms: int, order: int) -> None:
        """A durable message for one session. Raises ValueError when it is not an envelope."""
        session = self._hub.by_id.get(session_id_of(envelope))
        if session is None:
            self.unknown += 1
            return
        if order <= session.read_to:
            self.duplicates += 1
            return
        if session.replaying:
            session.missed = True
            return
        self._send_direct(session, message_id_of(envelope), envelope, expires_ms)

    def online(self, envelope: bytes) -> None:
        """A message that nobody stored, for one session. Raises ValueError when it is not an envelope."""
        session = self._hub.by_id.get(session_id_of(envelope))
        if session is None:
            self.unknown += 1
            return
        message_id = message_id_of(envelope)
        window = self.window_of(session)
        if window.knows(message_id):
            self.duplicates += 1
            return
        window.remember(message_id)
        frame = text_frame(envelope)
        if session.early is None:
            self._write(session, frame)
        elif len(session.early) < _MOST_EARLY:
            session.early.append(frame)

    # -- messages of audiences ---------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        return len(self._hub)

    def window_of(self, session: Session) -> Window | Written:
        """It is made when it is needed first."""
        if session.window is None:
            settings = self._settings
            session.window = (
                Window(settings.window_messages, self._window_bytes) if session.ack else Written(self._window_bytes)
            )
        return session.window

    def hold(
        self, session: Session, cursor: Cursor, order: int, message_id: bytes, template: bytes, expires_ms: int
    ) -> None:
        """A message of an audience is being sent to the session: keep it until it is acknowledged."""
        window = self.window_of(session)
        if session.ack and not len(window):
            self._unacked.add(session)
        window.add(message_id, template, expires_ms, self.now + self._ack_timeout_s, cursor, order)

    def send_held(
        self, session: Session, cursor: Cursor, order: int, message_id: bytes, template: bytes, expires_ms: int
    ) -> None:
        """Send it as well: it was read from a timeline."""
        self.hold(session, cursor, order, message_id, template, expires_ms)
        self._write(session, text_frame(fill_template(template, session.session_id, session.client_id.encode())))
        REPLAYED.inc()
        if not session.ack:
            self._confirm_soon(session)

    # -- acknowledgements ------------------------------------------------------------------------------------

    def ack(self, session: Session, message_ids: Sequence[str]) -> None:
        """The client has these. One that is not in the window may be of an earlier session: it is retired as well."""
        window = self.window_of(session)
        client_id = session.client_id
        for message_id in message_ids:
            key = message_id.encode()
            unacked = window.ack(key)
            if unacked is None:
                if key not in self._loose:
                    self.retirements.add((client_id, key))
                continue
            if unacked.in_inbox:
                self.retirements.add((client_id, key))
            if unacked.cursor is not None:
                self._moves.mark(unacked.cursor)
            for cursor, _ in unacked.shared:
                self._moves.mark(cursor)
        if not len(window):
            self._unacked.discard(session)
        self._pull_if_ready(session)

    def kernel_took_all(self, session: Session) -> None:
        """Everything written to the session's connection is in the kernel's hands."""
        written = session.window
        if isinstance(written, Written):
            client_id = session.client_id
            for message_id in written.take_all():
                self.retirements.add((client_id, message_id))
            self._pull_if_ready(session)

    # -- replay ----------------------------------------------------------------------------------------------

    def replay(self, session: Session, inbox: Slice) -> None:
        """Send a slice of the inbox; then the session is live, or the next slice is read when there is room."""
        window = self.window_of(session)
        complete = inbox.held <= len(inbox.messages)
        if session.suspended:
            session.suspended = False
            if complete:
                window.keep_only({waiting.message_id.encode() for waiting in inbox.messages})
        sent = 0
        client_id = session.client_id.encode()
        for waiting in inbox.messages:
            message_id = waiting.message_id.encode()
            if window.knows(message_id):
                if not window.is_in_inbox(message_id):
                    self.retirements.add((session.client_id, message_id))
                session.read_to = waiting.order
                continue
            if not window.has_room(len(waiting.template)):
                complete = False
                break
            envelope = fill_template(waiting.template, session.session_id, client_id)
            self._send_direct(session, message_id, envelope, waiting.expires_ms)
            session.read_to = waiting.order
            sent += 1
        if sent:
            REPLAYED.inc(sent)
        if complete and not session.missed:
            session.replaying = False
            return
        session.want_pull = True
        self._pull_if_ready(session)

    def fall_behind(self, session: Session) -> None:
        """Read the inbox (again): it may hold what no record brought."""
        if not session.replaying:
            session.replaying = True
            session.want_pull = True
        session.missed = True
        self._pull_if_ready(session)

    def suspend(self, session: Session, *, resync: bool) -> None:
        """
        Its node's lease was lost: send nothing until `resume`.

        With `resync` nothing is sent again either before the inbox was read, and of what the window holds only what is
        there. Without it the inbox is not to be trusted: the window may hold the last copy.
        """
        session.replaying = session.missed = True
        session.suspended = resync
        self._suspensions += 1

    def resume(self, session: Session) -> None:
        """It is registered again: read the inbox, whether there is room in the window or not."""
        session.replaying = session.missed = True
        session.want_pull = False
        if session.early is None:
            self._pulls.add(session)

    def lacks(self, session: Session, message_ids: Sequence[bytes]) -> bool:
        """Whether one of these was not sent to the session, though it is live."""
        if session.replaying or not message_ids:
            return False
        window = self.window_of(session)
        return not all(window.knows(message_id) for message_id in message_ids)

    # -- time ------------------------------------------------------------------------------------------------

    def resend_due(self) -> None:
        """Write again what was not acknowledged in time."""
        now_ms = time.time_ns() // 1_000_000
        resent = 0
        for session in list(self._unacked):
            window = session.window
            if window is None or window.next_due > self.now or session.suspended:
                continue
            for unacked in window.due(self.now, now_ms, self._ack_timeout_s):
                envelope = unacked.envelope
                if unacked.cursor is not None:
                    envelope = fill_template(envelope, session.session_id, session.client_id.encode())
                self._write(session, text_frame(envelope))
                resent += 1
            self._pull_if_ready(session)
        if resent:
            RESENT.inc(resent)

    def forget(self, session: Session) -> None:
        """The session has ended."""
        self._unacked.discard(session)
        session.window = None

    # -- inside ----------------------------------------------------------------------------------------------

    def _send_direct(self, session: Session, message_id: bytes, envelope: bytes, expires_ms: int) -> None:
        window = session.window or self.window_of(session)
        if window.knows(message_id):
            self.duplicates += 1
            if not window.is_in_inbox(message_id):
                self.retirements.add((session.client_id, message_id))
            return
        if session.ack and not window.has_room(len(envelope)):
            session.replaying = session.missed = session.want_pull = True
            return
        if session.ack and not len(window):
            self._unacked.add(session)
        window.add(message_id, envelope, expires_ms, self.now + self._ack_timeout_s)
        self._write(session, text_frame(envelope))
        if not session.ack:
            self._confirm_soon(session)

    def _write(self, session: Session, frame: bytes) -> None:
        session.connection.send(frame)
        session.delivered += 1
        self.delivered += 1

    def _confirm_soon(self, session: Session) -> None:
        """Look behind the flush of this loop turn, which the write has asked for, whether the kernel took all."""
        if not self._written:
            asyncio.get_running_loop().call_soon(self._confirm_written)
        self._written.append(session)

    def _confirm_written(self) -> None:
        written, self._written = self._written, []
        for session in written:
            if session.connection.outbox_bytes == 0:
                self.kernel_took_all(session)
            elif not session.connection.blocked:
                self._confirm_soon(session)  # written to again behind the flush; else `drained` will tell

    def _pull_if_ready(self, session: Session) -> None:
        if not (session.want_pull or session.behind) or session.early is not None:
            return
        if self.window_of(session).is_half_empty():
            if session.want_pull:
                session.want_pull = False
                self._pulls.add(session)
            if session.behind:
                self.read_on(session)

    async def _pull(self, sessions: list[Session]) -> None:
        await self.retirements.settled()
        open_ones = [session for session in sessions if session.session_id in self._hub.by_id]
        if not open_ones:
            return
        for session in open_ones:
            session.missed = False
        suspensions = self._suspensions
        slices = await self._inbox.read(
            [session.client_id for session in open_ones],
            most=self._settings.window_messages,
            most_bytes=self._window_bytes,
        )
        await self.until_clear()
        if suspensions != self._suspensions:
            return  # the lease was lost since: `resume` has their inboxes read again
        self.now = asyncio.get_running_loop().time()
        for session, inbox in zip(open_ones, slices, strict=True):
            if session.session_id in self._hub.by_id:
                self.replay(session, inbox)

    async def _retire(self, messages: list[tuple[str, bytes]]) -> None:
        RETIRED.inc(await self._inbox.retire(messages))


async def _at_once() -> None:
    """Nothing stands in the way."""
