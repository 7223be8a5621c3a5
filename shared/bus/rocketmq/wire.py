"""
The remoting protocol as bytes: frames, and the messages inside them. Pure, no I/O.

A frame is `int32 length of the rest | int32 (codec << 24 | header length) | header | body`. Requests go out with
a JSON header (codec 0). A broker answers in the codec of the request, but its own requests come in the codec
its operator chose, so the binary header (codec 1) is understood as well.

Nothing a peer sends makes this module fail in any way but `WireError`. A message that cannot be decoded inside
a good frame is no error of the frame: `decode_messages` says where it lay and goes on behind it.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from struct import Struct
from struct import error as struct_error
from typing import Any

import orjson

MOST_FRAME_BYTES = 64 * 1024 * 1024
MOST_BODY_BYTES = 64 * 1024 * 1024
"""Of a compressed body, once inflated."""

# The version a client states. Below V4_9_4 name servers answer with JSON whose keys are bare numbers, and the
# signature leaves a field out.
CLIENT_VERSION = 513  # 5.5.0

RESPONSE_FLAG = 1
ONEWAY_FLAG = 2

_PREFIX = Struct(">iI")
_BINARY_HEADER = Struct(">hBhiii")
_SHORT = Struct(">h")
_INT = Struct(">i")


class WireError(Exception):
    """The bytes are not of this protocol. The connection they came on is of no more use."""


@dataclass(slots=True)
class Frame:
    """One request or response. `fields` are the header's extFields."""

    code: int
    opaque: int
    flag: int
    remark: str
    fields: dict[str, str]
    body: bytes

    @property
    def is_response(self) -> bool:
        return bool(self.flag & RESPONSE_FLAG)

    @property
    def is_oneway(self) -> bool:
        return bool(self.flag & ONEWAY_FLAG)


def encode_frame(code: int, opaque: int, fields: dict[str, str], body: bytes = b"", flag: int = 0) -> bytes:
    """A request (or, with flag bit 0, a response) ready for the socket."""
    header = orjson.dumps(
        {
            "code": code,
            "flag": flag,
            "language": "PYTHON",
            "opaque": opaque,
            "serializeTypeCurrentRPC": "JSON",
            "version": CLIENT_VERSION,
            "extFields": fields,
        }
    )
    size = len(header)
    return b"".join((_PREFIX.pack(4 + size + len(body), size), header, body))


def frame_size(data: bytes | bytearray | memoryview, start: int) -> int:
    """Bytes of the frame at `start` with its length field, or 0 while that field is not whole. Raises WireError."""
    if len(data) - start < 4:
        return 0
    size: int = _INT.unpack_from(data, start)[0]
    if not 4 <= size <= MOST_FRAME_BYTES:
        raise WireError(f"a frame of {size} bytes")
    return size + 4


def decode_frame(data: bytes) -> Frame:
    """The frame that `data` is, whole. Raises WireError."""
    if len(data) < 8:
        raise WireError("a frame without a header")
    word = _PREFIX.unpack_from(data)[1]
    end = 8 + (word & 0xFFFFFF)
    if end > len(data):
        raise WireError("a header longer than its frame")
    codec = word >> 24
    if codec == 0:
        return _decode_json_header(data[8:end], data[end:])
    if codec == 1:
        return _decode_binary_header(data[8:end], data[end:])
    raise WireError(f"header codec {codec}")


def _decode_json_header(header: bytes, body: bytes) -> Frame:
    try:
        parsed = orjson.loads(header)
        code, opaque, flag = parsed["code"], parsed["opaque"], parsed["flag"]
        remark, fields = parsed.get("remark") or "", parsed.get("extFields") or {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError("a header that is not JSON of the expected kind") from error
    if not (type(code) is type(opaque) is type(flag) is int and type(remark) is str and type(fields) is dict):
        raise WireError("a header with fields of other types")
    for name in fields:
        if type(fields[name]) is not str:
            fields[name] = str(fields[name])
    return Frame(code, opaque, flag, remark, fields, body)


def _decode_binary_header(header: bytes, body: bytes) -> Frame:
    """`int16 code, int8 language, int16 version, int32 opaque, int32 flag, int32 size, remark, int32 size, fields`."""
    try:
        code, _, _, opaque, flag, size = _BINARY_HEADER.unpack_from(header)
        remark, at = _text(header, _BINARY_HEADER.size, size)
        fields: dict[str, str] = {}
        rest = _INT.unpack_from(header, at)[0]
        at += 4
        end = at + rest
        if rest < 0 or end > len(header):
            raise WireError("fields longer than their header")
        while at < end:
            name, at = _text(header, at + 2, _SHORT.unpack_from(header, at)[0])
            fields[name], at = _text(header, at + 4, _INT.unpack_from(header, at)[0])
    except (struct_error, UnicodeDecodeError) as error:
        raise WireError("a broken binary header") from error
    return Frame(code, opaque, flag, remark, fields, body)


def _text(data: bytes, start: int, size: int) -> tuple[str, int]:
    if size < 0 or start + size > len(data):
        raise WireError("a text longer than its header")
    return data[start : start + size].decode(), start + size


_BARE_KEY = re.compile(rb"([{,])(\d+):")


def decode_json(body: bytes) -> Any:
    """A JSON body; some of the answers have keys that are numbers without quotes. Raises WireError."""
    try:
        return orjson.loads(body)
    except ValueError:
        pass
    try:
        return orjson.loads(_BARE_KEY.sub(rb'\1"\2":', body))
    except ValueError as error:
        raise WireError("a body that is not JSON") from error


# -- messages ---------------------------------------------------------------------------------------------------

_MAGIC = 0xDAA320A7
_MAGIC_LONG_TOPIC = 0xDAA320AB  # the topic's length takes two bytes (5.x, topics over 127 characters)
_COMPRESSED = 0x1
_BORN_HOST_IPV6 = 0x10
_STORE_HOST_IPV6 = 0x20
_COMPRESSION_KIND = 0x700
_ZLIB_KINDS = (0, 0x300)  # 0: written by a client from before there was a choice

# total, magic, crc, queueId, flag, queueOffset, physicalOffset, sysFlag
_MESSAGE_HEAD = Struct(">iIiiiqqi")
_HEAD_AND_BORN = _MESSAGE_HEAD.size + 8  # + born time
_AFTER_HOSTS = Struct(">iqi")  # times consumed, prepared offset, body length
_OFFSET_AT = 20
_LONG = Struct(">q")


@dataclass(slots=True)
class Message:
    """A stored message. `properties` is as on the wire: `name \\x01 value \\x02 ...`; `stored_ms` is epoch ms."""

    topic: str
    queue_id: int
    queue_offset: int
    body: bytes
    properties: str
    stored_ms: int


@dataclass(slots=True)
class BrokenMessage:
    """Where a message lay that could not be decoded; `queue_offset` is -1 if not even that could be read."""

    queue_offset: int
    reason: str


def decode_messages(data: bytes) -> tuple[list[Message], list[BrokenMessage]]:
    """The messages of a pull's or pop's body, in order, and what could not be decoded. Never raises."""
    good: list[Message] = []
    broken: list[BrokenMessage] = []
    at, end = 0, len(data)
    while at < end:
        size = _INT.unpack_from(data, at)[0] if end - at >= 4 else 0
        if not 4 < size <= end - at:
            broken.append(BrokenMessage(_offset_of(data, at), f"a message of {size} bytes in {end - at}"))
            break
        try:
            good.append(_decode_message(data, at, at + size))
        except (WireError, struct_error, UnicodeDecodeError, zlib.error) as error:
            broken.append(BrokenMessage(_offset_of(data, at), str(error) or type(error).__name__))
        at += size
    return good, broken


def _offset_of(data: bytes, at: int) -> int:
    return int(_LONG.unpack_from(data, at + _OFFSET_AT)[0]) if len(data) - at >= _OFFSET_AT + 8 else -1


def _decode_message(data: bytes, at: int, end: int) -> Message:
    _, magic, _, queue_id, _, queue_offset, _, system_flag = _MESSAGE_HEAD.unpack_from(data, at)
    if magic != _MAGIC and magic != _MAGIC_LONG_TOPIC:
        raise WireError(f"magic {magic:#x}")
    place = at + _HEAD_AND_BORN
    place += 20 if system_flag & _BORN_HOST_IPV6 else 8
    stored_ms: int = _LONG.unpack_from(data, place)[0]
    place += 28 if system_flag & _STORE_HOST_IPV6 else 16  # stored time, then the host
    size = _AFTER_HOSTS.unpack_from(data, place)[2]
    place += _AFTER_HOSTS.size
    after_body = place + size
    if size < 0 or after_body >= end:
        raise WireError("a body longer than its message")
    body = data[place:after_body]
    if magic == _MAGIC:
        topic_size, place = data[after_body], after_body + 1
    else:
        topic_size, place = _SHORT.unpack_from(data, after_body)[0], after_body + 2
    if topic_size < 0:
        raise WireError("a topic of negative length")
    after_topic = place + topic_size
    size = _SHORT.unpack_from(data, after_topic)[0]
    properties_end = after_topic + 2 + size
    if size < 0 or properties_end > end:
        raise WireError("properties longer than their message")
    if system_flag & _COMPRESSED:
        body = _inflate(body, system_flag)
    topic = data[place:after_topic].decode()
    properties = data[after_topic + 2 : properties_end].decode()
    return Message(topic, queue_id, queue_offset, body, properties, stored_ms)


def _inflate(body: bytes, system_flag: int) -> bytes:
    if system_flag & _COMPRESSION_KIND not in _ZLIB_KINDS:
        raise WireError(f"compression kind {(system_flag & _COMPRESSION_KIND) >> 8}")
    inflater = zlib.decompressobj()
    whole = inflater.decompress(body, MOST_BODY_BYTES)
    if not inflater.eof:
        raise WireError("a compressed body that is cut off or too large")
    return whole


def property_of(properties: str, name: str) -> str:
    """The value of one property, or an empty text."""
    if properties.startswith(name + "\x01"):
        start = len(name) + 1
    else:
        start = properties.find(f"\x02{name}\x01")
        if start < 0:
            return ""
        start += len(name) + 2
    end = properties.find("\x02", start)
    return properties[start:] if end < 0 else properties[start:end]


def encode_batch(messages: list[tuple[bytes, bytes]]) -> bytes:
    """The body of a batch send (request 320) of (body, properties as on the wire) pairs."""
    parts: list[bytes] = []
    pack = _BATCH_HEAD.pack
    for body, properties in messages:
        size = len(body)
        parts.append(pack(BATCH_OVERHEAD + size + len(properties), 0, 0, 0, size))
        parts.append(body)
        parts.append(_SHORT.pack(len(properties)))
        parts.append(properties)
    return b"".join(parts)


# size, magic, crc, flag, body length; the broker computes magic and crc itself
_BATCH_HEAD = Struct(">iiiii")
BATCH_OVERHEAD = _BATCH_HEAD.size + _SHORT.size
