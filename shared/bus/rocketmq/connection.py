"""
One connection to one name server or broker: requests pipelined, matched to their responses by `opaque`.

The connection is made when it is first called and made again by the next call after it broke. While a peer does
not take connections, calls fail at once until the (jittered, growing) pause between attempts has passed, so a
dead peer costs its callers nothing. A connection on which nothing came during a whole call's deadline is given
up. Frames written in one turn of the loop go out in one write. The broker's own requests are answered with "not
supported" (unless oneway) and never touch a pending call.
"""

from __future__ import annotations

import asyncio
import ssl as tls
import time
from collections.abc import Callable
from typing import cast

from shared.backoff import Backoff
from shared.bus.rocketmq.acl import Signer
from shared.bus.rocketmq.wire import (
    ONEWAY_FLAG,
    RESPONSE_FLAG,
    Frame,
    WireError,
    decode_frame,
    encode_frame,
    frame_size,
)
from shared.errors import BusUnavailable
from shared.logs import get_log
from shared.metrics import BUS_RECONNECTS

CALL_S = 3.0
"""Deadline of a call that the peer answers at once."""

CONNECT_S = 3.0
_NOT_SUPPORTED = 3
_GO_AWAY = 1500
_WRITE_HIGH_WATER = 4 * 1024 * 1024

log = get_log("bus")


class ConnectionSettings:
    """What all connections of a bus share. `on_exchange(address, good)` hears of each outcome."""

    __slots__ = ("on_exchange", "signer", "tls")

    def __init__(
        self,
        signer: Signer | None = None,
        tls: tls.SSLContext | None = None,
        on_exchange: Callable[[str, bool], None] = lambda address, good: None,
    ) -> None:
        self.signer = signer
        self.tls = tls
        self.on_exchange = on_exchange


class Connection:
    """`address` is `host:port`. All failures are BusUnavailable; a response of any code is a success."""

    __slots__ = (
        "_attempt",
        "_backoff",
        "_closed",
        "_made_before",
        "_next_attempt",
        "_protocol",
        "_settings",
        "address",
    )

    def __init__(self, address: str, settings: ConnectionSettings) -> None:
        self.address = address
        self._settings = settings
        self._protocol: _Protocol | None = None
        self._attempt: asyncio.Task[_Protocol] | None = None
        self._backoff = Backoff(0.05, 1.0)
        self._next_attempt = 0.0
        self._made_before = False
        self._closed = False

    async def call(self, code: int, fields: dict[str, str], body: bytes = b"", deadline_s: float = CALL_S) -> Frame:
        """The response, whatever its code. Raises BusUnavailable."""
        signer = self._settings.signer
        if signer is not None:
            fields = signer.sign(fields, body)
        try:
            protocol = self._protocol
            if protocol is None or protocol.lost:
                protocol = await self._connect()
            response = await protocol.call(code, fields, body, deadline_s)
        except BusUnavailable:
            self._settings.on_exchange(self.address, False)
            raise
        if response.code == _GO_AWAY:
            # The broker shuts down: it has answered, but this connection leads nowhere from here on.
            protocol.drop("the broker shuts down")
        self._settings.on_exchange(self.address, True)
        return response

    async def close(self) -> None:
        """Calls under way fail."""
        self._closed = True
        attempt = self._attempt
        if attempt is not None:
            attempt.cancel()
            await asyncio.wait((attempt,))
        if self._protocol is not None:
            await self._protocol.close()

    async def _connect(self) -> _Protocol:
        if self._closed:
            raise BusUnavailable("the bus is closed")
        if self._attempt is None:
            if time.monotonic() < self._next_attempt:
                raise BusUnavailable(f"{self.address} does not take connections")
            self._attempt = asyncio.create_task(self._open(), name=f"connect {self.address}")
        # Several callers wait for one attempt; one that is cancelled must not take it along.
        return await asyncio.shield(self._attempt)

    async def _open(self) -> _Protocol:
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, protocol = await loop.create_connection(
                    lambda: _Protocol(self.address, self._on_lost), host.strip("[]"), int(port), ssl=self._settings.tls
                )
        except (OSError, ValueError, TimeoutError) as error:
            self._next_attempt = time.monotonic() + self._backoff.next_s()
            raise BusUnavailable(f"cannot connect to {self.address}: {error or 'no answer'}") from error
        finally:
            self._attempt = None
        self._backoff.reset()
        if self._made_before:
            BUS_RECONNECTS.labels(self.address).inc()
        self._made_before = True
        self._protocol = protocol
        return protocol

    def _on_lost(self) -> None:
        self._settings.on_exchange(self.address, False)


class Connections:
    """The connections to brokers, one an address."""

    __slots__ = ("_by_address", "_settings")

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._by_address: dict[str, Connection] = {}

    @property
    def addresses(self) -> list[str]:
        return list(self._by_address)

    def at(self, address: str) -> Connection:
        connection = self._by_address.get(address)
        if connection is None:
            connection = self._by_address[address] = Connection(address, self._settings)
        return connection

    def one_more(self, address: str) -> Connection:
        """A connection of the caller's own, who closes it."""
        return Connection(address, self._settings)

    async def keep_only(self, addresses: set[str]) -> None:
        """Close those to brokers that are no part of the cluster any more."""
        for address in self._by_address.keys() - addresses:
            await self._by_address.pop(address).close()

    async def close(self) -> None:
        await self.keep_only(set())


class _Protocol(asyncio.Protocol):
    """The socket's side."""

    __slots__ = (
        "_address",
        "_buffer",
        "_flush_due",
        "_frames",
        "_gone",
        "_loop",
        "_on_lost",
        "_opaque",
        "_out",
        "_pending",
        "_room",
        "_transport",
        "lost",
    )

    def __init__(self, address: str, on_lost: Callable[[], None]) -> None:
        self._address = address
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._pending: dict[int, asyncio.Future[Frame]] = {}
        self._opaque = 0
        self._frames = 0
        self._out: list[bytes] = []
        self._flush_due = False
        self._room: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.lost = False

    # -- calls

    async def call(self, code: int, fields: dict[str, str], body: bytes, deadline_s: float) -> Frame:
        if self._room is not None:
            await self._wait_for_room(deadline_s)
        if self.lost:
            raise BusUnavailable(f"the connection to {self._address} broke")
        self._opaque = opaque = (self._opaque + 1) & 0x7FFFFFFF
        future: asyncio.Future[Frame] = self._loop.create_future()
        self._pending[opaque] = future
        self._write(encode_frame(code, opaque, fields, body))
        timer = self._loop.call_later(deadline_s, self._expire, opaque, self._frames)
        try:
            return await future
        finally:
            timer.cancel()
            self._pending.pop(opaque, None)

    def _expire(self, opaque: int, frames: int) -> None:
        future = self._pending.pop(opaque, None)
        if future is not None and not future.done():
            future.set_exception(BusUnavailable(f"{self._address} did not answer in time"))
        if frames == self._frames:
            # Nothing at all came since the request went out: a peer that vanished without a word looks like this,
            # and the kernel would go on trying for a quarter of an hour.
            self.drop("the peer is silent")

    async def _wait_for_room(self, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                while self._room is not None:
                    await asyncio.shield(self._room)
        except TimeoutError as error:
            raise BusUnavailable(f"{self._address} reads nothing") from error

    def _write(self, frame: bytes) -> None:
        self._out.append(frame)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        out, self._out = self._out, []
        if self._transport is not None and not self.lost:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def drop(self, reason: str) -> None:
        """Give the connection up; what waits on it fails with `reason`."""
        self._fail(reason)
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        self.drop("the bus is closed")
        await asyncio.wait((self._gone,), timeout=1.0)

    def _fail(self, reason: str) -> None:
        self.lost = True
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(BusUnavailable(f"{self._address}: {reason}"))
        self.resume_writing()

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost:  # by the peer or the network, not by `drop`
            self._on_lost()
        self._fail(f"the connection broke ({exc or 'closed by the peer'})")
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        if self._room is None and not self.lost:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            if self._buffer:
                self._buffer += data
                self._take_from_buffer()
            else:
                self._take_from(data)
        except WireError as error:
            log.error("not the remoting protocol", peer=self._address, reason=str(error))
            self.drop(str(error))

    def _take_from(self, data: bytes) -> None:
        """Frames that came whole are read where they lie; only a rest is copied."""
        at, end = 0, len(data)
        while at < end:
            size = frame_size(data, at)
            if size == 0 or at + size > end:
                self._buffer += data[at:]
                return
            self._take(decode_frame(data if size == end else data[at : at + size]))
            at += size

    def _take_from_buffer(self) -> None:
        buffer = self._buffer
        at, end = 0, len(buffer)
        while at < end:
            size = frame_size(buffer, at)
            if size == 0 or at + size > end:
                break
            self._take(decode_frame(bytes(memoryview(buffer)[at : at + size])))
            at += size
        if at:
            del buffer[:at]

    def _take(self, frame: Frame) -> None:
        self._frames += 1
        if frame.flag & RESPONSE_FLAG:
            future = self._pending.pop(frame.opaque, None)
            if future is not None and not future.done():
                future.set_result(frame)
        elif not frame.flag & ONEWAY_FLAG:
            self._write(encode_frame(_NOT_SUPPORTED, frame.opaque, {}, flag=RESPONSE_FLAG))
