"""
What a broker or a name server answers: frames, the messages in them, routes. WireError, BusUnavailable, or a value.

Nobody but the site's own servers sends this; what is broken must all the same not end a reader.
"""

from __future__ import annotations

import json

from shared.bus.rocketmq.received import as_received
from shared.bus.rocketmq.route import _MOST_QUEUES, _parse_cluster, _parse_route
from shared.bus.rocketmq.shared import CheckPoints
from shared.bus.rocketmq.wire import (
    MOST_FRAME_BYTES,
    Frame,
    Message,
    WireError,
    decode_frame,
    decode_json,
    decode_messages,
    encode_frame,
    frame_size,
    property_of,
)
from shared.errors import BusUnavailable
from tests.fuzz.target import Chooser, Target


def run(data: bytes) -> None:
    chooser = Chooser(data)
    (_frame, _messages, _route, _check_points, _written)[chooser.below(5)](chooser.rest())


def _frame(data: bytes) -> None:
    try:
        size = frame_size(data, 0)
        assert size == 0 or 8 <= size <= MOST_FRAME_BYTES + 4
        frame = decode_frame(data)
    except WireError:
        return
    assert all(type(name) is str and type(value) is str for name, value in frame.fields.items())
    frame.remark[:200].encode()


def _messages(data: bytes) -> None:
    good, broken = decode_messages(data)
    assert len(broken) <= len(data) // 4 + 1
    for message in good:
        record = as_received(message, None)
        assert record.body is message.body
        for part in message.properties.split("\x02"):
            name, separator, value = part.partition("\x01")
            if separator and name and message.properties.count(f"{name}\x01") == 1:
                assert property_of(message.properties, name) == value.partition("\x02")[0]


def _route(body: bytes) -> None:
    frame = Frame(0, 1, 1, "", {}, body)
    try:
        route = _parse_route(frame)
        assert len(route.writable) <= _MOST_QUEUES and len(route.readable) <= _MOST_QUEUES  # noqa: PT018
        assert all(type(address) is str for address in route.masters.values())
    except BusUnavailable:
        pass
    try:
        masters = _parse_cluster(frame)
        assert all(type(name) is type(address) is str for name, address in masters.items())
    except BusUnavailable:
        pass


def _check_points(data: bytes) -> None:
    """Of a pop's answer."""
    starts, _, rest = data.decode("latin-1").partition("|")
    offsets, _, carried = rest.partition("|")
    fields = {"popTime": "1", "invisibleTime": "2", "reviveQid": "3"}
    fields |= {"startOffsetInfo": starts, "msgOffsetInfo": offsets}
    try:
        points = CheckPoints("topic", "group", "broker", fields)
        points.of(Message("topic", 1, 2, b"", f"POP_CK\x01{carried}\x02", 3))
        points.not_seen()
    except WireError:
        pass


def _written(data: bytes) -> None:
    """What is written is read again as it was."""
    chooser = Chooser(data)
    words = [chooser.take(chooser.below(20)).decode("latin-1") for _ in range(4)]
    fields = {words[0]: words[1], words[2]: words[3]}
    body = chooser.rest()
    frame = encode_frame(7, len(body), fields, body, flag=1)
    assert frame_size(frame, 0) == len(frame)
    read = decode_frame(frame)
    assert (7, len(body), fields, body) == (read.code, read.opaque, read.fields, read.body)
    assert decode_json(json.dumps(fields).encode()) == fields


def _message(topic: bytes, body: bytes, properties: bytes, *, flag: int = 0) -> bytes:
    """As docs of the store format have it (CommitLog: total, magic, crc, queueId, flag, offsets, sysFlag ...)."""
    rest = (0).to_bytes(4) + (1).to_bytes(4) + bytes(4) + (5).to_bytes(8) + (6).to_bytes(8) + flag.to_bytes(4)
    rest += bytes(8) + bytes(8) + (1_700_000_000_000).to_bytes(8) + bytes(8) + bytes(12) + len(body).to_bytes(4) + body
    rest += bytes((len(topic),)) + topic + len(properties).to_bytes(2) + properties
    return (len(rest) + 8).to_bytes(4) + b"\xda\xa3\x20\xa7" + rest


_ROUTE = (
    b'{"brokerDatas":[{"brokerName":"b","brokerAddrs":{0:"127.0.0.1:10911"},"cluster":"c"}],'
    b'"queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":4,"writeQueueNums":4,"topicSysFlag":0}]}'
)
_CLUSTER = b'{"brokerAddrTable":{"b":{"brokerName":"b","brokerAddrs":{"0":"127.0.0.1:10911"}}}}'
_GOOD = _message(b"t", b"body", b"KEYS\1k\2UNIQ_KEY\1u\2")
_ZIPPED = bytes.fromhex("789c4b4c4a06000 24d0127".replace(" ", ""))
_SEEDS = (
    b"\0" + encode_frame(0, 1, {"a": "b"}, b"body", 1),
    b"\0" + b"\0\0\0\x21\1\0\0\x1d\0\x0b\0\1\xff\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0\x08\0\1a\0\0\0\1b",
    b"\1" + _GOOD * 2,
    b"\1" + _message(b"t", _ZIPPED, b"", flag=1) + _GOOD,
    b"\2" + _ROUTE,
    b"\2" + _CLUSTER,
    b"\3000 1 100;1 1 5|0 1 2,3;1 1 7|1 2 3 4 0 b 1 2",
    b"\4\3abc\3def\3ghi\3jklbody",
)

TARGET = Target("rocketmq", run, _SEEDS)
