"""
The receiving half of a connection: bytes of an open connection become events, and those are handed up.

One read of the loop brings up to 256 KiB, which may be 15,000 frames and a tenth of a second of work. So a large read
is taken in slices, those of all connections in turn, and in each turn of the loop only for half a millisecond
(`Unread`): who sends little is served in between, whatever the others send. Turns have to be that short because a
message to a client takes some ten of them from the bus to the socket. Nothing more is read of a connection meanwhile.

The layer above may `hold` a connection: nothing is handed up until `release`, and nothing read, so what the peer goes
on sending waits with the peer in the end.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

from gateway_node.websocket.frames import Event, FrameParser, ProtocolError
from gateway_node.websocket.outgoing import Outgoing
from gateway_node.websocket.states import CLOSING, OPEN
from shared.errors import CloseCode
from shared.logs import get_log

if TYPE_CHECKING:
    from gateway_node.websocket.connection import Connection
    from gateway_node.websocket.gate import Gate
    from gateway_node.websocket.upper import Upper

LARGE_BYTES: Final = 4096
"""A read of more is taken in slices."""
_SLICE_BYTES: Final = 1024
"""Some 50 of the smallest messages: a third of a millisecond."""
_TURN_S: Final = 0.0005
_MOST_UNREAD: Final = 32 << 20
_MOST_THROWN_AWAY: Final = 1 << 20  # may have been on its way when the peer was told
log = get_log("gateway")


class Unread:
    """
    Connections with slices of a read that wait for their turn.

    `full`: so much waits that reads are taken whole until there is less.
    """

    __slots__ = ("_bytes", "_due", "_loop", "_slices", "_waiting")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._bytes = 0
        self._due = False  # a turn
        self._slices: dict[Receiving, deque[bytes]] = {}
        self._waiting: deque[Receiving] = deque()

    def __contains__(self, connection: Receiving) -> bool:
        return connection in self._slices

    @property
    def full(self) -> bool:
        return self._bytes > _MOST_UNREAD

    def put_off(self, connection: Receiving, data: bytes) -> None:
        """`data` behind what waits already."""
        slices = self._slices.get(connection)
        if slices is None:
            slices = self._slices[connection] = deque()
            self.go_on(connection)
        self._bytes += len(data)
        slices.extend(data[at : at + _SLICE_BYTES] for at in range(0, len(data), _SLICE_BYTES))

    def go_on(self, connection: Receiving) -> None:
        """Its turn comes again."""
        self._waiting.append(connection)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def drop(self, connection: Receiving) -> None:
        """What waits is not looked at any more."""
        for data in self._slices.pop(connection, ()):
            self._bytes -= len(data)

    def _turn(self) -> None:
        end = perf_counter() + _TURN_S
        while self._waiting:
            connection = self._waiting.popleft()
            try:
                self._take_slice(connection)
            except Exception:  # one connection's fault is not the others'
                log.error("a slice could not be taken", exc_info=True)
                connection.abort()
            if perf_counter() > end:
                break
        self._due = bool(self._waiting)
        if self._due:
            self._loop.call_soon(self._turn)

    def _take_slice(self, connection: Receiving) -> None:
        slices = self._slices.get(connection)
        if slices is None or connection.held:
            return
        data = slices.popleft()
        self._bytes -= len(data)
        connection.take(data)
        if not slices:
            self._slices.pop(connection, None)
            connection.read_on()
        elif not connection.held:
            self.go_on(connection)


class Receiving(Outgoing):
    """See the module."""

    __slots__ = ("_held", "_parser", "_state", "_thrown_away", "_upper", "seen")

    if TYPE_CHECKING:

        def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None: ...

        def _deliver_other(self, event: Event) -> None: ...

        def _violated(self, violation: ProtocolError) -> None: ...

    def __init__(self, gate: Gate, upper: Upper, state: int) -> None:
        super().__init__(gate)
        self._upper = upper
        self._state = state
        self._parser: FrameParser | None = None
        self._held: list[Event] | None = None  # what came for the layer above, which wants nothing for now
        self._thrown_away = 0  # bytes that came behind a violation
        self.seen = upper.now

    @property
    def held(self) -> bool:
        """Between `hold` and what follows on `release`."""
        return self._held is not None

    def hold(self) -> None:
        """Hand nothing up and read nothing until `release`."""
        if self._held is None and self._transport is not None:
            self._held = []
            self._transport.pause_reading()

    def release(self) -> None:
        """Go on behind what a `hold` held up, from the loop. To be called once for each."""
        self._gate.call_soon(self._go_on)

    def read_on(self) -> None:
        """Nothing that was read waits any more."""
        if self._transport is not None and self._held is None and self._thrown_away <= _MOST_THROWN_AWAY:
            self._transport.resume_reading()

    def take(self, data: bytes) -> None:
        """Bytes behind the opening."""
        parser = self._parser
        if parser is None:
            return
        if self._state > CLOSING:
            self._thrown_away += len(data)
            if self._thrown_away > _MOST_THROWN_AWAY and self._transport is not None:
                self._transport.pause_reading()
            return
        try:
            self._deliver(parser.feed(data, self._upper.now))
        except ProtocolError as violation:
            self._deliver(violation.events)
            self._violated(violation)

    def _read(self, data: bytes) -> None:
        """What a read brought; more than a slice of it waits for its turns."""
        unread = self._gate.unread
        waits = self in unread
        if not waits and (len(data) <= LARGE_BYTES or unread.full):
            self.take(data)
            return
        if not waits and self._transport is not None:
            self._transport.pause_reading()
        unread.put_off(self, data)

    def _deliver(self, events: list[Event]) -> None:
        upper, connection = self._upper, cast("Connection", self)
        coming = iter(events)
        try:
            for event in coming:
                if type(event) is bytes:
                    if self._state == OPEN:
                        upper.message_received(connection, event)
                else:
                    self._deliver_other(event)
                if self._held is not None:
                    self._held += coming
        except Exception:
            log.error("the layer above failed at a message", exc_info=True)
            self.close(CloseCode.INTERNAL_ERROR)

    def _go_on(self) -> None:
        held, self._held = self._held, None
        if held is None or self._transport is None:
            return
        self.seen = self._upper.now  # it was the node that did not listen
        if self._state <= CLOSING:
            self._deliver(held)
        if self.held:
            return
        if self in self._gate.unread:
            self._gate.unread.go_on(self)
        else:
            self.read_on()
