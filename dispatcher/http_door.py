"""
The door of the HTTP port: who may have a connection, and until when its next request head has to be there.

aiohttp's server bounds lines, fields and their number, and closes connections that are idle for too long. It leaves
open how many connections there are, how large a head is in all, and how long one may take. That is done here, at the
two places where every byte and every connection comes by: a connection over a limit is answered with prepared bytes
and closed before anything is made for it, and one whose head is not complete stands in a dict of deadlines, in their
order since all have the same time; one timer looks at the first of them.

A head is known to have begun when bytes come that complete none while no body is being received. What follows a whole
request in one piece is not seen; then the next piece counts, or the connection is idle and closed as such.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from dispatcher.answers import failure
from dispatcher.metrics import REFUSED, Tally
from shared.addresses import Network, counted_as, is_in
from shared.logs import OncePerSecond, get_log
from shared.security_headers import SECURITY_HEADERS

SECURITY = SECURITY_HEADERS | {"Server": "pushfleet"}
"""On every answer, unless it says otherwise itself. aiohttp would name its version as the server."""
_log = get_log("dispatcher")
_complaint = OncePerSecond()


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of the HTTP port, in bytes and seconds."""

    max_body: int = 1 << 20
    max_in_flight: int = 2048
    max_connections: int = 10_000
    address_connections: int = 2_000
    max_head: int = 32_768
    max_headers: int = 100
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keepalive_s: float = 75.0


class Door:
    """Counts the connections and cuts those whose head is overdue. `trusted`: proxies, each of which brings many."""

    __slots__ = ("_by_address", "_heads", "_loop", "_tally", "_timer", "_trusted", "limits")

    def __init__(self, limits: HttpLimits, tally: Tally, trusted: Sequence[Network] = ()) -> None:
        self.limits = limits
        self._trusted = trusted
        self._tally = tally
        self._by_address: dict[str, int] = {}
        self._heads: dict[Connection, float] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, peer: str) -> str:
        """The limit that keeps a connection out; "" when it is in, until `leave`."""
        address = counted_as(peer)
        if self._tally.connections >= self.limits.max_connections:
            return "connections"
        of_address = self._by_address.get(address, 0)
        if of_address >= self.limits.address_connections and not is_in(peer, self._trusted):
            return "address_connections"
        self._by_address[address] = of_address + 1
        self._tally.connections += 1
        return ""

    def leave(self, peer: str, connection: Connection) -> None:
        address = counted_as(peer)
        self._tally.connections -= 1
        left = self._by_address[address] - 1
        if left:
            self._by_address[address] = left
        else:
            del self._by_address[address]
        self._heads.pop(connection, None)

    def head_begun(self, connection: Connection) -> None:
        """Its time runs, unless it does already."""
        self._heads.setdefault(connection, self._loop.time() + self.limits.header_timeout_s)
        if self._timer is None:
            self._timer = self._loop.call_later(self.limits.header_timeout_s / 8, self._look)

    def head_done(self, connection: Connection) -> None:
        self._heads.pop(connection, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        overdue = []
        for connection, due in self._heads.items():
            if due > now:
                break
            overdue.append(connection)
        for connection in overdue:
            del self._heads[connection]
            connection.head_overdue()
        if self._heads and self._timer is None:
            self._timer = self._loop.call_later(self.limits.header_timeout_s / 8, self._look)


class Connection(web.RequestHandler):
    """A connection to the HTTP port, as aiohttp serves it, behind the door."""

    __slots__ = ("_address", "_body", "_door", "_head_bytes", "_head_end", "_max_head")

    def __init__(self, door: Door, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._door = door
        self._max_head = door.limits.max_head
        self._address: str | None = None
        self._body: Any = None  # of the last request, while it is being received
        self._head_bytes = -1  # of the head that is not complete yet; -1: none has begun
        self._head_end = b""  # its last bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = peer_address(transport)
        limit = self._door.enter(address)
        if limit:
            REFUSED.labels(limit).inc()
            self._force_close = True
            cast(asyncio.Transport, transport).write(_last_answer(503, "too many connections; try again"))
            transport.close()
            return
        self._address = address
        self._head_bytes = 0
        self._door.head_begun(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._address is not None:
            self._door.leave(self._address, self)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        body = self._body
        in_head = body is None or body.is_eof()
        if in_head and len(data) + self._head_bytes > self._max_head and self._is_too_large(data):
            return
        requests = self._request_count
        super().data_received(data)
        if self._request_count != requests:
            if self._head_bytes >= 0:
                self._head_bytes = -1
                self._door.head_done(self)
            last_body = self._messages[-1][1]
            self._body = None if last_body.is_eof() else last_body
        elif in_head and data:
            self._head_goes_on(data)

    def _head_goes_on(self, data: bytes) -> None:
        """No request came of these bytes."""
        if self._head_bytes < 0:
            self._head_bytes = 0
            self._body = None
            self._door.head_begun(self)
        self._head_bytes += len(data)
        self._head_end = (self._head_end + data)[-3:]

    def _is_too_large(self, data: bytes) -> bool:
        """Whether the head that these bytes begin or go on with is; then it is refused."""
        known = max(self._head_bytes, 0)
        before = self._head_end if known else b""
        most = self._max_head
        if (before + data).find(b"\r\n\r\n", 0, most - known + len(before)) >= 0:
            return False
        self._head_bytes = known + len(data)
        self._refuse(431, "header_size", f"a request head of more than {most} bytes")
        return True

    def head_overdue(self) -> None:
        """To be called when the head's time is over."""
        if self._messages or self._request_in_progress:
            self._door.head_begun(self)  # it is behind a request that is still at work
        else:
            timeout_s = self._door.limits.header_timeout_s
            self._refuse(408, "header_time", f"the request head did not arrive within {timeout_s:g} s")

    def _refuse(self, status: int, limit: str, text: str) -> None:
        REFUSED.labels(limit).inc()
        transport = self.transport
        if transport is not None and self._head_bytes != 0 and not self._request_in_progress:
            transport.write(_last_answer(status, text))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What the parser made nothing of, in four fields; the connection is closed behind it."""
        if isinstance(exc, LineTooLong) or (message or "").startswith("Too many headers"):
            status = 431
            REFUSED.labels("header_size").inc()
        if _complaint.due():
            _log.log(
                logging.ERROR if status >= 500 else logging.INFO,
                "bad_request_head",
                address=self._address,
                error=type(exc).__name__,
            )
        text = {400: "this is no HTTP request", 431: "the request head is too large"}.get(status, "internal error")
        headers = {**SECURITY, "Content-Type": "application/json; charset=utf-8"}
        answer = web.Response(status=status, body=failure(status, text), headers=headers)
        answer.force_close()
        return answer


class DoorServer(web.Server):
    """aiohttp's server with our connections."""

    def __init__(self, door: Door, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._door = door

    def __call__(self) -> web.RequestHandler:
        return Connection(self._door, self, loop=self._loop, **self._kwargs)


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The address at the other end of a connection; "" where there is none."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""


def _last_answer(status: int, text: str) -> bytes:
    """A whole answer in four fields; the connection closes after it."""
    body = failure(status, text)
    fields = "".join(f"{name}: {value}\r\n" for name, value in SECURITY.items())
    retry = "Retry-After: 1\r\n" if status == 503 else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"{fields}{retry}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
