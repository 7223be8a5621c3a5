"""
Records of the bus: lines of node topics, upstream sends, presence events. Read with the documented errors alone, and
what is written is read again as it was.
"""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec

from dispatcher.upstream import read_order
from shared.errors import BadRequest
from shared.ids import client_id_fault
from shared.presence import Change, decode_events, encode_event
from shared.record import (
    BadLine,
    Kind,
    audience_head,
    close_line,
    decode_audience,
    decode_close,
    decode_line,
    encode_line,
    is_audience,
    join_lines,
    line_head,
    split_lines,
)
from shared.upstream import UpstreamSend, decode_upstream, encode_upstream
from tests.fuzz.target import Chooser, Target


def run(data: bytes) -> None:
    chooser = Chooser(data)
    kind = chooser.below(5)
    (_lines, _written_lines, _upstream, _written_upstream, _presence)[kind](chooser.rest())


def _lines(body: bytes) -> None:
    for line in split_lines(body):
        try:
            if is_audience(line):
                entry = decode_audience(line)
                assert isinstance(entry.template, bytes)
                continue
            kind, _, _, envelope = decode_line(line)
        except BadLine:
            continue
        assert kind in tuple(Kind)
        if kind == Kind.CLOSE:
            with suppress(ValueError):
                decode_close(envelope)


def _written_lines(data: bytes) -> None:
    """A line stays a line, whatever JSON is in it."""
    chooser = Chooser(data)
    kind = tuple(Kind)[chooser.below(len(Kind))]
    expires, order, after = (int.from_bytes(chooser.take(5)) for _ in range(3))
    name = "".join("abcXYZ019._-:@"[chooser.below(14)] for _ in range(1 + chooser.below(128)))
    text = chooser.rest().decode("utf-8", "replace")
    envelope = b'{"msg":\n' + json.dumps(text, ensure_ascii=bool(order & 1)).encode() + b"}"
    for form in (envelope, envelope.replace(b"\n", b"")):
        if kind == Kind.AUDIENCE:
            head = audience_head(expires, order, after, name, f"s_{name}")
        else:
            head = line_head(kind, expires, order)
        lines = split_lines(join_lines([encode_line(head, form), close_line(f"s_{name}_1", 4002, text)]))
        assert len(lines) == 2
        if kind == Kind.AUDIENCE:
            read = decode_audience(lines[0])
            assert (expires, order, after) == (read.expires_ms, read.order, read.after)
            assert (name, f"s_{name}".encode(), form) == (read.audience, read.but, read.template)
        else:
            assert (kind, expires, order, form) == decode_line(lines[0])
        close = decode_close(decode_line(lines[1])[3])
        assert (f"s_{name}_1", 4002, text) == (close.session_id, close.code, close.reason)


def _upstream(body: bytes) -> None:
    try:
        order = read_order(body)
    except (BadRequest, ValueError, RecursionError):  # as documented
        return
    assert order.send.targets or order.send.groups
    assert all(client_id_fault(name) is None for name in (order.sender, *order.send.targets, *order.send.groups))
    assert json.loads(order.send.msg) == json.loads(body)["msg"]


def _written_upstream(data: bytes) -> None:
    chooser = Chooser(data)
    words = [chooser.take(chooser.below(40)).decode("utf-8", "replace") for _ in range(4)]
    msg = json.dumps(chooser.rest().decode("utf-8", "replace")).encode()
    send = UpstreamSend(words[0], words[1], words[2], chooser.below(9), words, msgspec.Raw(msg), words[:1], words[3])
    read = decode_upstream(encode_upstream(send))
    assert bytes(read.msg) == msg
    assert msgspec.structs.replace(read, msg=send.msg) == send


def _presence(body: bytes) -> None:
    with suppress(ValueError):
        decode_events(body)
    chooser = Chooser(body)
    client_id = "".join("abcXYZ019._-:@"[chooser.below(14)] for _ in range(1 + chooser.below(128)))
    device = chooser.take(20).decode("utf-8", "replace")
    change = Change(bool(chooser.below(2)), f"[::1]:9000_{client_id}_20201204191140123", device, chooser.below(99), 1)
    lines = [encode_event(change, 1), encode_event(change, 2)]
    first, second = decode_events(b"\n".join(lines))
    assert (client_id, "[::1]:9000", device or None) == (first.client_id, first.node_id, first.device)
    assert second.time == 2


_ENVELOPE = b'{"activeTime":1,"msg":{},"sessionId":"","to":""}'
_ID = "0176f0c1a2b37c4d8e5f60718293a4b5"
_SEEDS = (
    b"\0"
    + join_lines(
        [
            encode_line(line_head(Kind.DIRECT, 1764000000000, 5), _ENVELOPE),
            encode_line(line_head(Kind.ONLINE, 1764000000000, 5), _ENVELOPE.replace(b",", b",\n")),
            encode_line(audience_head(1764000000000, 5, 4, "g", "s"), _ENVELOPE),
            close_line("s", 4002, "kicked"),
        ]
    ),
    b"\1\3\0\0\0\1\1\0\0\0\1\2\0\0\0\1\3\5abcde\xf0text",
    b"\2"
    + encode_upstream(UpstreamSend(_ID, "r", "a", 1, ["b", "c"], msgspec.Raw(b'{"k":1}'), ["g"], "1.1.1.1:1_a_1")),
    b"\3\3abc\3def\3ghi\3jklmsg",
    b'\4{"event":"online","clientId":"a","sessionId":"s","nodeId":"n","device":null,"time":1,"stamp":2,"sessions":1}',
)

TARGET = Target("records", run, _SEEDS)
