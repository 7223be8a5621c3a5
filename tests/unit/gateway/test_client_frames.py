"""What clients send: read strictly, and every fault named."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.client_frames import parse_frame
from gateway_node.commands import Ack, Asked, BadFrame, Business, Command, Heartbeat, Register

ID = "0" * 32


def command(data: bytes) -> Command:
    """What a frame of the envelope dialect asks for."""
    asked = parse_frame(data)
    assert asked.chat is False
    return asked.command


def test_business_frames_keep_msg_as_it_came() -> None:
    """A single target or a list; numbers beyond 64 bits and key order survive."""
    frame = command(b'{"msgType":1,"to":"bob","msg":{"b":9223372036854775808, "a":1},"requestId":"r"}')
    several = command(b'{"msgType":1,"to":["bob","eve"],"msg":null}')

    assert isinstance(frame, Business)
    assert frame.to == ["bob"]
    assert bytes(frame.msg) == b'{"b":9223372036854775808, "a":1}'
    assert frame.request_id == "r"
    assert isinstance(several, Business)
    assert several.to == ["bob", "eve"]
    assert bytes(several.msg) == b"null"


def test_groups_beside_clients_or_without() -> None:
    """Each group once."""
    both = command(b'{"msgType":1,"to":"bob","toGroups":["g","h","g"],"msg":1}')
    alone = command(b'{"msgType":1,"toGroups":["g"],"msg":1}')

    assert isinstance(both, Business)
    assert (["bob"], ("g", "h")) == (both.to, both.groups)
    assert isinstance(alone, Business)
    assert ([], ("g",)) == (alone.to, alone.groups)


def test_acks_and_heartbeats() -> None:
    """One id or many."""
    assert command(b'{"msgType":2,"messageId":"%b"}' % ID.encode()) == Ack([ID])
    assert command(b'{"msgType":2,"messageIds":["%b","%b"]}' % (ID.encode(), ID.encode())) == Ack([ID, ID])
    assert command(b'{"msgType":3}') == Heartbeat(None)
    assert command(b'{"msgType":3,"messageId":"h1"}') == Heartbeat("h1")


def test_type_7_names_the_client() -> None:
    """The chat dialect's way to say who one is."""
    frame = parse_frame(b'{"type":7,"params":{"openid":"alice","userName":"Alice","loginStatus":"1"}}')
    assert Asked(Register("alice", "Alice"), chat=True) == frame


@pytest.mark.parametrize(
    ("frame", "code", "words"),
    [
        (b"", "not_json", "not JSON"),
        (b"{", "not_json", "not JSON"),
        (b"[1]", "bad_frame", "expected an object"),
        (b"{}", "unknown_type", "expected a msgType"),
        (b'{"msgType":9}', "unknown_type", "msgType: 9"),
        (b'{"msgType":"1"}', "bad_frame", "msgType: expected a whole number"),
        (b'{"msgType":1,"msg":1}', "bad_frame", "to: missing"),
        (b'{"msgType":1,"to":[],"msg":1}', "bad_frame", "to: missing"),
        (b'{"msgType":1,"to":["a",7],"msg":1}', "bad_frame", "to[1]: expected a string"),
        (b'{"msgType":1,"to":["a","b c"],"msg":1}', "bad_frame", "to[1]: a clientId may hold only"),
        (b'{"msgType":1,"to":"a"}', "bad_frame", "msg: missing"),
        (b'{"msgType":1,"to":"a","msg":1,"requestId":""}', "bad_frame", "requestId: "),
        (b'{"msgType":1,"to":"a","msg":1,"toGroups":"g"}', "bad_frame", "toGroups: expected a list"),
        (b'{"msgType":1,"msg":1,"toGroups":["g",""]}', "bad_frame", "toGroups[1]: empty, a groupId"),
        (b'{"msgType":1,"msg":1,"toGroups":["*"]}', "bad_frame", "toGroups[0]: a groupId may hold only"),
        (b'{"msgType":1,"msg":1,"toGroups":%b}' % json.dumps(["g"] * 101).encode(), "too_many_targets", "101 groups"),
        (b'{"msgType":1,"to":%b,"msg":1}' % json.dumps(["a"] * 1001).encode(), "too_many_targets", "1001 targets"),
        (b'{"msgType":1,"to":"a","msg":%b}' % (b"[" * 64 + b"]" * 64), "too_deep", "deeper than 64"),
        (b'{"msgType":1,"to":"a","msg":%b}' % (b"[" * 50_000 + b"]" * 50_000), "too_deep", "deeper than 64"),
        (b'{"msgType":2}', "bad_frame", "messageId: missing"),
        (b'{"msgType":2,"messageIds":["x"]}', "bad_frame", "messageIds[0]: expected 32"),
        (b'{"type":99}', "unknown_type", "type: 99"),
        (b'{"type":7}', "bad_frame", "params"),
        (b'{"type":7,"params":{"openid":""}}', "bad_frame", "params.openid: empty"),
        (b'{"type":7,"params":{"openid":5}}', "bad_frame", "openid: expected a string"),
    ],
)
def test_faults_are_named(frame: bytes, code: str, words: str) -> None:
    """The code is for programs, the text names the field and what was expected."""
    with pytest.raises(BadFrame) as fault:
        parse_frame(frame)

    assert code == fault.value.code
    assert words in str(fault.value)


def test_a_fault_carries_the_frames_ids() -> None:
    """So that the client knows which of its frames it was."""
    with pytest.raises(BadFrame) as fault:
        parse_frame(b'{"msgType":1,"requestId":"r-7","messageId":"m","to":5,"msg":1}')

    assert (fault.value.request_id, fault.value.message_id) == ("r-7", "m")


def test_nesting_of_64_is_allowed() -> None:
    """The frame is one level itself; brackets inside strings do not count."""
    deep = b"[" * 63 + b"]" * 63
    text = json.dumps("[{" * 100 + '\\"').encode()
    assert isinstance(command(b'{"msgType":1,"to":"a","msg":%b}' % deep), Business)
    assert isinstance(command(b'{"msgType":1,"to":"a","msg":%b}' % text), Business)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
def test_any_bytes_are_a_frame_or_a_bad_frame(data: bytes) -> None:
    """No input ends in anything else."""
    with suppress(BadFrame):
        parse_frame(data)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "msgType": st.one_of(st.integers(-2, 5), st.text(max_size=2), st.none()),
            "type": st.integers(0, 20),
            "toGroups": st.one_of(st.lists(st.text(max_size=3), max_size=2), st.none()),
            "to": st.one_of(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=3), st.none()),
            "msg": st.one_of(st.none(), st.integers(), st.lists(st.booleans(), max_size=3)),
            "messageId": st.one_of(st.text(max_size=5), st.just(ID)),
            "messageIds": st.lists(st.just(ID), max_size=3),
            "params": st.one_of(st.none(), st.dictionaries(st.sampled_from(["openid", "x"]), st.text(max_size=4))),
        },
    )
)
def test_any_object_is_a_frame_or_a_bad_frame(frame: dict[str, object]) -> None:
    """As before, from objects with the right names."""
    with suppress(BadFrame):
        parse_frame(json.dumps(frame).encode())
