"""
One WebSocket connection: the one `asyncio.Protocol` around the pure handshake and frames.

Theory of operation. A connection goes through these states, never back:

    OPENING   a request head is awaited, then handed up (`Upper.request_received`); then the layer above's answer
              is awaited: `accept` or `refuse`, at once or later. Frames that come early are kept, up to a bound.
    OPEN      messages go up, frames go down.
    CLOSING   our close frame is on its way; the peer's is awaited, its messages are dropped.
    ENDING    both close frames are sent, or the peer broke a rule: TCP goes down once all is flushed. After a
              violation only our half is closed and what still comes is thrown away unparsed, since closing a socket
              with unread bytes resets it, and a reset may overtake the close frame that says what was wrong. Who goes
              on and on is not read any more.
    CLOSED    TCP is gone. `Upper.connection_closed` was called, exactly once, if the request was handed up and not
              refused.

Sending. `send` appends to the outbox; the flusher joins it into one write per turn of the loop. The transport's
high-water mark is 0, so it says `pause_writing` as soon as the kernel refuses a byte and `resume_writing` once it
has taken all. In between frames gather in the outbox, up to `max_outbox_bytes`; beyond it the consumer is slow: the
outbox is dropped and a close frame 4008 is offered until the close deadline. `blocked` and `outbox_bytes` are the
truth about delivery: after a flush `blocked` is False, and `outbox_bytes` 0, if and only if the kernel took every byte
of every frame that was given to `send`, those given to a connection that was closing already among them.

Receiving is in receiving.py.

Callbacks into the layer above come from the loop, none from inside a call. One that raises is logged and its
connection closed with 1011.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from gateway_node.metrics import REFUSED
from gateway_node.websocket.frames import (
    ABNORMAL,
    Binary,
    Close,
    Event,
    FrameParser,
    Ping,
    ProtocolError,
    close_frame,
    pong_frame,
)
from gateway_node.websocket.handshake import Refused, accept_upgrade, http_response
from gateway_node.websocket.opening import Opening
from gateway_node.websocket.receiving import Receiving
from gateway_node.websocket.states import CLOSED, CLOSING, ENDING, OPEN, OPENING
from gateway_node.websocket.upper import Upper as Upper
from shared.errors import CloseCode
from shared.logs import get_log

if TYPE_CHECKING:
    from gateway_node.websocket.addresses import Address
    from gateway_node.websocket.gate import Gate

log = get_log("gateway")
_HANDSHAKE_TIME = REFUSED.labels("handshake_time")


class Connection(Receiving, asyncio.Protocol):
    """
    A connection. `session` belongs to the layer above; `seen` is the time (`Upper.now`) of the last bytes.

    `blocked` is False if and only if the kernel took every byte that was sent and flushed.
    """

    __slots__ = (
        "_clean",
        "_end_code",
        "_end_reason",
        "_opening",
        "_pong",
        "_told",
        "address",
        "session",
    )

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate, gate.upper, OPENING)
        self._opening: Opening | None = None
        self._pong: bytes | None = None  # the latest pong that is due while the kernel takes nothing
        self._told = False  # connection_closed is due
        self._end_code = ABNORMAL
        self._end_reason = ""
        self._clean = False
        self.address: Address | None = None
        self.session: Any = None

    # What the layer above calls.

    @property
    def open(self) -> bool:
        """Whether frames can be sent."""
        return self._state == OPEN

    def accept(self, subprotocol: str | None = None) -> bool:
        """
        Answer the request with 101. Frames can be sent from here on.

        False if it is no longer to be answered or is no good opening handshake; the latter is refused here.
        """
        opening = self._opening
        if opening is None or opening.request is None or self._transport is None:
            return False
        try:
            response = accept_upgrade(opening.request, subprotocol)
        except Refused as refusal:
            self._refuse(refusal)
            return False
        self._opening = None
        self._gate.opening.drop(self)
        limits = self._gate.limits
        self._parser = FrameParser(limits.max_message, limits.max_fragments, opening.received or None, self._gate.pace)
        self._state = OPEN
        self.seen = self._upper.now
        self._enqueue(response)
        if opening.received:
            self._gate.call_soon(self._take_early)
        return True

    def refuse(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer the request with a plain HTTP response and close. Nothing if it is no longer to be answered."""
        opening = self._opening
        if opening is None or self._transport is None:
            return
        self._told = False
        self._opening = None
        self._enqueue(http_response(status, body, headers))
        self._end(linger=bool(opening.received))

    def send(self, frame: bytes) -> bool:
        """
        Write a frame at the end of this turn of the loop, or when the kernel takes bytes again.

        False if the connection is not open, or was so slow a consumer that it is not any more: the frame is dropped.
        """
        if self._state != OPEN:
            self._lose(len(frame))
            return False
        outbox = self._outbox
        if outbox is None:
            self._outbox = [frame]
        else:
            outbox.append(frame)
        self._queued += len(frame)
        if self._paused:
            if self.outbox_bytes > self._gate.limits.max_outbox_bytes:
                self.cut_slow_consumer()
                return False
        elif not self._dirty:
            self._dirty = True
            self._gate.flusher.mark(self)
        elif self._queued > self._gate.limits.max_outbox_bytes:
            self.flush()
        return True

    def send_now(self, frames: bytes) -> bool:
        """
        As `send`, without waiting for the end of the turn: for who writes to each connection once in a turn.

        `frames` may be several. What was sent before goes first.
        """
        transport = self._transport
        if self._dirty or self._paused or self._state != OPEN or transport is None:
            return self.send(frames)
        transport.write(frames)
        if transport.is_closing():
            self._lose(len(frames))  # the write found a dead socket
        return True

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """
        Close with the frames sent so far going first (RFC 6455 section 7.1.2); cut after the close timeout.

        A connection whose request was not answered is refused with 503. Nothing if it closes already.
        """
        if self._state == OPENING:
            self.refuse(503, b"", {"Retry-After": "1"})
        elif self._state == OPEN:
            self._state = CLOSING
            self._end_code, self._end_reason = code, reason
            self._enqueue(close_frame(code, reason))
            self._gate.closing.add(self, self._upper.now)

    def cut(self, code: int, reason: str) -> None:
        """Close, for a peer that broke a rule: as `close`, but nothing that it sends is looked at any more."""
        if self._state == OPEN:
            self._end_code, self._end_reason = code, reason
            self._enqueue(close_frame(code, reason))
        if self._state < ENDING:
            self._end(linger=True)

    # What the gate calls.

    def opening_expired(self) -> None:
        """The handshake took too long."""
        opening = self._opening
        if opening is None or self._transport is None:
            return
        if opening.request is not None:
            self.crowded_out()
            return
        _HANDSHAKE_TIME.inc()
        if opening.received:
            self.refuse(408, b"")
        else:
            self.abort()

    def crowded_out(self) -> None:
        """It has to go before its request was answered: cut, or with 503 if there is a request."""
        opening = self._opening
        if opening is None or opening.request is None:
            self.abort()
            return
        told = self._told
        self.refuse(503, b"", {"Retry-After": "1"})
        self._told = told  # the layer above is still at work on it

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._gate.arrived(self, transport):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=0)
        self._opening = Opening()

    def data_received(self, data: bytes) -> None:
        self.seen = self._upper.now
        if self._parser is not None:
            self._read(data)
        elif self._opening is not None:
            self._head_received(self._opening, data)

    def eof_received(self) -> None:
        # A peer that half-closes without a close frame is gone (RFC 6455 section 7.1.5 calls it abnormal); what was
        # sent is still flushed. After a violation it is what was waited for.
        if self._state != ENDING:
            self._end(linger=False)

    def pause_writing(self) -> None:
        self._paused = True
        self.blocked = True
        self._gate.blocked.add(self)

    def resume_writing(self) -> None:
        self._paused = False
        self._gate.blocked.drop(self)
        if self._pong is not None and self._state == OPEN:
            self._enqueue(self._pong)
        self._pong = None
        self.blocked = self._lost > 0
        self.flush()
        if self.blocked or not self._told:
            return
        try:
            self._upper.drained(self)
        except Exception:
            log.error("the layer above failed", exc_info=True)
            self.close(CloseCode.INTERNAL_ERROR)

    def connection_lost(self, exc: Exception | None) -> None:
        held = self.outbox_bytes - self._lost
        if held or self._paused:
            self._lose(held or 1)  # when a write failed midway its size is not known any more
        self._state = CLOSED
        self._transport = self._opening = self._parser = self._outbox = self._held = None
        self._queued = 0
        self._gate.left(self)
        if not self._told:
            return
        self._told = False
        try:
            self._upper.connection_closed(self, self._end_code, self._end_reason, self._clean)
        except Exception:
            log.error("the layer above failed at a closed connection", exc_info=True)

    # Opening.

    def _head_received(self, opening: Opening, data: bytes) -> None:
        limits = self._gate.limits
        try:
            request = opening.feed(data, limits.max_head, limits.max_headers)
        except Refused as refusal:
            self._refuse(refusal)
            return
        if request is None:
            if opening.request and len(opening.received) > limits.max_early_bytes and self._transport is not None:
                self._transport.pause_reading()
            return
        self._told = True
        try:
            self._upper.request_received(self, request)
        except Exception:
            log.error("the layer above failed at a request", path=request.path, exc_info=True)
            self.refuse(500, b"")
            self.close(CloseCode.INTERNAL_ERROR)

    def _refuse(self, refusal: Refused) -> None:
        if refusal.limit:
            REFUSED.labels(refusal.limit).inc()
        headers = {"Content-Type": "text/plain", **refusal.headers}
        self.refuse(refusal.status, f"{refusal}\n".encode(), headers)

    def _take_early(self) -> None:
        """Parse what came behind the request head before it was answered."""
        if self._parser is not None and self._transport is not None:
            self._transport.resume_reading()
            self.take(b"")

    # Frames.

    def _deliver_other(self, event: Event) -> None:
        if isinstance(event, Close):
            self._close_received(event)
        elif self._state != OPEN:
            return
        elif isinstance(event, Ping):
            if self._paused:
                # RFC 6455 section 5.5.3 lets the latest ping stand for all: a flood of them fills nothing.
                self._pong = pong_frame(event.payload)
            else:
                self._enqueue(pong_frame(event.payload))
        elif isinstance(event, Binary):
            if self._gate.on_binary is None:
                self.close(CloseCode.UNSUPPORTED_DATA, "binary frames are not taken")
            else:
                self._gate.on_binary(self, event.payload)

    # Closing.

    def _close_received(self, event: Close) -> None:
        self._clean = True
        if self._state == OPEN:
            self._end_code, self._end_reason = event.code, event.reason
            self._enqueue(close_frame(event.code))
        self._end(linger=False)

    def _violated(self, violation: ProtocolError) -> None:
        self.cut(violation.code, str(violation))
        if violation.limit and self._told:
            self._upper.limit_exceeded(self, violation.limit)

    def cut_slow_consumer(self) -> None:
        """Drop the outbox and close with 4008. Nothing if it closes already."""
        if self._state != OPEN:
            return
        self._state = CLOSING
        self._lose(self._queued)
        self._end_code, self._end_reason = CloseCode.SLOW_CONSUMER, "slow consumer"
        frame = close_frame(self._end_code, self._end_reason)
        self._outbox = [frame]
        self._queued = len(frame)
        self._gate.closing.add(self, self._upper.now)

    def _end(self, linger: bool) -> None:
        """Hand the outbox to the transport and take TCP down behind it; `linger` until the peer closes its half."""
        transport = self._transport
        self._state = ENDING
        if transport is None:
            return
        self._opening = None
        self._gate.opening.drop(self)
        self._gate.closing.add(self, self._upper.now)
        if self._outbox is not None:
            self._write(transport, self._outbox)
        if linger and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
        else:
            transport.close()
