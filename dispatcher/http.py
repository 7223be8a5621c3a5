"""
The HTTP port: one low-level aiohttp server, paths looked up whole, errors translated in one place: to four fields, or
to problems (RFC 9457) under /v1, whose paths are looked up in v1.py.

Answers to POST are written to the transport as prepared bytes (`PostAnswer`): building a `web.Response` costs about as
much as all that the dispatcher does for a send to one target. Everything else uses `web.Response`.

Who may have a connection, and what comes before a request is whole, is decided at the door (http_door.py).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from dispatcher.answers import failure
from dispatcher.cors import Cors
from dispatcher.http_door import SECURITY, Door, DoorServer, HttpLimits
from dispatcher.metrics import REFUSED, Tally
from dispatcher.v1 import PREFIX, MethodNotAllowed
from shared.addresses import Network, client_address
from shared.errors import BadRequest, BodyTooLarge, NotFound, Overloaded, PushfleetError
from shared.http_log import server_log
from shared.logs import get_log

_MOST_SLOW_BYTES = 128 << 20
_TLS_HANDSHAKE_S = 10.0
_MOST_UNREAD_BYTES = 8 << 20
_ALWAYS_ANSWERED = ("/healthz", "/metrics")
_log = get_log("dispatcher")

Endpoint = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class BodyTimeout(BadRequest):
    code = "body_timeout"
    status = 408


class PostAnswer(web.StreamResponse):
    """
    A whole JSON answer to a POST, as bytes. `headers` is text: "Name: value\\r\\n" each.

    It stands in for a StreamResponse with the four things that the server asks of one, and leaves the base class's
    costly state unset.
    """

    __slots__ = ("_alive", "_bytes", "_fields")

    def __init__(self, body: bytes, *, status: int = 200, headers: str = "") -> None:
        self._status = status
        self._bytes = body
        self._fields = headers
        self._alive: bool | None = True

    @property
    def keep_alive(self) -> bool | None:
        return self._alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._alive = alive = self._alive and request.keep_alive
        transport = request.transport
        if transport is None:
            return None
        if transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
            transport.abort()  # it sends and never reads
            return None
        if not alive:
            connection = "Connection: close\r\n"
        elif request.version.minor == 0:
            connection = "Connection: keep-alive\r\n"
        else:
            connection = ""
        head = f"{_status_and_date(self._status)}{connection}{self._fields}Content-Length: {len(self._bytes)}\r\n\r\n"
        transport.write(head.encode("latin-1") + self._bytes)
        return None

    def force_close(self) -> None:
        self._alive = False

    def add_fields(self, fields: Mapping[str, str]) -> None:
        """Further headers."""
        self._fields += "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


_heads: dict[int, str] = {}
_heads_second = 0


def _status_and_date(status: int) -> str:
    """The head up to the Date, which changes once a second."""
    global _heads_second
    second = int(time.time())
    if second != _heads_second:
        _heads.clear()
        _heads_second = second
    head = _heads.get(status)
    if head is None:
        head = _heads[status] = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nDate: {formatdate(second, usegmt=True)}\r\n"
        )
    return head


class HttpPort:
    """Listens, finds the endpoint, and turns what it raises into an answer."""

    __slots__ = (
        "_closing",
        "_cors",
        "_door",
        "_endpoints",
        "_idle",
        "_limits",
        "_listener",
        "_max_body",
        "_server",
        "_slow_bytes",
        "_tally",
        "_trusted",
        "port",
        "v1",
    )

    def __init__(
        self,
        endpoints: Mapping[str, Mapping[str, Endpoint]],
        tally: Tally,
        limits: HttpLimits | None = None,
        origins: Sequence[str] = (),
        trusted: Sequence[Network] = (),
    ) -> None:
        """
        `endpoints`: path -> method -> endpoint. What begins with /v1 goes to `v1`. `origins`: patterns of those whose
        pages may read answers. `trusted`: the proxies in front.
        """
        self._endpoints = endpoints
        self._tally = tally
        self._limits = limits or HttpLimits()
        self._max_body = self._limits.max_body
        self._cors = Cors(origins) if origins else None
        self._trusted = trusted
        self._door: Door | None = None
        self._slow_bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self.port = 0
        self.v1: Endpoint = _nothing

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Raises OSError."""
        limits = self._limits
        self._door = Door(limits, self._tally, self._trusted)
        self._server = DoorServer(
            self._door,
            self._serve,
            request_factory=self._request,
            access_log=None,
            keepalive_timeout=limits.keepalive_s,
            lingering_time=2.0,
            logger=server_log("dispatcher"),
            max_line_size=limits.max_head,
            max_field_size=limits.max_head,
            max_headers=limits.max_headers,
        )
        shake_s = None if tls is None else _TLS_HANDSHAKE_S
        listener = await asyncio.get_running_loop().create_server(
            self._server, host, port, backlog=1024, ssl=tls, ssl_handshake_timeout=shake_s
        )
        self._listener = listener
        self.port = listener.sockets[0].getsockname()[1]
        for sock in listener.sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def close(self, patience_s: float) -> None:
        """Accept no more connections, finish what was accepted for at most `patience_s`, close all."""
        self._closing = True  # each connection is closed behind its next answer
        if self._listener is None or self._server is None:
            return
        self._listener.close()
        try:
            async with asyncio.timeout(patience_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("requests_given_up", requests=self._tally.in_flight)
        self._server.pre_shutdown()
        await self._server.shutdown(1.0)
        if self._door is not None:
            self._door.close()

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, protocol._loop, client_max_size=self._max_body)

    def address_of(self, request: web.BaseRequest) -> str:
        """Where a request came from; limits by address go by it."""
        forwarded = ",".join(request.headers.getall("X-Forwarded-For", ())) if self._trusted else ""
        return client_address(request.remote or "", forwarded, self._trusted)

    async def read_body(self, request: web.BaseRequest) -> bytes:
        """Raises BodyTooLarge, BodyTimeout, Overloaded."""
        content = request.content
        if content.is_eof():
            body = content.read_nowait(-1)
            if len(body) > self._limits.max_body:
                raise self._too_large(f"{len(body)} bytes, ")
            return body
        return await self._read_slow_body(request)

    async def _read_slow_body(self, request: web.BaseRequest) -> bytes:
        most, length = self._limits.max_body, request.content_length
        if length is not None and length > most:
            raise self._too_large(f"{length} bytes, ")
        size = most if length is None else length
        if self._slow_bytes + size > _MOST_SLOW_BYTES:
            REFUSED.labels("bodies").inc()
            raise Overloaded("too many bodies are being received")
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._slow_bytes += size
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise self._too_large() from None
        except TimeoutError:
            REFUSED.labels("body_time").inc()
            raise BodyTimeout(f"the body did not arrive within {self._limits.body_timeout_s:g} s") from None
        finally:
            self._slow_bytes -= size

    def _too_large(self, size: str = "") -> BodyTooLarge:
        REFUSED.labels("body").inc()
        return BodyTooLarge(f"the body: {size}at most {self._limits.max_body}{'' if size else ' bytes'}")

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = await self._answer(request) if self._cors is None else await self._answer_page(request, self._cors)
        if isinstance(answer, web.Response):
            for name, value in SECURITY.items():
                answer.headers.setdefault(name, value)
        if self._closing:
            answer.force_close()
        return answer

    async def _answer_page(self, request: web.BaseRequest, cors: Cors) -> web.StreamResponse:
        """With what a browser needs to let a page of another origin read the answer."""
        origin = cors.origin_of(request)
        answer: web.StreamResponse = cors.preflight(request, origin) or await self._answer(request)
        fields = cors.fields(origin)
        if isinstance(answer, PostAnswer):
            answer.add_fields(fields)
        elif isinstance(answer, web.Response):
            answer.headers.update(fields)
        return answer

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        tally = self._tally
        tally.in_flight += 1
        try:
            if tally.in_flight > self._limits.max_in_flight and request.rel_url.path not in _ALWAYS_ANSWERED:
                REFUSED.labels("in_flight").inc()
                raise Overloaded(f"{self._limits.max_in_flight} requests are under way")
            endpoint = self._endpoint(request)
            self._idle.clear()
            return await endpoint(request)
        except PushfleetError as error:
            if error.status >= 500 and error.status != 503:
                _log.error("request_failed", path=request.rel_url.path, code=error.code, reason=str(error))
            return _failed(request, error)
        except web.RequestPayloadError as error:
            return _failed(request, BadRequest(f"the body cannot be read: {_first_line(error)}"))
        except ConnectionError:
            return web.Response(status=400)  # its sender is gone
        except Exception:
            _log.exception("request_failed", path=request.rel_url.path)
            return _failed(request, PushfleetError("internal error"))
        finally:
            tally.in_flight -= 1
            if not tally.in_flight:
                self._idle.set()

    def _endpoint(self, request: web.BaseRequest) -> Endpoint:
        """Raises NotFound, MethodNotAllowed."""
        path = request.rel_url.path
        methods = self._endpoints.get(path)
        if methods is None:
            return self.v1 if path.startswith(PREFIX) else _nothing
        endpoint = methods.get(request.method)
        if endpoint is None:
            raise MethodNotAllowed(methods)
        return endpoint


async def _nothing(_: web.BaseRequest) -> web.StreamResponse:
    raise NotFound("no such path; see /openapi.json")


def four_fields(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """A four-field answer as a web.Response."""
    return web.Response(
        status=status, body=body, headers={"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    )


def error_answer(error: PushfleetError) -> web.Response:
    """In four fields."""
    return four_fields(error.status, failure(error.status, str(error)), _headers(error))


def problem_answer(error: PushfleetError) -> web.Response:
    """
    A problem detail (RFC 9457 section 3). `code` and `field` are members of our own; the code tells what `type` would.
    """
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
    }
    if error.field:
        problem["field"] = error.field
    headers = {"Content-Type": "application/problem+json", **_headers(error)}
    return web.Response(status=error.status, body=orjson.dumps(problem), headers=headers)


def _failed(request: web.BaseRequest, error: PushfleetError) -> web.Response:
    return problem_answer(error) if request.rel_url.path.startswith(PREFIX) else error_answer(error)


def _headers(error: PushfleetError) -> dict[str, str]:
    headers = {}
    if error.retry_after_s:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allowed
    return headers


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
