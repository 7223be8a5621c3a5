"""
The request head of a node's port: whole and in pieces, against aiohttp's parser, and written again.
"""

from __future__ import annotations

import asyncio
import atexit

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage

from gateway_node.websocket.handshake import (
    Refused,
    Request,
    accept_upgrade,
    http_response,
    offered_subprotocols,
    parse_request,
)
from gateway_node.websocket.opening import Opening
from tests.fuzz.target import Chooser, Target

_loop = asyncio.new_event_loop()
atexit.register(_loop.close)
_STATUSES = (400, 405, 426, 431, 505)


def run(data: bytes) -> None:
    chooser = Chooser(data)
    size = 1 + chooser.below(64)
    most = (64, 512, 8192)[chooser.below(3)]
    stream = chooser.rest()
    whole = _opened(stream, len(stream) or 1, most)
    assert whole == _opened(stream, size, most), "the cuts change what comes out"
    request, behind = whole
    if not isinstance(request, Request):
        return
    _assert_written_again(request)
    _assert_second_opinion(request, stream[: len(stream) - len(behind)])
    for subprotocol in (None, *offered_subprotocols(request)[:2]):
        try:
            answer = accept_upgrade(request, subprotocol)
        except Refused as refused:
            _judge(refused)
            continue
        assert answer.count(b"\r\n\r\n") == 1, "the answer has a line too many"
        assert answer.count(b"\r\n") == (5 if subprotocol is None else 6)


def _opened(stream: bytes, size: int, most: int) -> tuple[Request | int | None, bytes]:
    """The request or the status of its refusal, and what came behind it."""
    opening = Opening()
    for at in range(0, len(stream), size):
        try:
            if opening.feed(stream[at : at + size], most, 100) is not None:
                return opening.request, opening.received + stream[at + size :]
        except Refused as refused:
            _judge(refused)
            return refused.status, b""
    return None, b""


def _judge(refused: Refused) -> None:
    assert refused.status in _STATUSES
    answer = http_response(refused.status, str(refused).encode(), refused.headers)
    assert answer.count(b"\r\n\r\n") == 1


def _assert_written_again(request: Request) -> None:
    """A request that is written from what was read of it is read the same."""
    lines = [f"{request.method} {request.target} {request.version}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    again = "\r\n".join((*lines, "", "")).encode("latin-1")
    try:
        read = parse_request(again)
    except Refused as refused:
        assert refused.status == 431, "only the spaces that are added may make it too long"
        return
    request.headers = {name: value.strip(" \t") for name, value in request.headers.items()}  # joined with an empty one
    assert read == request


def _assert_second_opinion(request: Request, head: bytes) -> None:
    """Where aiohttp takes it as well, both see the same: nothing may be smuggled between two readers (RFC 9112)."""
    parser = HttpRequestParser(
        BaseProtocol(_loop), _loop, 2**16, max_line_size=16384, max_field_size=16384, max_headers=999
    )
    try:
        messages, _, _ = parser.feed_data(head)
    except (HttpProcessingError, ValueError):
        return
    if not messages:
        return
    message: RawRequestMessage = messages[0][0]
    assert message.method == request.method
    assert message.path == request.target
    theirs: dict[str, list[str]] = {}
    for name, value in message.raw_headers:
        theirs.setdefault(name.decode().lower(), []).append(value.decode("latin-1"))
    assert {name: ", ".join(values).strip(" \t") for name, values in theirs.items()} == request.headers


_UPGRADE = (
    b"GET /websocket?token=a.b.c&device=web HTTP/1.1\r\nHost: push.example:9000\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: https://app.example.com\r\n"
    b"Sec-WebSocket-Protocol: bearer, abc\r\n"
)
_SEEDS = (
    b"\x10\x02" + _UPGRADE + b"\r\n",
    b"\x10\x02" + _UPGRADE + b"\r\n\x81\x80\0\0\0\0",
    b"\x01\x02GET /healthz HTTP/1.0\r\n\r\n",
    b"\x10\x02GET http://a/b?c=%e2%82%ac+1 HTTP/1.1\r\nhost: a\r\nX-A: 1\r\nX-A:2 \r\n\r\n",
    b"\x10\x02GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
)

TARGET = Target("handshake", run, _SEEDS, most=2048)
