"""A client's frame as JSON, before anybody asks what it means. Pure."""

from __future__ import annotations

import msgspec

from gateway_node.commands import BadFrame
from shared.ids import request_id_fault
from shared.json_text import field_and_fault, is_too_deep

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
    token: str | None = None
    params: msgspec.Raw = _ABSENT

    @property
    def is_chat(self) -> bool:
        return self.msgType is None and self.type is not None

    def fault(self, code: str, text: str) -> BadFrame:
        """With the frame's ids, in its dialect."""
        return BadFrame(code, text, self.requestId, self.messageId, chat=self.is_chat)

    def request_id(self) -> str | None:
        """Raises BadFrame."""
        if self.requestId is not None and (fault := request_id_fault(self.requestId)):
            raise BadFrame("bad_frame", f"requestId: {fault}", chat=self.is_chat)
        return self.requestId


_decoder = msgspec.json.Decoder(Incoming)


def decode_frame(data: bytes, most_deep: int) -> Incoming:
    """Raises BadFrame."""
    if is_too_deep(data, most_deep):
        raise BadFrame("too_deep", f"nested deeper than {most_deep}")
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _wrong(data, in_words(error)) from None
    except msgspec.DecodeError as error:
        raise BadFrame("not_json", f"not JSON: {error}") from None
    except RecursionError:
        raise BadFrame("too_deep", f"nested deeper than {most_deep}") from None


def in_words(error: msgspec.DecodeError, inside: str = "") -> str:
    """The fault with the path of its field; `inside` is the field that was being read."""
    if not isinstance(error, msgspec.ValidationError):
        return f"{inside}: not JSON" if inside else "not JSON"
    field, fault = field_and_fault(error)
    path = ".".join(part for part in (inside, field) if part)
    return f"{path}: {fault}" if path else fault


def _wrong(data: bytes, text: str) -> BadFrame:
    """A frame whose fields have wrong types: its ids and its dialect, as far as they can be read."""
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return BadFrame("bad_frame", text)
    if not isinstance(fields, dict):
        return BadFrame("bad_frame", text)
    ids = [value if isinstance(value, str) else None for value in map(fields.get, ("requestId", "messageId"))]
    return BadFrame("bad_frame", text, *ids, chat="type" in fields and "msgType" not in fields)
