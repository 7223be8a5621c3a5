"""What a send may look like, and what a caller is told when it does not."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.requests import parse_list, parse_send
from shared.errors import BadRequest, BodyTooLarge
from shared.json_text import DEEPEST


def body(**fields: Any) -> bytes:
    return json.dumps({"to": "a", "msg": 1, **{name.rstrip("_"): value for name, value in fields.items()}}).encode()


def fault_of(text: bytes) -> tuple[str, int, str]:
    """(field, status, text) of what a body is refused with."""
    with pytest.raises(BadRequest) as caught:
        parse_send(text)
    return caught.value.field, caught.value.status, str(caught.value)


def test_the_documented_request_is_taken() -> None:
    """The predecessor's example: a list of targets, an object, sendToAll false."""
    send = parse_send(b'{"to":["1607080309668","1607071389121"],"msg":{"key1":"value"},"sendToAll":false}')
    assert ("1607080309668", "1607071389121") == send.targets
    assert b'{"key1":"value"}' == send.msg
    assert not send.everyone
    assert send.durable
    assert 7 * 86_400_000 == send.ttl_ms


@pytest.mark.parametrize(
    "msg",
    [
        b"null",
        b"0",
        b'""',
        b"[]",
        b'{"b":1, "a":[1,\n 2]  }',
        b"123456789012345678901234567890",
        b"18446744073709551616.00",
        b"1E400",
        b'"\\u00e9\xc3\xa9\\/"',
        b'{"to":"x","sessionId":"","to":""}',
    ],
)
def test_msg_is_taken_over_byte_for_byte(msg: bytes) -> None:
    """Order of keys, white space, line breaks, numbers of any size and escapes stay as they are."""
    assert msg == parse_send(b'{ "msg" : %b , "to":"a"}' % msg).msg


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
        max_leaves=20,
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_any_json_value_passes_unchanged(value: Any, indent: int | None, ascii_only: bool) -> None:
    """Whatever JSON a caller's library writes comes out as it went in."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert text == parse_send(b'{"to":"a","msg":%b}' % text).msg


def test_one_target_may_be_a_plain_string() -> None:
    """`to` is a clientId or a list of them."""
    assert ("a.b_c-d:e@f",) == parse_send(body(to="a.b_c-d:e@f")).targets


def test_duplicate_targets_are_sent_to_once() -> None:
    """Targets are distinct and keep their order."""
    assert ("b", "a") == parse_send(body(to=["b", "a", "b", "a"])).targets


def test_send_to_all_needs_no_target_and_covers_any() -> None:
    """With sendToAll `to` may be absent, null, empty or anything valid."""
    for to in (None, [], "", ["a"]):
        send = parse_send(body(to=to, sendToAll=True))
        assert send.everyone
        assert () == send.targets


def test_null_is_as_good_as_absent() -> None:
    """Serializers that write every field as null are fine."""
    names = ("sendToAll", "from_", "requestId", "toGroups", "ttl", "delay", "deliverAt", "durable")
    assert parse_send(body()) == parse_send(body(**dict.fromkeys(names)))
    assert parse_send(body()) == parse_send(body(toGroups=[], delay=0, deliverAt=0))


def test_optional_fields_are_taken() -> None:
    """from, requestId, ttl and durable."""
    send = parse_send(body(from_="结算", requestId="r 1", ttl=1.5, durable=False))
    assert ("结算", "r 1", 1500, False) == (send.sender, send.request_id, send.ttl_ms, send.durable)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b'{"to":"a"}', "msg"),
        (b'{"msg":1}', "to"),
        (b'{"msg":1,"to":[]}', "to"),
        (b'{"msg":1,"to":""}', "to"),
        (b'{"msg":1,"to":null,"sendToAll":false}', "to"),
        (body(to=3), "to"),
        (body(to=["a", 3]), "to[1]"),
        (body(to=["a", None]), "to[1]"),
        (body(to=["a", "b", "c", "x" * 200]), "to[3]"),
        (body(to=["a", ""]), "to[1]"),
        (body(to=["a\nb"]), "to[0]"),
        (body(to="a\nb"), "to"),
        (body(to="a b"), "to"),
        (body(to=["é"]), "to[0]"),
        (body(to=["a"] * 10_001), "to"),
        (body(sendToAll="yes"), "sendToAll"),
        (body(from_=1), "from"),
        (body(from_=""), "from"),
        (body(from_="x" * 129), "from"),
        (body(requestId=""), "requestId"),
        (body(requestId="x" * 65), "requestId"),
        (body(requestId="é"), "requestId"),
        (body(requestId="a\nb"), "requestId"),
        (body(toGroups=["g", "no group"]), "toGroups[1]"),
        (body(toGroups="no group"), "toGroups"),
        (body(toGroups=["g"] * 101), "toGroups"),
        (body(delay=5), "delay"),
        (body(deliverAt=1_800_000_000_000), "deliverAt"),
        (body(ttl=0), "ttl"),
        (body(ttl=-1), "ttl"),
        (body(ttl=30 * 86_400 + 1), "ttl"),
        (body(ttl="1"), "ttl"),
        (b'{"to":"a","msg":1,"ttl":1e400}', "ttl"),
        (body(durable=1), "durable"),
        (body(colour="red"), "colour"),
        (b"[]", "the body"),
        (b"3", "the body"),
    ],
)
def test_a_fault_names_its_field(text: bytes, field: str) -> None:
    """Every 400 says where: the field's path stands before the reason."""
    named, status, words = fault_of(text)
    assert (field, 400) == (named, status)
    assert words.startswith(f"{field}: ")


def test_a_fault_is_told_in_words() -> None:
    """Types are called by their JSON names, lengths are told with their limit."""
    assert "to[3]: 200 characters, at most 128" == fault_of(body(to=["a", "b", "c", "x" * 200]))[2]
    assert "to[1]: expected a string, got a whole number" == fault_of(body(to=["a", 3]))[2]
    assert "colour: unknown field" == fault_of(body(colour="red"))[2]
    assert "toGroups[1]: a groupId may hold only A-Z a-z 0-9 . _ - : @" == fault_of(body(toGroups=["g", "ü"]))[2]
    assert "this version has no scheduled sends" in fault_of(body(delay=3))[2]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nul",
        b'{"to":"a","msg":01}',
        b'{"to":"a","msg":1} x',
        b'{"to":"a","msg":NaN}',
        b'{"to":"a","msg":"\xff"}',
        b'{"to":"a","msg":"a\nb"}',
        b'{"to":"a","\xff":1}',
        b'{"to":"a","msg":"\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"to":"a","msg":1}',
    ],
)
def test_what_is_not_json_in_utf8_is_refused(text: bytes) -> None:
    """Malformed JSON and bytes that are not UTF-8 never reach a client."""
    assert 400 == fault_of(text)[1]


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\tomsg1e-. ', max_size=60).map(str.encode))
def test_no_body_breaks_the_parser(text: bytes) -> None:
    """Any bytes give a send or a BadRequest."""
    with suppress(BadRequest):
        parse_send(text)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def test_depth_counts_the_request_itself() -> None:
    """A request is one level, so 63 levels of `msg` are taken and 64 are not."""
    assert parse_send(b'{"to":"a","msg":%b}' % nested(DEEPEST - 1))
    assert "nested deeper than 64" in fault_of(b'{"to":"a","msg":%b}' % nested(DEEPEST))[2]
    assert 400 == fault_of(b'{"to":"a","msg":%b}' % nested(200_000))[1]


def test_brackets_side_by_side_or_in_strings_are_not_depth() -> None:
    """Only nesting counts."""
    assert parse_send(b'{"to":"a","msg":[%b]}' % b",".join([b"[]"] * 1000))
    assert parse_send(body(msg="[" * 1000 + '\\"' + "{" * 1000))


def test_a_send_has_a_bounded_volume() -> None:
    """Many targets of a large msg would be gigabytes of envelopes: 413."""
    with pytest.raises(BodyTooLarge):
        parse_send(body(to=[str(n) for n in range(10_000)], msg="x" * 10_000))


def test_a_list_is_cut_into_its_items() -> None:
    """Items come out as they stand in the list, whatever they are."""
    assert [b'{"a" : 1}', b"3", b"null"] == parse_list(b'[{"a" : 1}, 3,null ]')
    assert [] == parse_list(b"[]")


@pytest.mark.parametrize("text", [b"{}", b"", b"[1", b'["\xff"]', b"[" + b"1," * 1000 + b"1]", nested(100_000)])
def test_what_is_no_list_of_sends_is_refused(text: bytes) -> None:
    """Not a list, not JSON, not UTF-8, or more than a thousand items."""
    with pytest.raises(BadRequest):
        parse_list(text)
