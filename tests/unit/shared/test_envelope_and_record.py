"""Envelopes and the lines of records: `msg` arrives byte for byte, whatever is in it."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.envelope import (
    MsgType,
    Trigger,
    business_template,
    cut_template,
    fill_cut,
    fill_template,
    message_id_of,
    move_envelope,
    server_envelope,
    session_id_of,
)
from shared.record import (
    BadLine,
    Close,
    Kind,
    close_line,
    decode_close,
    decode_line,
    encode_line,
    join_lines,
    line_head,
    split_lines,
)

ID = "0176" + "0" * 28
SESSION = b"172.31.236.11:9000_alice_20201204191140123"
FIELDS = ["activeTime", "from", "messageId", "msg", "requestId", "sessionId", "to", "trigger", "msgType"]


def template(msg: bytes, sender: str = "system", request_id: str = "r-1") -> bytes:
    return business_template(
        active_time_ms=1607080644685,
        sender=sender,
        message_id=ID,
        msg=msg,
        request_id=request_id,
        trigger=Trigger.HTTP,
    )


def test_envelope_has_every_field_in_order() -> None:
    """The contract's example, field by field."""
    envelope = json.loads(fill_template(template(b'{"key1":"value"}'), SESSION, b"alice"))

    assert list(envelope) == FIELDS
    assert envelope == {
        "activeTime": 1607080644685,
        "from": "system",
        "messageId": ID,
        "msg": {"key1": "value"},
        "requestId": "r-1",
        "sessionId": SESSION.decode(),
        "to": "alice",
        "trigger": 1,
        "msgType": 1,
    }


@pytest.mark.parametrize(
    "msg",
    [
        b"9223372036854775808",
        b'{"b":1,"a":2,"b":3}',
        b'"\\u0000 \\ud800 \xe4\xbd\xa0"',
        b"[1,\r\n 2]",
        b'{"sessionId":"","to":"","messageId":"x"}',
        b'"\\"sessionId\\":\\"\\",\\"to\\":\\"\\""',
        b"null",
        b"1e999",
    ],
)
def test_msg_is_untouched_through_template_line_and_back(msg: bytes) -> None:
    """Big numbers, key order, line breaks, and text that looks like the envelope's own fields."""
    envelope = fill_template(template(msg, sender='s"\\', request_id='"sessionId":"'), SESSION, b"alice")
    line = encode_line(line_head(Kind.DIRECT, 1764000000000, 7), envelope)

    assert b"\n" not in line
    assert json.loads(line)["kind"] == "direct"
    assert (Kind.DIRECT, 1764000000000, 7, envelope) == decode_line(line)
    assert b'"msg":' + msg + b',"requestId"' in envelope
    assert session_id_of(envelope) == SESSION
    assert message_id_of(envelope) == ID.encode()


def test_an_envelope_moves_to_another_session() -> None:
    """Nothing but its own sessionId differs, whatever its `msg` holds."""
    whole = template(b'{"sessionId":"x",\n"to":"y"}')
    elsewhere = b"10.0.0.1:9000_alice_20201204191140124"

    assert fill_template(whole, elsewhere, b"alice") == move_envelope(
        fill_template(whole, SESSION, b"alice"), elsewhere
    )


def test_a_cut_template_fills_like_a_whole_one() -> None:
    """Send-to-all cuts once and fills for each session."""
    whole = template(b'{"a":1}')
    head, tail = cut_template(whole)

    assert fill_template(whole, SESSION, b"alice") == fill_cut(head, SESSION, b"alice", tail)


@given(
    st.lists(st.binary(min_size=0, max_size=40), max_size=8),
    st.sampled_from([Kind.DIRECT, Kind.ONLINE, Kind.CLOSE, Kind.MEMBER]),
)
def test_a_record_is_a_line_a_delivery(payloads: list[bytes], kind: Kind) -> None:
    """What was joined comes apart again, for any JSON strings in msg."""
    envelopes = [
        fill_template(template(json.dumps(payload.hex()).encode()), SESSION, b"c%d" % place)
        for place, payload in enumerate(payloads)
    ]
    body = join_lines([encode_line(line_head(kind, 1764000000000, 0), envelope) for envelope in envelopes])

    assert envelopes == [decode_line(line)[3] for line in split_lines(body) if line]


@given(st.binary(max_size=120))
def test_any_bytes_are_a_line_or_a_bad_line(data: bytes) -> None:
    """Whatever lies on a topic, decoding ends in one of the two."""
    with suppress(BadLine):
        decode_line(data)


@given(st.data())
def test_a_mutilated_line_is_a_line_or_a_bad_line(data: st.DataObject) -> None:
    """As before, from lines that were good once."""
    envelope = fill_template(template(b'{"a":[1,2]}'), SESSION, b"alice")
    line = bytearray(encode_line(line_head(Kind.ONLINE, 1764000000000, 0), envelope))
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] = data.draw(st.integers(0, 255))
    with suppress(BadLine):
        decode_line(bytes(line[: data.draw(st.integers(0, len(line)))]))


def test_server_frames_carry_every_field_and_their_own() -> None:
    """resultMsg stands behind msgType on -1 and 0, errors add code."""
    connection = json.loads(
        server_envelope(MsgType.CONNECTION, active_time_ms=1, session_id="s", client_id="c", msg={}, result_msg="hi")
    )
    error = json.loads(
        server_envelope(MsgType.ERROR, active_time_ms=1, session_id="s", client_id="c", result_msg="no", code="x")
    )
    ack = json.loads(server_envelope(MsgType.ACK, active_time_ms=1, session_id="s", client_id="c", message_id=ID))

    assert list(connection) == [*FIELDS, "resultMsg"]
    assert list(error) == [*FIELDS, "resultMsg", "code"]
    assert list(ack) == FIELDS
    assert ack["requestId"] is None


def test_a_close_line_says_whom_and_why() -> None:
    """Read back as written; it does not expire."""
    kind, expires_ms, order, envelope = decode_line(close_line("n:1_a_2", 4002, 'so "be" it'))
    assert (Kind.CLOSE, 9_999_999_999_999, 0) == (kind, expires_ms, order)
    assert Close("n:1_a_2", 4002, 'so "be" it') == decode_close(envelope)
