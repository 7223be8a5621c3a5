"""
The body of a node-topic record: NDJSON, one delivery a line. Pure.

    {"expires":1764000000000,"order":"1764000000000000","kind":"direct","envelope":{...}}

| kind     | the envelope                      | what a node does                                              |
|----------|-----------------------------------|---------------------------------------------------------------|
| direct   | whole, for one session            | delivers it; it lies in the client's inbox until acknowledged |
| online   | whole, for one session            | delivers it; nothing is stored (`durable:false`)              |
| close    | sessionId, code, reason           | closes that session                                           |
| audience | a template                        | fills it for each session here of the audience; `order` is    |
|          |                                   | the message's in the timeline (0: it is not stored)           |
| member   | sessionId                         | reads the client's audiences again                            |

A line of kind audience says more before its envelope: `"after"`, the order of the audience's message before this one;
`"audience"`; and `"but"`, a sessionId that does not get it ("": all do).

`expires` is in epoch ms; a line that comes later is passed over. `order` is the message's place in the client's inbox
(0: none), so that a session which has read the inbox up to some place knows what it has already. The header has a fixed
layout, so a node finds the envelope without parsing JSON. When a caller's `msg` holds a line break between its tokens,
the envelope travels as a JSON string instead, so that a line stays a line and `msg` still arrives byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import msgspec
import orjson

_EXPIRES = slice(11, 24)
_ORDER = slice(34, 50)
_KIND_AT = 60  # the first letter of the kind
_ENVELOPE_AT = {0x64: 79, 0x6F: 79, 0x63: 78, 0x6D: 79}  # by that letter: d(irect), o(nline), c(lose), m(ember)
_AUDIENCE = 0x61
_AFTER = slice(79, 95)
_NAME_AT = 109
_BUT = b'","but":"'
_ENVELOPE = b'","envelope":'


class Kind(IntEnum):
    """Its value is the first letter of its name on the wire."""

    DIRECT = 0x64
    ONLINE = 0x6F
    CLOSE = 0x63
    AUDIENCE = 0x61
    MEMBER = 0x6D


@dataclass(frozen=True, slots=True)
class AudienceLine:
    """A line of kind audience."""

    expires_ms: int
    order: int
    after: int
    audience: str
    but: bytes
    template: bytes


class Close(msgspec.Struct, frozen=True):
    """What stands in a `close` line."""

    session_id: str = msgspec.field(name="sessionId")
    code: int
    reason: str


class BadLine(ValueError):
    """A line that is not a delivery; the lines around it are unharmed."""


_HEADS: dict[Kind, bytes] = {
    kind: b',"kind":"%b","envelope":' % kind.name.lower().encode() for kind in Kind if kind is not Kind.AUDIENCE
}


def line_head(kind: Kind, expires_ms: int, order: int) -> bytes:
    """What stands before the envelope."""
    return b'{"expires":%013d,"order":"%016d"' % (expires_ms, order) + _HEADS[kind]


def audience_head(expires_ms: int, order: int, after: int, audience: str, but: str) -> bytes:
    """What stands before the template of a line of kind audience."""
    head = b'{"expires":%013d,"order":"%016d","kind":"audience","after":"%016d"' % (expires_ms, order, after)
    return head + f',"audience":"{audience}","but":"{but}","envelope":'.encode()


def encode_line(head: bytes, envelope: bytes) -> bytes:
    """A line without its line end."""
    if b"\n" in envelope:
        return b"".join((head, orjson.dumps(envelope.decode()), b"}"))
    return b"".join((head, envelope, b"}"))


_NEVER_MS = 9_999_999_999_999  # a sessionId is never used again, so its end may come whenever it likes
_close_decoder = msgspec.json.Decoder(Close)


def close_line(session_id: str, code: int, reason: str) -> bytes:
    """A line that has the session's node close it."""
    return encode_line(line_head(Kind.CLOSE, _NEVER_MS, 0), msgspec.json.encode(Close(session_id, code, reason)))


def decode_close(envelope: bytes) -> Close:
    """Of a `close` line. Raises ValueError (msgspec.DecodeError, UnicodeDecodeError)."""
    return _close_decoder.decode(envelope)


def join_lines(lines: Iterable[bytes]) -> bytes:
    """The body of a record."""
    return b"\n".join(lines)


def split_lines(body: bytes) -> list[bytes]:
    return body.split(b"\n")


def decode_line(line: bytes) -> tuple[int, int, int, bytes]:
    """(kind, expires in epoch ms, order, envelope). Raises BadLine."""
    try:
        kind = line[_KIND_AT]
        start = _ENVELOPE_AT[kind]
        expires = int(line[_EXPIRES])
        order = int(line[_ORDER])
        if line[start] == 0x7B:
            return kind, expires, order, line[start:-1]
        return kind, expires, order, orjson.loads(line[start:-1]).encode()
    except (IndexError, KeyError, ValueError, AttributeError):
        raise BadLine(f"a line of {len(line)} bytes is not a delivery") from None


def is_audience(line: bytes) -> bool:
    """Whether `decode_audience` is the one to read it."""
    return len(line) > _KIND_AT and line[_KIND_AT] == _AUDIENCE


def decode_audience(line: bytes) -> AudienceLine:
    """Raises BadLine."""
    try:
        name_end = line.index(_BUT, _NAME_AT)
        but_at = name_end + len(_BUT)
        but_end = line.index(_ENVELOPE, but_at)
        template = line[but_end + len(_ENVELOPE) : -1]
        if template[0] != 0x7B:
            template = orjson.loads(template).encode()
        return AudienceLine(
            int(line[_EXPIRES]),
            int(line[_ORDER]),
            int(line[_AFTER]),
            line[_NAME_AT:name_end].decode(),
            line[but_at:but_end],
            template,
        )
    except (IndexError, ValueError, AttributeError):
        raise BadLine(f"a line of {len(line)} bytes is not a delivery") from None
