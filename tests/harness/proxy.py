"""
A TCP proxy between two parts, with faults to switch on and off.

    delay        each piece of data waits, with jitter, and keeps its order
    reset        every connection is cut with RST, once (new ones are taken)
    half_open    what goes one way is thrown away, what goes the other way is not, and nobody is told
    black_hole   both ways; new connections are accepted and hear nothing
    refuse       the listener is closed and every connection is cut, until `start`

`heal` ends them all. A connection that lost bytes meanwhile is cut then: it cannot go on. Ends of connections pass
through as they came, FIN as FIN and RST as RST; where a fault swallows data it swallows them, too. A side that does
not read makes the other side wait, as without a proxy; some 64 KiB more lie between them.

`translation` replaces one word by another of the same length in what comes from the server. With it a proxy before a
RocketMQ name server hands out the address of the proxy before the broker.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections import deque
from enum import Enum
from typing import cast

_RST = struct.pack("ii", 1, 0)  # SO_LINGER on with 0 s: close(2) resets the connection
_MOST_PENDING = 1 << 16
_CONNECT_S = 5.0


class Way(Enum):
    """Of data."""

    TO_SERVER = 1
    FROM_SERVER = 2


class Proxy:
    """Forwards `host:port` to a server. `port` 0 takes a free one."""

    def __init__(
        self,
        to_host: str,
        to_port: int,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        translation: tuple[bytes, bytes] | None = None,
    ) -> None:
        assert translation is None or len(translation[0]) == len(translation[1])
        self.host = host
        self.port = port
        self.to = (to_host, to_port)
        self.translation = translation
        self.delay_s = 0.0
        self.swallowed: frozenset[Way] = frozenset()
        self._listener: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()

    async def start(self) -> None:
        """Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Pair(self).client, self.host, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self.refuse()
        connecting = [pair.connecting for pair in self._pairs if pair.connecting is not None]
        await asyncio.gather(*connecting, return_exceptions=True)

    @property
    def connections(self) -> int:
        return len(self._pairs)

    def delay(self, about_s: float) -> None:
        """From half to one and a half times of it."""
        self.delay_s = about_s

    def half_open(self, way: Way) -> None:
        self.swallowed = frozenset((way,))

    def black_hole(self) -> None:
        self.swallowed = frozenset(Way)

    def refuse(self) -> None:
        """Until `start`, which takes the same port again."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.reset()

    def reset(self) -> None:
        for pair in list(self._pairs):
            pair.reset()

    def heal(self) -> None:
        """Everything but `refuse`."""
        self.delay_s, self.swallowed = 0.0, frozenset()
        for pair in list(self._pairs):
            if pair.incomplete:
                pair.reset()

    def add(self, pair: _Pair) -> None:
        self._pairs.add(pair)

    def discard(self, pair: _Pair) -> None:
        self._pairs.discard(pair)


class _Pair:
    """A client's connection and the one to the server."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client = _End(self, Way.TO_SERVER)
        self.server = _End(self, Way.FROM_SERVER)
        self.client.other, self.server.other = self.server, self.client
        self.incomplete = False
        self.connecting: asyncio.Task[None] | None = None

    def opened(self) -> None:
        """The client is there."""
        self.proxy.add(self)
        if self.proxy.swallowed == frozenset(Way):
            self.incomplete = True
            return
        self.connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                await loop.create_connection(lambda: self.server, *self.proxy.to)
        except (OSError, TimeoutError):
            self.reset()  # as near as a proxy comes to a refused connection
            return
        if self.client.transport is None:
            self.reset()
        else:
            self.client.send_due()

    def reset(self) -> None:
        if self.connecting is not None:
            self.connecting.cancel()
        for end in (self.client, self.server):
            end.reset()
        self.proxy.discard(self)

    def ended(self) -> None:
        if self.client.transport is None and self.server.transport is None:
            self.proxy.discard(self)


class _End(asyncio.Protocol):
    """One end of a pair: what it receives goes out at the other one."""

    other: _End

    def __init__(self, pair: _Pair, way: Way) -> None:
        self.transport: asyncio.Transport | None = None
        self._pair = pair
        self._proxy = pair.proxy
        self._way = way
        self._pending: deque[tuple[float, bytes]] = deque()  # (when due, data); b"" is the end of the stream
        self._pending_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._begun = b""
        self._holds = 0

    # -- what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(_MOST_PENDING)
        if self._way is Way.TO_SERVER:
            self._pair.opened()

    def data_received(self, data: bytes) -> None:
        if self._way in self._proxy.swallowed:
            self._pair.incomplete = True
            return
        if self._proxy.translation is not None and self._way is Way.FROM_SERVER:
            data = self._translated(data)
        if data:
            self._pass_on(data)

    def eof_received(self) -> bool:
        if self._way in self._proxy.swallowed:
            self._pair.incomplete = True
        else:
            self._pass_on(b"")
        return True  # the other way stays open until it ends, too

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._way not in self._proxy.swallowed:
            if isinstance(error, OSError):
                self.other.reset()
            elif self.other.transport is not None and not self._pending:
                self.other.transport.close()
        self._pair.ended()

    def pause_writing(self) -> None:
        self.other.hold()

    def resume_writing(self) -> None:
        self.other.go_on()

    # -- inside

    def hold(self) -> None:
        """Read no more, until as many `go_on`."""
        self._holds += 1
        if self._holds == 1 and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def go_on(self) -> None:
        self._holds -= 1
        if self._holds == 0 and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def reset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.transport is None:
            return
        given = self.transport.get_extra_info("socket")
        if given is not None and given.fileno() >= 0:
            with socket.socket(fileno=os.dup(given.fileno())) as sock:  # the loop's own object may forbid setsockopt
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        self.transport.abort()

    def _pass_on(self, data: bytes) -> None:
        """Now, or when it is due behind what waits already."""
        delay_s = self._proxy.delay_s
        connected = self.other.transport is not None
        if connected and not delay_s and not self._pending:
            self._write(data)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s * random.uniform(0.5, 1.5)
        if connected and not self._pending:
            self._timer = loop.call_at(due, self.send_due)
        self._pending.append((due, data))
        before = self._pending_bytes
        self._pending_bytes += len(data)
        if before <= _MOST_PENDING < self._pending_bytes:
            self.hold()

    def send_due(self) -> None:
        """What has waited long enough, and for the other end to be there."""
        loop = asyncio.get_running_loop()
        before = self._pending_bytes
        while self._pending and self._pending[0][0] <= loop.time():
            _, data = self._pending.popleft()
            self._pending_bytes -= len(data)
            self._write(data)
        if self._pending_bytes <= _MOST_PENDING < before:
            self.go_on()
        self._timer = loop.call_at(self._pending[0][0], self.send_due) if self._pending else None
        if self._timer is None and self.transport is None and self.other.transport is not None:
            self.other.transport.close()

    def _write(self, data: bytes) -> None:
        transport = self.other.transport
        if transport is None or transport.is_closing():
            return
        if data:
            transport.write(data)
            return
        self._ended = True
        if transport.can_write_eof():
            transport.write_eof()
        if self.other._ended:
            transport.close()
            if self.transport is not None:
                self.transport.close()

    def _translated(self, data: bytes) -> bytes:
        """Keeps back an end that may be the beginning of the word."""
        assert self._proxy.translation is not None
        word, instead = self._proxy.translation
        data = (self._begun + data).replace(word, instead)
        kept = next((size for size in range(len(word) - 1, 0, -1) if data.endswith(word[:size])), 0)
        self._begun = data[len(data) - kept :]
        return data[: len(data) - kept]
