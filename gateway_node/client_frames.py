"""
What clients send: one JSON object a text frame. Pure: bytes in, a frame or a fault out.

Envelope dialect (`msgType`): 1 business, 2 acknowledgement, 3 heartbeat. Of the chat dialect (`type`) this version
reads type 7, which names the client where authentication is off.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from shared.ids import client_id_fault, is_message_id, request_id_fault
from shared.json_text import DEEPEST, field_and_fault, is_too_deep

MOST_TARGETS = 1000
MOST_ACKS = 10_000


_ABSENT = msgspec.Raw()


class Incoming(msgspec.Struct):
    """Any frame of either dialect; what a kind of frame does not use is left out."""

    msgType: int | None = None  # noqa: N815 - the wire's own name
    type: int | None = None
    to: str | list[str] | None = None
    toGroups: list[str] | None = None  # noqa: N815
    msg: msgspec.Raw = _ABSENT
    messageId: str | None = None  # noqa: N815
    messageIds: list[str] | None = None  # noqa: N815
    requestId: str | None = None  # noqa: N815
    params: msgspec.Raw = _ABSENT


class Registration(msgspec.Struct):
    """`params` of type 7."""

    openid: str
    userName: str = ""  # noqa: N815
    loginStatus: str = "1"  # noqa: N815


@dataclass(frozen=True, slots=True)
class Business:
    to: list[str]
    msg: msgspec.Raw
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Ack:
    message_ids: list[str]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    message_id: str | None


@dataclass(frozen=True, slots=True)
class Register:
    client_id: str
    user_name: str
    login_status: str


class BadFrame(Exception):
    """
    `code` for programs, the text for people; the offending frame's ids where it had them.

    `chat`: the frame was of the chat dialect, so the answer has to be.
    """

    def __init__(
        self,
        code: str,
        text: str,
        request_id: str | None = None,
        message_id: str | None = None,
        *,
        chat: bool = False,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id
        self.message_id = message_id
        self.chat = chat


_decoder = msgspec.json.Decoder(Incoming)
_registration = msgspec.json.Decoder(Registration)


def parse_frame(data: bytes) -> Business | Ack | Heartbeat | Register:
    """Raises BadFrame."""
    if is_too_deep(data):
        raise BadFrame("too_deep", f"nested deeper than {DEEPEST}")
    try:
        incoming = _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _fault(data, "bad_frame", _in_words(error)) from None
    except msgspec.DecodeError as error:
        raise BadFrame("not_json", f"not JSON: {error}") from None
    except RecursionError:
        raise BadFrame("too_deep", f"nested deeper than {DEEPEST}") from None
    if incoming.msgType == 2:
        return _ack(incoming)
    if incoming.msgType == 3:
        return Heartbeat(incoming.messageId)
    if incoming.msgType == 1:
        return _business(incoming)
    if incoming.msgType is None and incoming.type == 7:
        return _register(incoming)
    raise _of(incoming, "unknown_type", _unknown(incoming))


def _unknown(incoming: Incoming) -> str:
    if incoming.msgType is not None:
        return f"msgType: {incoming.msgType} is not one that clients send; expected 1, 2 or 3"
    if incoming.type is not None:
        return f"type: {incoming.type} is not available in this version"
    return "expected a msgType"


def _of(incoming: Incoming, code: str, text: str) -> BadFrame:
    chat = incoming.msgType is None and incoming.type is not None
    return BadFrame(code, text, incoming.requestId, incoming.messageId, chat=chat)


def _fault(data: bytes, code: str, text: str) -> BadFrame:
    """A frame whose fields have wrong types: its ids and its dialect, as far as they can be read."""
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return BadFrame(code, text)
    if not isinstance(fields, dict):
        return BadFrame(code, text)
    ids = [value if isinstance(value, str) else None for value in map(fields.get, ("requestId", "messageId"))]
    return BadFrame(code, text, *ids, chat="type" in fields and "msgType" not in fields)


def _in_words(error: msgspec.DecodeError) -> str:
    if not isinstance(error, msgspec.ValidationError):
        return "not JSON"
    field, fault = field_and_fault(error)
    return f"{field}: {fault}" if field else fault


def _ack(incoming: Incoming) -> Ack:
    ids = incoming.messageIds if incoming.messageIds is not None else []
    if incoming.messageId is not None:
        ids = [*ids, incoming.messageId]
    if not ids:
        raise _of(incoming, "bad_frame", "messageId: missing, expected the id of a received message")
    if len(ids) > MOST_ACKS:
        raise _of(incoming, "bad_frame", f"messageIds: {len(ids)} ids, at most {MOST_ACKS}")
    for place, message_id in enumerate(ids):
        if not is_message_id(message_id):
            field = f"messageIds[{place}]" if incoming.messageIds else "messageId"
            raise _of(incoming, "bad_frame", f"{field}: expected 32 lower-case hex digits")
    return Ack(ids)


def _business(incoming: Incoming) -> Business:
    if incoming.toGroups:
        raise _of(incoming, "bad_frame", "toGroups: groups are not available in this version")
    targets = [incoming.to] if isinstance(incoming.to, str) else incoming.to
    if not targets:
        raise _of(incoming, "bad_frame", "to: missing, expected a clientId or a list of them")
    if len(targets) > MOST_TARGETS:
        raise _of(incoming, "too_many_targets", f"to: {len(targets)} targets, at most {MOST_TARGETS}")
    for place, client_id in enumerate(targets):
        fault = client_id_fault(client_id)
        if fault:
            field = f"to[{place}]" if isinstance(incoming.to, list) else "to"
            raise _of(incoming, "bad_frame", f"{field}: {fault}")
    if not bytes(incoming.msg):
        raise _of(incoming, "bad_frame", "msg: missing")
    if incoming.requestId is not None and (fault := request_id_fault(incoming.requestId)):
        raise BadFrame("bad_frame", f"requestId: {fault}")
    return Business(targets, incoming.msg, incoming.requestId)


def _register(incoming: Incoming) -> Register:
    try:
        params = _registration.decode(bytes(incoming.params) or b"{}")
    except msgspec.DecodeError as error:
        raise _of(incoming, "bad_frame", f"params: {_in_words(error)}") from None
    fault = client_id_fault(params.openid)
    if fault:
        raise _of(incoming, "bad_frame", f"params.openid: {fault}")
    return Register(params.openid, params.userName, params.loginStatus)
