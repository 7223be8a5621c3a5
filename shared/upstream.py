"""
The body of a `push-upstream` record: one client's frame to be sent on, as JSON. Nodes write it, dispatchers read it.

The node has checked the frame, put the session's own clientId as `from` and minted the messageId; the dispatcher sends
it like any other send, with trigger 2.
"""

from __future__ import annotations

import msgspec


class UpstreamSend(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    `active_time` in epoch ms. `msg` is JSON text, the client's as it came or what its node made of it.

    `to_groups`: groupIds, of which the sender is a member; `but`: a sessionId that gets nothing of what goes to these.
    """

    message_id: str = msgspec.field(name="messageId")
    request_id: str = msgspec.field(name="requestId")
    sender: str = msgspec.field(name="from")
    active_time: int = msgspec.field(name="activeTime")
    to: list[str]
    msg: msgspec.Raw
    to_groups: list[str] = msgspec.field(name="toGroups", default_factory=list)
    but: str = ""


MOST_IN_RECORD = 10_000
"""Targets that a record may name."""

UPSTREAM_QUEUES = 4
"""Of the topic on each broker; a client's frames keep to one of them."""


def upstream_topic(namespace: str) -> str:
    return f"{namespace}-upstream"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UpstreamSend)


def encode_upstream(send: UpstreamSend) -> bytes:
    return _encoder.encode(send)


def decode_upstream(body: bytes) -> UpstreamSend:
    """Raises ValueError (msgspec.DecodeError, UnicodeDecodeError), RecursionError."""
    return _decoder.decode(body)
