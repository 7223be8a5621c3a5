"""
The remoting protocol's bytes: decoding what a real name server and broker sent, and surviving anything else.

The vectors are responses of RocketMQ 5.5.0, whole frames: a pull of five messages (one sent alone, three as a
batch, one compressed by RocketMQ's own Java client), a route, and a cluster (whose JSON has bare numbers as keys).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus.rocketmq.acl import Signer
from shared.bus.rocketmq.message_id import MessageIds
from shared.bus.rocketmq.wire import (
    Frame,
    Message,
    WireError,
    decode_frame,
    decode_json,
    decode_messages,
    encode_batch,
    encode_frame,
    frame_size,
    property_of,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "rocketmq"
PULL = (VECTORS / "pull.bin").read_bytes()
ROUTE = (VECTORS / "route.bin").read_bytes()
CLUSTER = (VECTORS / "cluster.bin").read_bytes()
PULL_BODY = decode_frame(PULL).body

texts = st.text(st.characters(codec="utf-8"), max_size=40)


def stored(
    body: bytes,
    *,
    offset: int = 7,
    flags: int = 0,
    topic: bytes = b"topic",
    properties: bytes = b"KEYS\x01k\x02",
    magic: int = 0xDAA320A7,
) -> bytes:
    """A message as a broker stores it, built field by field from RocketMQ's MessageDecoder (the comments there)."""
    born_host = bytes(20 if flags & 0x10 else 8)
    store_host = bytes(20 if flags & 0x20 else 8)
    topic_size = struct.pack(">b" if magic == 0xDAA320A7 else ">h", len(topic))
    rest = struct.pack(">Iiiiqqiq", magic, 0, 3, 0, offset, 0, flags, 0) + born_host
    rest += struct.pack(">q", 1_700_000_000_123) + store_host + struct.pack(">iqi", 0, 0, len(body)) + body
    rest += topic_size + topic + struct.pack(">h", len(properties)) + properties
    return struct.pack(">i", 4 + len(rest)) + rest


# -- what real servers sent


def test_pull_of_a_real_broker() -> None:
    """Single, batched, empty, binary and Java-compressed bodies come out as they were sent, keys with them."""
    messages, broken = decode_messages(PULL_BODY)
    sent = [b"single", b"first of a batch", b"", b"\x00\xff", (b"compress me " * 500).strip()]
    assert sent == [message.body for message in messages]
    keys = ["key-1", "key-2", "", "schlüssel", "key-3"]
    assert keys == [property_of(message.properties, "KEYS") for message in messages]
    assert list(range(5)) == [message.queue_offset for message in messages]
    assert {"vector"} == {message.topic for message in messages}
    assert broken == []


def test_header_of_a_real_broker() -> None:
    """Code, opaque, direction and fields of a response."""
    frame = decode_frame(PULL)
    assert (0, 7, True, False) == (frame.code, frame.opaque, frame.is_response, frame.is_oneway)
    assert frame.fields["nextBeginOffset"] == "5"


def test_json_with_bare_numbers_as_keys() -> None:
    """The cluster's answer is no JSON by the letter; both forms give the master under "0"."""
    cluster = decode_json(decode_frame(CLUSTER).body)
    route = decode_json(decode_frame(ROUTE).body)
    master = {"0": "127.0.0.1:14911"}
    assert master == cluster["brokerAddrTable"]["broker-a"]["brokerAddrs"]
    assert master == route["brokerDatas"][0]["brokerAddrs"]


# -- frames


@given(st.integers(0, 2**31 - 1), st.dictionaries(texts, texts, max_size=5), st.binary(max_size=100), st.integers(0, 3))
def test_frame_round_trip(opaque: int, fields: dict[str, str], body: bytes, flag: int) -> None:
    """Decoding an encoded frame gives it back, and its size is the whole of it."""
    data = encode_frame(310, opaque, fields, body, flag)
    assert len(data) == frame_size(data, 0)
    assert Frame(310, opaque, flag, "", fields, body) == decode_frame(data)


def test_binary_header() -> None:
    """A broker whose operator chose the binary header codec is understood."""
    field = struct.pack(">h", 5) + b"topic" + struct.pack(">i", 2) + b"t1"
    header = struct.pack(">hBhii", 40, 0, 513, 9, 2) + struct.pack(">i", 2) + b"hi"
    header += struct.pack(">i", len(field)) + field
    data = struct.pack(">iI", 4 + len(header) + 3, 1 << 24 | len(header)) + header + b"abc"
    assert Frame(40, 9, 2, "hi", {"topic": "t1"}, b"abc") == decode_frame(data)


@pytest.mark.parametrize("size", [-1, 0, 3, 2**31 - 1])
def test_frame_size_out_of_bounds(size: int) -> None:
    """A length no frame can have is an error at once, not a wait for gigabytes."""
    with pytest.raises(WireError):
        frame_size(struct.pack(">i", size), 0)


@pytest.mark.parametrize("data", [b"", b"\x00", PULL[:3]])
def test_frame_size_not_whole_yet(data: bytes) -> None:
    """Fewer than four bytes say nothing yet."""
    assert frame_size(data, 0) == 0


@pytest.mark.parametrize(
    "header",
    [b"[]", b"1", b"{}", b'{"code":"0","opaque":1,"flag":0}', b'{"code":0,"opaque":1,"flag":0,"extFields":[1]}', b"{"],
)
def test_header_of_another_form(header: bytes) -> None:
    """JSON that is no header is a WireError."""
    with pytest.raises(WireError):
        decode_frame(struct.pack(">iI", 4 + len(header), len(header)) + header)


def _decode_as_connection(data: bytes) -> None:
    size = frame_size(data, 0)
    if 0 < size <= len(data):
        decode_messages(decode_frame(data[:size]).body)


@given(st.binary(max_size=300))
def test_any_bytes_as_frame(data: bytes) -> None:
    """Random bytes raise the decode error or nothing."""
    try:
        _decode_as_connection(data)
        decode_frame(data)
    except WireError:
        pass


@given(st.sampled_from([PULL, ROUTE, CLUSTER]), st.data())
def test_mutated_real_frames(vector: bytes, data: st.DataObject) -> None:
    """A real frame with bytes changed, cut out or cut off raises the decode error or nothing."""
    mutated = bytearray(vector)
    places = st.integers(0, len(vector) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        mutated[place] = value
    start, end = sorted((data.draw(places), data.draw(places)))
    if data.draw(st.booleans()):
        del mutated[start:end]
    try:
        _decode_as_connection(bytes(mutated))
        decode_json(decode_frame(bytes(mutated)).body)
    except WireError:
        pass


# -- messages


@given(st.binary(max_size=200), st.integers(0, 2**62), st.sampled_from([0, 0x10, 0x20, 0x30]), st.booleans())
def test_messages_by_flag(body: bytes, offset: int, hosts: int, compressed: bool) -> None:
    """IPv4 and IPv6 hosts in each mixture, plain and compressed."""
    sent = zlib.compress(body) if compressed else body
    data = stored(sent, offset=offset, flags=hosts | compressed)
    assert ([Message("topic", 3, offset, body, "KEYS\x01k\x02", 1_700_000_000_123)], []) == decode_messages(data)


def test_message_with_a_long_topic() -> None:
    """The second magic has two bytes for the topic's length."""
    topic = b"t" * 300
    messages, _ = decode_messages(stored(b"x", topic=topic, magic=0xDAA320AB))
    assert [topic.decode()] == [message.topic for message in messages]


@pytest.mark.parametrize(
    "bad",
    [
        stored(b"x", offset=8, magic=1),
        stored(b"not zlib", offset=8, flags=1),
        stored(zlib.compress(b"x" * 1000)[:-4], offset=8, flags=1),
        stored(zlib.compress(b"x"), offset=8, flags=0x1 | 0x200),  # ZSTD
        stored(b"x", offset=8, topic=b"\xff"),
        stored(b"x", offset=8, properties=b"\xff\xfe"),
        stored(b"x", offset=8, flags=0x30)[:40] + b"\x7f" * 73,
    ],
    ids=["magic", "not zlib", "cut off", "zstd", "topic", "properties", "lengths"],
)
def test_broken_message_between_good_ones(bad: bytes) -> None:
    """What cannot be decoded is named by its offset, and what lies behind it is read."""
    bad = struct.pack(">i", len(bad)) + bad[4:]
    messages, broken = decode_messages(stored(b"before") + bad + stored(b"after", offset=9))
    assert [b"before", b"after"] == [message.body for message in messages]
    assert [8] == [one.queue_offset for one in broken]


@pytest.mark.parametrize("size", [-5, 0, 4, 10_000])
def test_message_length_out_of_bounds(size: int) -> None:
    """With a length that cannot be, nothing behind it can be found: the rest is one broken message, no loop."""
    rest = struct.pack(">i", size) + stored(b"x", offset=8)[4:]
    messages, broken = decode_messages(stored(b"before") + rest)
    assert [b"before"] == [message.body for message in messages]
    assert [8] == [one.queue_offset for one in broken]


def test_inflating_is_bounded() -> None:
    """A small body that inflates beyond the limit is broken, and does not take the memory."""
    bomb = zlib.compress(bytes(65 * 1024 * 1024), 9)
    assert [8] == [one.queue_offset for one in decode_messages(stored(bomb, offset=8, flags=1))[1]]


@given(st.binary(max_size=400))
def test_any_bytes_as_messages(data: bytes) -> None:
    """Decoding messages never raises; whatever is there is good or broken."""
    messages, broken = decode_messages(data)
    assert bool(data) == bool(messages or broken)


# -- properties, batches, signatures, keys


@pytest.mark.parametrize(
    ("properties", "value"),
    [
        ("KEYS\x01a\x02", "a"),
        ("X\x01b\x02KEYS\x01a\x02", "a"),
        ("X\x01b\x02KEYS\x01a", "a"),
        ("XKEYS\x01b\x02", ""),
        ("", ""),
        ("X\x01KEYS\x02", ""),
    ],
)
def test_property_of(properties: str, value: str) -> None:
    """A property is found by its whole name wherever it stands, and is empty where it is not."""
    assert value == property_of(properties, "KEYS")


def test_batch_body() -> None:
    """The body of request 320, field by field."""
    first = struct.pack(">iiiii", 25, 0, 0, 0, 1) + b"a" + struct.pack(">h", 2) + b"xy"
    second = struct.pack(">iiiii", 24, 0, 0, 0, 2) + b"bc" + struct.pack(">h", 0)
    assert first + second == encode_batch([(b"a", b"xy"), (b"bc", b"")])


def test_signature() -> None:
    """By hand with openssl: HMAC-SHA1 over the values in the order of their names, then the body, in base64."""
    signed = Signer("ak", "secret").sign({"topic": "t", "b": "1"}, b"body")
    expected = {"AccessKey": "ak", "b": "1", "topic": "t", "Signature": "73Lun5X/EefKS818VZPOE1iyl0g="}
    assert expected == signed


def test_unique_keys() -> None:
    """32 hexadecimal digits, all different, with the time since the month began in the fifth word."""
    ids = MessageIds()
    drawn = [ids.draw(1_700_000_000_000) for _ in range(1000)]
    assert len(set(drawn)) == 1000
    assert {32} == {len(one) for one in drawn}
    later = ids.draw(1_700_000_000_123)
    assert int(later[20:28], 16) - int(drawn[0][20:28], 16) == 123


def test_request_is_what_a_broker_reads() -> None:
    """The header names what RocketMQ's RemotingCommand reads, and every extField is a string."""
    data = encode_frame(11, 5, {"topic": "t"}, b"")
    size = struct.unpack(">I", data[4:8])[0]
    header = orjson.loads(data[8 : 8 + size])
    assert header == {
        "code": 11,
        "flag": 0,
        "language": "PYTHON",
        "opaque": 5,
        "serializeTypeCurrentRPC": "JSON",
        "version": 513,
        "extFields": {"topic": "t"},
    }
