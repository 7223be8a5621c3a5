"""
What the connections of one node's event loop share: the layer above, limits, the flusher, deadlines.

Theory of operation. A connection owns no task, timer or queue. Frames that were sent are flushed by the `Flusher`
at the end of the loop's turn, one write a connection, since a system call costs more than everything else about a
frame. Whatever has a deadline (a handshake, a closing) stands in a dict of `Deadlines`, in the order of its
deadline because all of a kind have the same time; the node's one ticker calls `Gate.tick` with the time, which
looks at the heads of the dicts. Times are the layer above's coarse clock, `Upper.now`, in seconds.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, BaseTransport, Future, get_running_loop, wait
from collections.abc import Callable, ItemsView, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from typing import TYPE_CHECKING

from gateway_node.metrics import REFUSED
from gateway_node.websocket.addresses import Addresses
from gateway_node.websocket.connection import Connection
from gateway_node.websocket.edge import EdgeConnection
from gateway_node.websocket.outgoing import Outgoing
from gateway_node.websocket.pace import Pace, share_s
from gateway_node.websocket.receiving import Unread
from shared.addresses import Network, is_in
from shared.logs import get_log

if TYPE_CHECKING:
    from gateway_node.websocket.connection import Upper

log = get_log("gateway")
_HANDSHAKES = REFUSED.labels("handshakes")
_NO_PROXY = REFUSED.labels("proxy_header")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a connection, in bytes and seconds."""

    max_head: int = 8192
    """A request head; 431 beyond."""
    max_headers: int = 64
    """Its header lines; 431 beyond."""
    max_early_bytes: int = 16384
    """What is kept of frames that come before the request is answered; reading pauses beyond."""
    max_message: int = 65536
    """A message of a client; 1009 beyond."""
    max_fragments: int = 1024
    """Frames of one message; 1008 beyond."""
    byte_rate: float = 0.0
    """Bytes a second, five seconds' worth at once, a fragment counting as some more; 4029 beyond; 0: any."""
    control_rate: float = 0.0
    """Pings and pongs a second, five seconds' worth at once; 4029 beyond; 0: any."""
    max_outbox_bytes: int = 1 << 20
    """What the kernel has not taken of what was sent; 4008 beyond."""
    handshake_timeout_s: float = 10.0
    """From the connection to the answer to its request."""
    max_handshakes: int = 10_000
    """Connections whose request is not answered; beyond it the oldest is ended."""
    close_timeout_s: float = 5.0
    """From the start of a close to the end of TCP; cut off beyond."""


class Flusher:
    """Flushes the connections that have something to write, once per turn of the loop."""

    __slots__ = ("_dirty", "_loop")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._dirty: list[Outgoing] = []

    def mark(self, connection: Outgoing) -> None:
        """Have `connection` flushed at the end of this turn; a connection marks itself once until it is."""
        dirty = self._dirty
        if not dirty:
            self._loop.call_soon(self._flush)
        dirty.append(connection)

    def _flush(self) -> None:
        dirty = self._dirty
        self._dirty = []
        for connection in dirty:
            try:
                connection.flush()
            except Exception:  # one transport's fault is not the others'
                log.error("a connection could not be flushed", exc_info=True)
                connection.abort()


class Deadlines:
    """Connections of which each has the same time from the moment it was added, so the first added is due first."""

    __slots__ = ("_due", "_timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._due: dict[Connection, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, connection: Connection, now: float) -> None:
        """Start the connection's time, unless it runs already."""
        self._due.setdefault(connection, now + self._timeout_s)

    def drop(self, connection: Connection) -> None:
        self._due.pop(connection, None)

    def pop_oldest(self) -> Connection:
        """Take out the one that is due first; there is one."""
        oldest = next(iter(self._due))
        del self._due[oldest]
        return oldest

    def expired(self, now: float) -> list[Connection]:
        """Take out those whose time is over."""
        over: list[Connection] = []
        for connection, due in self._due.items():
            if due > now:
                break
            over.append(connection)
        for connection in over:
            del self._due[connection]
        return over

    def all(self) -> list[Connection]:
        return list(self._due)


class Stand:
    """Where a blocked connection stands: what the kernel had still to take at the last look, and for how long that."""

    __slots__ = ("held", "still_s")

    def __init__(self) -> None:
        self.held = -1
        self.still_s = 0.0


class Blocked:
    """The connections whose kernel takes no more now."""

    __slots__ = ("_few", "_stands", "_waiting")

    def __init__(self) -> None:
        self._stands: dict[Connection, Stand] = {}
        self._few = -1
        self._waiting: Future[None] | None = None

    def __len__(self) -> int:
        return len(self._stands)

    def items(self) -> ItemsView[Connection, Stand]:
        return self._stands.items()

    def add(self, connection: Connection) -> None:
        self._stands[connection] = Stand()

    def drop(self, connection: Connection) -> None:
        """It is taken from again, or has ended. Nothing if it was not there."""
        self._stands.pop(connection, None)
        if len(self._stands) <= self._few and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def until_few(self, few: int, within_s: float) -> None:
        """Return when there are no more than `few`, or after `within_s`. For one who waits."""
        self._few = few
        self._waiting = get_running_loop().create_future()
        try:
            await wait((self._waiting,), timeout=within_s)
        finally:
            self._few = -1
            self._waiting = None


class Gate:
    """
    Makes connections and holds what they share. `alive` counts the TCP connections there are.

    `on_binary` takes binary messages; without it one closes the connection with 1003. With `tls` connections begin with
    a TLS handshake, with `proxied` each begins, before that, with the PROXY header of one of the proxies `trusted`
    (of anybody, if there are none).
    """

    __slots__ = (
        "_loop",
        "addresses",
        "alive",
        "blocked",
        "closing",
        "flusher",
        "limits",
        "on_binary",
        "opening",
        "pace",
        "proxied",
        "tls",
        "trusted",
        "unread",
        "upper",
    )

    def __init__(
        self,
        upper: Upper,
        loop: AbstractEventLoop,
        limits: Limits | None = None,
        on_binary: Callable[[Connection, bytes], None] | None = None,
        *,
        addresses: Addresses | None = None,
        tls: SSLContext | None = None,
        proxied: bool = False,
        trusted: Sequence[Network] = (),
    ) -> None:
        self.upper = upper
        self.addresses = Addresses() if addresses is None else addresses
        self.tls = tls
        self.proxied = proxied
        self.trusted = tuple(trusted)
        self.limits = limits or Limits()
        self.pace = Pace(share_s(self.limits.byte_rate), share_s(self.limits.control_rate))
        self.on_binary = on_binary
        self.flusher = Flusher(loop)
        self.unread = Unread(loop)
        self.opening = Deadlines(self.limits.handshake_timeout_s)
        self.closing = Deadlines(self.limits.close_timeout_s)
        self.alive = 0
        self.blocked = Blocked()
        self._loop = loop

    def connection(self) -> Connection:
        """The protocol factory to give to `loop.create_server`."""
        return EdgeConnection(self) if self.tls is not None or self.proxied else Connection(self)

    def arrived(self, connection: Connection, transport: BaseTransport) -> bool:
        """Count a connection that was accepted. False: it is to be cut at once."""
        self.alive += 1
        now = self.upper.now
        name = transport.get_extra_info("peername")
        peer = name[0] if name else ""  # none: it is gone already
        if self.proxied:
            if self.trusted and not is_in(peer, self.trusted):
                _NO_PROXY.inc()
                return False
        elif not self.addresses.enter(connection, peer, now):
            return False
        opening = self.opening
        opening.add(connection, now)
        if len(opening) > self.limits.max_handshakes:
            _HANDSHAKES.inc()
            opening.pop_oldest().crowded_out()
        return True

    def was_told(self, connection: Connection, source: str) -> bool:
        """A PROXY header told whose connection it is; "": the proxy's own, which is not limited. False: cut it."""
        return not source or self.addresses.enter(connection, source, self.upper.now)

    def left(self, connection: Connection) -> None:
        """TCP is gone."""
        self.alive -= 1
        self.blocked.drop(connection)
        self.unread.drop(connection)
        self.opening.drop(connection)
        self.closing.drop(connection)
        self.addresses.leave(connection, self.upper.now)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def tick(self, now: float) -> None:
        """End what is overdue at `now`. To be called every second or so, with the clock of `Upper.now`."""
        for connection in self.opening.expired(now):
            connection.opening_expired()
        for connection in self.closing.expired(now):
            connection.abort()
        self.addresses.sweep(now)

    def abort_unopened(self) -> None:
        """Cut every connection that is not open: those whose handshake is under way and those that are closing."""
        for connection in self.opening.all() + self.closing.all():
            connection.abort()
