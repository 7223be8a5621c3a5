"""
What clients send: one JSON object a text frame. Pure: bytes in, a command or a fault out.

A frame with `type` and without `msgType` is of the chat dialect (chat.py). The envelope dialect is read here: msgType 1
business, 2 acknowledgement, 3 heartbeat, 5 a newer token.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway_node.chat import read_chat
from gateway_node.commands import Ack, Asked, Business, Command, Heartbeat, Renew
from gateway_node.incoming import Incoming, decode_frame
from shared.ids import client_id_fault, is_message_id
from shared.json_text import DEEPEST

MOST_GROUPS = 100
MOST_ACKS = 10_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one frame: the clients that it may name, the levels that its JSON may be nested."""

    targets: int = 1_000
    json_depth: int = DEEPEST


USUAL = Bounds()


def parse_frame(data: bytes, bounds: Bounds = USUAL) -> Asked:
    """Raises BadFrame."""
    incoming = decode_frame(data, bounds.json_depth)
    if incoming.is_chat:
        return Asked(read_chat(incoming), chat=True)
    return Asked(_read_envelope(incoming, bounds), chat=False)


def _read_envelope(incoming: Incoming, bounds: Bounds) -> Command:
    if incoming.msgType == 2:
        return _ack(incoming)
    if incoming.msgType == 3:
        return Heartbeat(incoming.messageId)
    if incoming.msgType == 1:
        return _business(incoming, bounds.targets)
    if incoming.msgType == 5:
        if not incoming.token:
            raise incoming.fault("bad_frame", "token: missing, expected a newer connect token")
        return Renew(incoming.token, incoming.messageId)
    if incoming.msgType is None:
        raise incoming.fault("unknown_type", "expected a msgType or a type")
    text = f"msgType: {incoming.msgType} is not one that clients send; expected 1, 2, 3 or 5"
    raise incoming.fault("unknown_type", text)


def _ack(incoming: Incoming) -> Ack:
    ids = incoming.messageIds if incoming.messageIds is not None else []
    if incoming.messageId is not None:
        ids = [*ids, incoming.messageId]
    if not ids:
        raise incoming.fault("bad_frame", "messageId: missing, expected the id of a received message")
    if len(ids) > MOST_ACKS:
        raise incoming.fault("bad_frame", f"messageIds: {len(ids)} ids, at most {MOST_ACKS}")
    for place, message_id in enumerate(ids):
        if not is_message_id(message_id):
            field = f"messageIds[{place}]" if incoming.messageIds else "messageId"
            raise incoming.fault("bad_frame", f"{field}: expected 32 lower-case hex digits")
    return Ack(ids)


def _business(incoming: Incoming, most_targets: int) -> Business:
    groups = _groups(incoming)
    targets = [incoming.to] if isinstance(incoming.to, str) else incoming.to or []
    if not targets and not groups:
        raise incoming.fault("bad_frame", "to: missing, expected a clientId or a list of them")
    if len(targets) > most_targets:
        raise incoming.fault("too_many_targets", f"to: {len(targets)} targets, at most {most_targets}")
    for place, client_id in enumerate(targets):
        fault = client_id_fault(client_id)
        if fault:
            field = f"to[{place}]" if isinstance(incoming.to, list) else "to"
            raise incoming.fault("bad_frame", f"{field}: {fault}")
    if not bytes(incoming.msg):
        raise incoming.fault("bad_frame", "msg: missing")
    return Business(targets, incoming.msg, incoming.request_id(), groups)


def _groups(incoming: Incoming) -> tuple[str, ...]:
    """Each once."""
    if not incoming.toGroups:
        return ()
    if len(incoming.toGroups) > MOST_GROUPS:
        text = f"toGroups: {len(incoming.toGroups)} groups, at most {MOST_GROUPS}"
        raise incoming.fault("too_many_targets", text)
    for place, group_id in enumerate(incoming.toGroups):
        fault = client_id_fault(group_id, "groupId")
        if fault:
            raise incoming.fault("bad_frame", f"toGroups[{place}]: {fault}")
    return tuple(dict.fromkeys(incoming.toGroups))
