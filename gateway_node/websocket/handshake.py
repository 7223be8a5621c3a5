"""
The HTTP/1.1 part of a connection's life, server side: request head in, response bytes out. Pure: no loop, no socket.

Theory of operation. A node speaks HTTP for one request a connection: an upgrade to WebSocket (RFC 6455 section 4.2),
or a plain request (`/healthz`), which is answered and closed. `head_end` finds where a head ends in the bytes so far,
`parse_request` reads it, and the answer is `accept_upgrade` (101) or `http_response`. What a request may not be is
raised as `Refused`, which carries the answer's status, text and headers.

Parsing is strict where leniency has let requests be smuggled (RFC 9112): lines end in CR LF, no folded header
lines, no space before the colon, no control characters in values. No extension is ever negotiated, so
permessage-deflate is off whatever a client offers.

A browser's upgrade request (12 header lines, 500 bytes) is parsed in about 6 us and answered in 1 us, since a
node must take back thousands of clients at once when another one has died.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_to_bytes

from shared.security_headers import SECURITY_HEADERS

MAX_HEAD: Final = 8192
MAX_HEADERS: Final = 64

_HEAD_END: Final = b"\r\n\r\n"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110 section 5.6.2
_TARGET: Final = re.compile(r"[!-~]+").fullmatch
_ABSOLUTE: Final = re.compile(r"(?:https?|wss?)://[^/?#]*", re.IGNORECASE).match
_CONTROLS: Final = bytes((*range(9), 11, 12, *range(14, 32), 127))
_VERSIONS: Final = frozenset(("HTTP/1.1", "HTTP/1.0"))
_REASONS: Final = {int(status): status.phrase for status in HTTPStatus}

# Names as clients write them: most header lines are found here, which saves judging and lowering each name.
_NAMES: Final = {
    spelling: name.lower()
    for name in (
        "Accept",
        "Accept-Encoding",
        "Accept-Language",
        "Authorization",
        "Cache-Control",
        "Connection",
        "Cookie",
        "Host",
        "Origin",
        "Pragma",
        "Sec-WebSocket-Extensions",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Protocol",
        "Sec-WebSocket-Version",
        "Sec-Fetch-Dest",
        "Sec-Fetch-Mode",
        "Sec-Fetch-Site",
        "Upgrade",
        "User-Agent",
        "X-Forwarded-For",
        "X-Real-IP",
    )
    for spelling in (name, name.lower())
}

_SECURITY: Final = [f"{name}: {value}" for name, value in SECURITY_HEADERS.items()]
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)


class Refused(Exception):
    """
    A request that is answered and not upgraded: an HTTP status, a text fit for the caller, extra headers.

    `limit` names the limit that it goes over, "" for none.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None, limit: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.limit = limit
        self.headers: Mapping[str, str] = headers or {}


@dataclass(slots=True)
class Request:
    """
    A parsed request head.

    `path` is as sent (not percent-decoded), `query` holds the last value of each parameter, decoded; `headers` has
    lower-case names, the values of a repeated header joined with ", " (RFC 9110 section 5.3).
    """

    method: str
    target: str
    path: str
    version: str
    headers: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)


def head_end(data: bytes, searched: int = 0, limit: int = MAX_HEAD) -> int:
    """
    Where the head at the start of `data` ends (behind its empty line), or -1 while it is not complete.

    `searched` bytes of `data` were looked at before. Raises `Refused` 431 for a head of more than `limit` bytes.
    """
    end = data.find(_HEAD_END, max(0, searched - 3), limit)
    if end >= 0:
        return end + 4
    if len(data) >= limit:
        raise Refused(431, f"a request head of more than {limit} bytes", limit="header_size")
    return -1


def parse_request(head: bytes, most_bytes: int = MAX_HEAD, most_headers: int = MAX_HEADERS) -> Request:
    """
    Read a whole request head, the empty line included (see `head_end`).

    Raises `Refused`: 400 what breaks RFC 9112, 431 too many header lines, 505 a version that is not HTTP/1.x.
    """
    if len(head) > most_bytes:
        raise Refused(431, f"a request head of more than {most_bytes} bytes", limit="header_size")
    if not head.endswith(_HEAD_END):
        raise Refused(400, "a request head without its end")
    if len(head.translate(None, _CONTROLS)) != len(head):
        raise Refused(400, "a control character in the request head")
    lines = head[:-4].decode("latin-1").split("\r\n")
    ends = len(lines) + 1
    if head.count(b"\r") != ends or head.count(b"\n") != ends:
        raise Refused(400, "a line of the request head does not end in CR LF")
    if len(lines) > most_headers + 1:
        raise Refused(431, f"more than {most_headers} header lines", limit="header_count")
    method, target, version = _parse_request_line(lines[0])
    headers = _parse_headers(lines)
    if ("host" not in headers and version == "HTTP/1.1") or "," in headers.get("host", ""):
        raise Refused(400, "not exactly one Host header")
    path, _, query = _origin_form(target).partition("?")
    return Request(method, target, path, version, headers, _parse_query(query) if query else {})


def _parse_request_line(line: str) -> tuple[str, str, str]:
    parts = line.split(" ")
    if len(parts) != 3:
        raise Refused(400, "a request line that is not: method, target, version")
    method, target, version = parts
    if not _TOKEN(method) or not _TARGET(target):
        raise Refused(400, "a request line with characters that may not be in it")
    if version not in _VERSIONS:
        if re.fullmatch(r"HTTP/[0-9]\.[0-9]", version):
            raise Refused(505, "only HTTP/1.1 is spoken here")
        raise Refused(400, "a request line without an HTTP version")
    return method, target, version


def _parse_headers(lines: list[str]) -> dict[str, str]:
    """The fields of all lines but the first."""
    headers: dict[str, str] = {}
    for line in lines[1:]:
        raw, colon, value = line.partition(":")
        name = _NAMES.get(raw)
        if name is None:
            # A folded line (RFC 9112 section 5.2) starts with a space and a name may not end in one: no token.
            if not colon or not _TOKEN(raw):
                raise Refused(400, "a header line that is not: name, colon, value")
            name = raw.lower()
        elif not colon:
            raise Refused(400, "a header line without a colon")
        value = value.strip(" \t")
        headers[name] = value if name not in headers else f"{headers[name]}, {value}"
    return headers


def _origin_form(target: str) -> str:
    """Path and query of a target; a server must take absolute ones too (RFC 9112 section 3.2.2)."""
    if target.startswith("/"):
        return target
    absolute = _ABSOLUTE(target)
    if absolute is None:
        raise Refused(400, "a request target that is no path")
    rest = target[absolute.end() :]
    return rest if rest.startswith("/") else "/" + rest


def _parse_query(query: str) -> dict[str, str]:
    """Parameters as application/x-www-form-urlencoded has them; of a repeated one the last value."""
    values: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name or value:
            values[_decoded(name)] = _decoded(value)
    return values


def _decoded(text: str) -> str:
    if "+" in text:
        text = text.replace("+", " ")
    if "%" not in text:
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise Refused(400, "a query that is not UTF-8") from None


def check_upgrade(request: Request) -> None:
    """
    Whether the request is a good opening handshake (RFC 6455 section 4.2.1).

    Raises `Refused`: 405 not GET, 400 what else is wrong with it, 426 no upgrade asked for or another version than
    13 (with the headers that say what would do).
    """
    headers = request.headers
    if request.method != "GET":
        raise Refused(405, "a WebSocket is opened with GET", {"Allow": "GET"})
    if request.version != "HTTP/1.1":
        raise Refused(400, "a WebSocket is opened over HTTP/1.1")
    if not _lists(headers.get("upgrade", ""), "websocket") or not _lists(headers.get("connection", ""), "upgrade"):
        raise Refused(426, "this is a WebSocket: ask for an upgrade", {"Upgrade": "websocket"})
    if headers.get("sec-websocket-version") != "13":
        raise Refused(426, "only WebSocket version 13 is spoken here", {"Sec-WebSocket-Version": "13"})
    if not _is_key(headers.get("sec-websocket-key", "")):
        raise Refused(400, "a Sec-WebSocket-Key that is not 16 bytes in base64")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise Refused(400, "an opening handshake with a body")


def accept_upgrade(request: Request, subprotocol: str | None = None) -> bytes:
    """
    The 101 response to a good opening handshake.

    `subprotocol` is one of those the client offered (`offered_subprotocols`). Raises `Refused` as `check_upgrade`.
    """
    check_upgrade(request)
    key = request.headers["sec-websocket-key"].encode("latin-1")
    digest = b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)
    if subprotocol is None:
        return _SWITCHING + digest + _HEAD_END
    line = f"\r\nSec-WebSocket-Protocol: {subprotocol}".encode("latin-1")
    return _SWITCHING + digest + line + _HEAD_END


def offered_subprotocols(request: Request) -> tuple[str, ...]:
    """What `Sec-WebSocket-Protocol` lists, in the client's order of preference."""
    offered = request.headers.get("sec-websocket-protocol", "")
    return tuple(item for part in offered.split(",") if (item := part.strip(" \t")))


def _lists(value: str, word: str) -> bool:
    """Whether a comma separated header value has `word`, in any case."""
    lowered = value.lower()
    return lowered == word or word in (part.strip(" \t") for part in lowered.split(","))


def _is_key(key: str) -> bool:
    try:
        return len(a2b_base64(key, strict_mode=True)) == 16
    except (Base64Error, ValueError):
        return False


def http_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP/1.1 response; the connection closes after it. `headers` are the caller's own, without CR or LF."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}", *_SECURITY]
    if headers:
        lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1") + body
