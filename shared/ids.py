"""
Identities: how each is written, checked, minted and taken apart. Pure.

| name      | form                                               |
|-----------|----------------------------------------------------|
| clientId  | 1-128 chars of `A-Z a-z 0-9 . _ - : @`             |
| nodeId    | `ip:port`, `[v6]:port`                             |
| sessionId | `{nodeId}_{clientId}_{yyyyMMddHHmmssSSS}` (UTC)    |
| messageId | 32 lower-case hex digits, a UUIDv7 (RFC 9562 5.7)  |
| requestId | 1-64 printable ASCII characters                    |

None of the characters of a clientId, nodeId or messageId needs escaping in JSON, which is what lets envelopes
be spliced from bytes.
"""

from __future__ import annotations

import os
import re
import time
from calendar import timegm
from random import getrandbits
from typing import NewType

MOST_NAME = 128

ClientId = NewType("ClientId", str)
NodeId = NewType("NodeId", str)
SessionId = NewType("SessionId", str)
MessageId = NewType("MessageId", str)
RequestId = NewType("RequestId", str)

_CLIENT = re.compile(r"[A-Za-z0-9._\-:@]{1,128}\Z")
_MESSAGE = re.compile(r"[0-9a-f]{32}\Z")
_REQUEST = re.compile(r"[\x20-\x7e]{1,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NODE = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:_\[\]]+):([0-9]{1,5})\Z")
_STAMP = re.compile(r"[0-9]{17}\Z")
_NOT_IN_TOPIC = re.compile(r"[^A-Za-z0-9_-]")


def client_id_fault(value: str, what: str = "clientId") -> str | None:
    """What is wrong with a clientId, or a groupId, in words for its sender; None when it is good."""
    if _CLIENT.match(value):
        return None
    if not value:
        return f"empty, a {what} has 1 to 128 characters"
    if len(value) > 128:
        return f"{len(value)} characters, at most 128"
    return f"a {what} may hold only A-Z a-z 0-9 . _ - : @"


def display_name_fault(value: str) -> str | None:
    """What is wrong with a name that people read, a user's or a group's, in words; None when it is good."""
    if len(value) > MOST_NAME:
        return f"{len(value)} characters, at most {MOST_NAME}"
    if _CONTROL.search(value):
        return "it holds a control character"
    return None


def is_message_id(value: str) -> bool:
    return _MESSAGE.match(value) is not None


def request_id_fault(value: str) -> str | None:
    """What is wrong with a requestId, in words for its sender; None when it is good."""
    if _REQUEST.match(value):
        return None
    if len(value) > 64:
        return f"{len(value)} characters, at most 64"
    return "a requestId has 1 to 64 printable ASCII characters"


def is_node_id(value: str) -> bool:
    match = _NODE.match(value)
    return match is not None and 0 < int(match[1]) < 65536


def node_of_session(session_id: str) -> str:
    """The nodeId: all before the first `_`."""
    return session_id.partition("_")[0]


def client_of_session(session_id: str) -> str:
    """The clientId: all between the first and the last `_`."""
    return session_id.partition("_")[2].rpartition("_")[0]


def is_session_id(value: str) -> bool:
    node_id, client_id = node_of_session(value), client_of_session(value)
    stamp = value.rpartition("_")[2]
    return is_node_id(node_id) and client_id_fault(client_id) is None and _STAMP.match(stamp) is not None


def since_of_session(session_id: str) -> int:
    """When the session began, by its node's clock (epoch ms): what its stamp says."""
    stamp = session_id.rpartition("_")[2]
    year, month, day, hour, minute, second = (
        int(stamp[start:end]) for start, end in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))
    )
    return timegm((year, month, day, hour, minute, second)) * 1000 + int(stamp[14:])


def node_topic(namespace: str, node_id: str) -> str:
    """The topic of a node: derived from its id alone."""
    return f"{namespace}-node-" + _NOT_IN_TOPIC.sub("-", node_id)


class MessageIdMint:
    """
    UUIDv7 message ids that sort by time, also within a millisecond and when the clock steps back.

    48 bits of epoch ms and 12 bits that count up within one, then 62 random bits (RFC 9562 section 6.2, method 1).
    """

    __slots__ = ("_at", "_last", "_random")

    def __init__(self) -> None:
        self._last = 0
        self._random = b""
        self._at = 0

    def mint(self) -> MessageId:
        stamp = time.time_ns() // 1_000_000 << 12
        if stamp <= self._last:
            stamp = self._last + 1
        self._last = stamp
        at = self._at
        if at == len(self._random):
            self._random = os.urandom(4096)  # one system call serves 512 ids
            at = 0
        self._at = at + 8
        tail = int.from_bytes(self._random[at : at + 8], "big") >> 2 | 1 << 63
        return MessageId(f"{stamp >> 12:012x}7{stamp & 0xFFF:03x}{tail:016x}")


def mint_request_id() -> RequestId:
    """For a send whose caller named none: a UUIDv4 (RFC 9562 section 5.4), for uniqueness alone and not secret."""
    text = f"{getrandbits(128):032x}"
    return RequestId(f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}")


class SessionIdMint:
    """
    Session ids of one node, never the same twice.

    The stamp is the time in ms; a client's second session in the same millisecond gets the next free one. The
    last stamp of a client is remembered for as long as it could be met again.
    """

    __slots__ = ("_last", "_node_id", "_second", "_second_text", "_sweep_at")

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._last: dict[str, int] = {}
        self._sweep_at = 0
        self._second = -1
        self._second_text = ""

    def mint(self, client_id: str, now_ms: int) -> SessionId:
        last = self._last.get(client_id, 0)
        stamp = now_ms if now_ms > last else last + 1
        self._last[client_id] = stamp
        if now_ms >= self._sweep_at:
            self._sweep(now_ms)
        return SessionId(f"{self._node_id}_{client_id}_{self._text(stamp)}")

    def _sweep(self, now_ms: int) -> None:
        self._last = {client: stamp for client, stamp in self._last.items() if stamp >= now_ms}
        self._sweep_at = now_ms + 1000

    def _text(self, stamp_ms: int) -> str:
        second, ms = divmod(stamp_ms, 1000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y%m%d%H%M%S", time.gmtime(second))
        return f"{self._second_text}{ms:03d}"
