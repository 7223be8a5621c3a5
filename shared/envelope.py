"""
The envelope: what a client receives, one JSON object a text frame. Pure.

    {"activeTime":1607080644685,"from":"system","messageId":"0176...","msg":{...},"requestId":"f231...",
     "sessionId":"...","to":"...","trigger":1,"msgType":1}

Every field is present, in this order. The bytes are built once for a send and never encoded again: `msg` is
spliced in as it came, and `sessionId` and `to`, which differ between targets, stand behind it. A *template* is an
envelope whose `sessionId` and `to` are empty strings; that is what inboxes hold. Searching for a field from the
end finds the envelope's own: `msg` lies before it, and a quote inside a JSON string is always escaped.
"""

from __future__ import annotations

from enum import IntEnum

import orjson


class Trigger(IntEnum):
    HTTP = 1
    WEBSOCKET = 2
    ROCKETMQ = 3
    SCHEDULED = 4


class MsgType(IntEnum):
    ERROR = -1
    CONNECTION = 0
    BUSINESS = 1
    ACK = 2
    HEARTBEAT = 3
    HEARTBEAT_ACK = 4
    RENEWED = 5


_SESSION = b'"sessionId":"'
_MESSAGE = b'"messageId":"'
_HOLE = b'"sessionId":"","to":"'
_TO = b'","to":"'


def business_template(
    *, active_time_ms: int, sender: str, message_id: str, msg: bytes, request_id: str, trigger: Trigger, group: str = ""
) -> bytes:
    """
    A business message with `sessionId` and `to` left empty. `msg` is JSON text, taken over byte for byte.

    `group`: the groupId of a message that goes to a group.
    """
    head = b'{"activeTime":%d,"from":%b,"messageId":"%b","msg":%b,"requestId":%b,"sessionId":"","to":""' % (
        active_time_ms,
        orjson.dumps(sender),
        message_id.encode(),
        msg,
        orjson.dumps(request_id),
    )
    if group:
        return head + b',"trigger":%d,"msgType":1,"group":"%b"}' % (trigger, group.encode())
    return head + b',"trigger":%d,"msgType":1}' % trigger


def cut_template(template: bytes) -> tuple[bytes, bytes]:
    """The template up to the sessionId's opening quote, and from behind the opening quote of `to`."""
    hole = template.rindex(_HOLE)
    return template[: hole + len(_SESSION)], template[hole + len(_HOLE) :]


def fill_template(template: bytes, session_id: bytes, client_id: bytes) -> bytes:
    """The envelope for one session."""
    hole = template.rindex(_HOLE)
    return b"".join(
        (template[: hole + len(_SESSION)], session_id, _TO, client_id, template[hole + len(_HOLE) :]),
    )


def address_of(session_id: bytes, client_id: bytes) -> bytes:
    """What stands between the two parts of a cut template: `head + address + tail` is the envelope."""
    return b"".join((session_id, _TO, client_id))


def fill_cut(head: bytes, session_id: bytes, client_id: bytes, tail: bytes) -> bytes:
    """As `fill_template`, from a template that was cut once for many sessions."""
    return b"".join((head, session_id, _TO, client_id, tail))


def session_id_of(envelope: bytes) -> bytes:
    """The envelope's sessionId. Raises ValueError when there is none."""
    start = envelope.rindex(_SESSION) + len(_SESSION)
    return envelope[start : envelope.index(b'"', start)]


def move_envelope(envelope: bytes, session_id: bytes) -> bytes:
    """The same message for another session of its client. Raises ValueError when it has no sessionId."""
    start = envelope.rindex(_SESSION) + len(_SESSION)
    return b"".join((envelope[:start], session_id, envelope[envelope.index(b'"', start) :]))


def message_id_of(envelope: bytes) -> bytes:
    """The envelope's messageId (32 hex digits). Raises ValueError when there is none."""
    start = envelope.index(_MESSAGE) + len(_MESSAGE)
    return envelope[start : start + 32]


def server_envelope(
    msg_type: MsgType,
    *,
    active_time_ms: int,
    session_id: str,
    client_id: str,
    message_id: str | None = None,
    request_id: str | None = None,
    msg: object = None,
    trigger: Trigger | None = None,
    result_msg: str | None = None,
    code: str | None = None,
    group: str | None = None,
) -> bytes:
    """A frame that a node makes itself: connection, acknowledgement, heartbeat acknowledgement, error."""
    fields: dict[str, object] = {
        "activeTime": active_time_ms,
        "from": "system",
        "messageId": message_id,
        "msg": msg,
        "requestId": request_id,
        "sessionId": session_id,
        "to": client_id,
        "trigger": trigger,
        "msgType": msg_type,
    }
    if msg_type in (MsgType.ERROR, MsgType.CONNECTION):
        fields["resultMsg"] = result_msg
    if code is not None:
        fields["code"] = code
    if group is not None:
        fields["group"] = group
    return orjson.dumps(fields)
