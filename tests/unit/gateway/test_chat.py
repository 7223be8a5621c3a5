"""The chat dialect at the edge: each row of its table, every fault named, and dates as Java writes them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway_node.chat import Chat
from gateway_node.client_frames import parse_frame
from gateway_node.commands import (
    Asked,
    BadFrame,
    ChangeGroup,
    Command,
    CreateGroup,
    Done,
    Heartbeat,
    NewGroup,
    Read,
    Refused,
    Register,
    Tell,
    TellGroup,
)
from shared.person import Person

ID = "0123456789abcdef" * 2
AT_MS = 1_687_593_041_000  # 2023-06-24T07:50:41Z
ALICE = Person("alice", "Alice", online=False)
BOB = Person("bob", 'Bob "B"', online=False)
LONG = "x" * 129


@dataclass
class Whose:
    """A session as far as a dialect sees it."""

    session_id: bytes = b"10.0.0.1:9000_alice_20230624075041000"
    client_id: str = "alice"


def command(frame: str | dict[str, Any]) -> Command:
    """What a chat frame asks for."""
    asked = parse_frame((frame if isinstance(frame, str) else json.dumps(frame)).encode())
    assert asked == Asked(asked.command, chat=True)
    return asked.command


def answer(asked: Command, **done: Any) -> dict[str, Any]:
    """The frame that answers it."""
    loaded: dict[str, Any] = json.loads(Chat("Asia/Shanghai").answer(Whose(), asked, Done(AT_MS, **done)))
    return loaded


@pytest.mark.parametrize(("kind", "reply"), [(7, 8), (5, 6)])
def test_registering_and_logging_in(kind: int, reply: int) -> None:
    """Types 7 and 5; the answer tells the sessionId."""
    params = {"openid": "alice", "userName": "Alice", "loginStatus": "1"}
    asked = command({"type": kind, "params": params})
    told = params | {"sessionId": Whose().session_id.decode()}

    assert Register("alice", "Alice", present=True, login=kind == 5) == asked
    assert {"type": reply, "params": told, "status": 200} == answer(asked)
    assert list(told) == list(answer(asked)["params"])


def test_logging_out() -> None:
    """loginStatus "0", in both; the answer says it, too."""
    asked = command({"type": 7, "params": {"openid": "alice", "loginStatus": "0"}})

    assert Register("alice", present=False) == asked
    assert answer(asked)["params"]["loginStatus"] == "0"


def test_a_message_to_a_user() -> None:
    """Type 1: the sender gets type 0, the other a type 2 whose message and fileType are the sender's very bytes."""
    message = '{ "z":18446744073709551616,"a":[1.0,"\\u00e9"] }'
    asked = command('{"type":1,"params":{"toMessageId":"bob","message":%s,"fileType":"IMG"}}' % message)
    assert isinstance(asked, Tell)
    frame = Chat("Asia/Shanghai").answer(Whose(), asked, Done(AT_MS, ID, 'q"1')).decode()
    told = Chat("Asia/Shanghai").told(asked, ALICE, BOB).decode()

    date = "Sat Jun 24 15:50:41 CST 2023"
    assert frame == (
        '{"type":0,"params":{"date":"%s","message":%s,"messageId":"%s","requestId":"q\\"1"},"status":200}'
        % (date, message, ID)
    )
    assert told == (
        '{"type":2,"params":{"fromUser":{"openid":"alice","userName":"Alice","loginStatus":"1"},'
        '"toUser":{"openid":"bob","userName":"Bob \\"B\\"","loginStatus":"0"},"message":%s,"fileType":"IMG"},'
        '"status":200}' % message
    )


@pytest.mark.parametrize("status", ["0", "1"])
def test_login_status_tells_who_is_online(status: str) -> None:
    """The receiver's is as it was found; who sends is online."""
    asked = Tell("bob", b"1", b"null", None)
    params = json.loads(Chat("UTC").told(asked, ALICE, Person("bob", "", online=status == "1")))["params"]

    assert {"openid": "bob", "userName": "", "loginStatus": status} == params["toUser"]
    assert params["fromUser"]["loginStatus"] == "1"


def test_a_message_to_a_group() -> None:
    """Type 9: type 0 back, type 10 to the members."""
    asked = command({"type": 9, "params": {"toMessageId": "g1", "message": "hi", "fileType": 7, "requestId": "q"}})
    assert isinstance(asked, TellGroup)
    assert asked.request_id == "q"
    assert answer(asked, message_id=ID, request_id="q") == {
        "type": 0,
        "params": {
            "date": "Sat Jun 24 15:50:41 CST 2023",
            "message": "hi",
            "messageId": ID,
            "requestId": "q",
        },
        "status": 200,
    }
    assert json.loads(Chat("UTC").told_group(asked, ALICE)) == {
        "type": 10,
        "params": {
            "fromUser": {"openid": "alice", "userName": "Alice", "loginStatus": "1"},
            "groupId": "g1",
            "message": "hi",
            "fileType": 7,
        },
        "status": 200,
    }


def test_creating_a_group() -> None:
    """Type 3: type 4 to the creator and, without who was refused, to the members."""
    asked = command({"type": 3, "params": {"userIdList": ["bob", "eve", "bob"], "groupName": "Team"}})
    group = NewGroup("g1", "Team", ("alice", "bob"), (("eve", "in too many groups"),))
    params = {"groupId": "g1", "groupName": "Team", "userIdList": ["alice", "bob"]}
    refused = {"refused": [{"openid": "eve", "reason": "in too many groups"}]}

    assert CreateGroup("Team", ("bob", "eve")) == asked
    assert {"type": 4, "params": params, "status": 200} == json.loads(Chat("UTC").invited(group))
    assert {"type": 4, "params": params | refused, "status": 200} == answer(asked, group=group)
    assert CreateGroup("", ()) == command({"type": 3, "params": {"userIdList": []}})


def test_joining_and_leaving_a_group() -> None:
    """Type 14 both ways."""
    join = command({"type": 14, "params": {"groupId": "g1"}})
    leave = command({"type": 14, "params": {"groupId": "g1", "action": "leave"}})

    assert ChangeGroup("g1", leave=False) == join
    assert ChangeGroup("g1", leave=True) == leave
    assert answer(join) == {"type": 14, "params": {"groupId": "g1", "action": "join"}, "status": 200}
    assert answer(leave) == {"type": 14, "params": {"groupId": "g1", "action": "leave"}, "status": 200}


def test_heartbeats() -> None:
    """Type 11 and 12, whatever stands beside."""
    assert Heartbeat() == command({"type": 11})
    assert Heartbeat() == command({"type": 11, "params": [1]})
    assert answer(Heartbeat()) == {"type": 12, "status": 200}


def test_a_message_was_read() -> None:
    """Type 15: type 16 back, type 17 to who sent it."""
    asked = command({"type": 15, "params": {"msgid": ID}})
    assert asked == Read(ID)
    assert answer(asked) == {
        "type": 16,
        "params": {"date": "Sat Jun 24 15:50:41 CST 2023", "message": ID},
        "status": 200,
    }
    assert json.loads(Chat("UTC").read(Read(ID), ALICE, Person("bob", "Bob", online=True))) == {
        "type": 17,
        "params": {
            "msgid": ID,
            "fromUser": {"openid": "alice", "userName": "Alice", "loginStatus": "1"},
            "toUser": {"openid": "bob", "userName": "Bob", "loginStatus": "1"},
        },
        "status": 200,
    }


def test_what_cannot_be_done() -> None:
    """Type 500 with code and message; a requestId only where there is one."""
    without = json.loads(Chat("UTC").refusal(Whose(), Refused("forbidden", "not a member")))
    with_id = json.loads(Chat("UTC").refusal(Whose(), Refused("forbidden", "not a member", "q", ID)))

    assert {"type": 500, "status": 500, "params": {"code": "forbidden", "message": "not a member"}} == without
    assert with_id["params"]["requestId"] == "q"


@pytest.mark.parametrize(
    ("frame", "code", "words"),
    [
        ('{"type":2}', "unknown_type", "type: 2 is not one that clients send"),
        ('{"type":18,"params":{}}', "unknown_type", "type: 18"),
        ('{"type":-1}', "unknown_type", "type: -1"),
        ('{"type":"1"}', "bad_frame", "type: expected a whole number"),
        ('{"type":1}', "bad_frame", "params: required"),
        ('{"type":1,"params":null}', "bad_frame", "params: expected an object"),
        ('{"type":1,"params":[]}', "bad_frame", "params: expected an object"),
        ('{"type":1,"params":{}}', "bad_frame", "params.toMessageId: required"),
        ('{"type":1,"params":{"toMessageId":5,"message":1}}', "bad_frame", "params.toMessageId: expected a string"),
        ('{"type":1,"params":{"toMessageId":"","message":1}}', "bad_frame", "params.toMessageId: empty, a clientId"),
        ('{"type":1,"params":{"toMessageId":"b c","message":1}}', "bad_frame", "params.toMessageId: a clientId may"),
        ('{"type":1,"params":{"toMessageId":"b"}}', "bad_frame", "params.message: required"),
        ('{"type":1,"params":{"toMessageId":"b","message":1,"fileType":[]}}', "bad_frame", "params.fileType: expected"),
        ('{"type":1,"params":{"toMessageId":"b","message":1,"fileType":1.5}}', "bad_frame", "params.fileType: exp"),
        (
            '{"type":1,"params":{"toMessageId":"b","message":1,"fileType":"%s"}}' % LONG,
            "bad_frame",
            "params.fileType: 129",
        ),
        (
            '{"type":1,"params":{"toMessageId":"b","message":1,"fileType":%s}}' % ("9" * 129),
            "bad_frame",
            "params.fileType: ",
        ),
        ('{"type":1,"params":{"toMessageId":"b","message":1,"requestId":""}}', "bad_frame", "params.requestId: "),
        ('{"type":1,"params":{"toMessageId":"b","message":1,"requestId":7}}', "bad_frame", "params.requestId: exp"),
        ('{"type":1,"requestId":"","params":{"toMessageId":"b","message":1}}', "bad_frame", "requestId: "),
        ('{"type":1,"requestId":7,"params":{"toMessageId":"b","message":1}}', "bad_frame", "requestId: expected"),
        ('{"type":9,"params":{"toMessageId":"*","message":1}}', "bad_frame", "params.toMessageId: a groupId may hold"),
        ('{"type":9,"params":{"toMessageId":"g"}}', "bad_frame", "params.message: required"),
        ('{"type":7,"params":{"openid":"%s"}}' % LONG, "bad_frame", "params.openid: 129 characters"),
        ('{"type":7,"params":{"openid":"a","userName":3}}', "bad_frame", "params.userName: expected a string"),
        ('{"type":5,"params":{"openid":"a","userName":"%s"}}' % LONG, "bad_frame", "params.userName: 129 characters"),
        ('{"type":5,"params":{"openid":"a","userName":"x\\ny"}}', "bad_frame", "params.userName: it holds"),
        (
            '{"type":7,"params":{"openid":"a","userName":"x\\u2028"}}',
            "bad_frame",
            "params.userName: it holds",
        ),
        ('{"type":7,"params":{"openid":"a","loginStatus":"2"}}', "bad_frame", "params.loginStatus: "),
        ('{"type":7,"params":{"openid":"a","loginStatus":1}}', "bad_frame", "params.loginStatus: "),
        ('{"type":3,"params":{}}', "bad_frame", "params.userIdList: required"),
        ('{"type":3,"params":{"userIdList":"bob"}}', "bad_frame", "params.userIdList: expected a list"),
        ('{"type":3,"params":{"userIdList":["a",1]}}', "bad_frame", "params.userIdList[1]: expected a string"),
        ('{"type":3,"params":{"userIdList":["a","b c"]}}', "bad_frame", "params.userIdList[1]: a clientId may hold"),
        ('{"type":3,"params":{"userIdList":[],"groupName":1}}', "bad_frame", "params.groupName: expected a string"),
        ('{"type":3,"params":{"userIdList":[],"groupName":"\\u0000"}}', "bad_frame", "params.groupName: it holds"),
        ('{"type":3,"params":{"userIdList":[],"groupName":"%s"}}' % LONG, "bad_frame", "params.groupName: 129"),
        ('{"type":14,"params":{}}', "bad_frame", "params.groupId: required"),
        ('{"type":14,"params":{"groupId":""}}', "bad_frame", "params.groupId: empty, a groupId"),
        ('{"type":14,"params":{"groupId":"g","action":"stay"}}', "bad_frame", "params.action: "),
        ('{"type":15,"params":{}}', "bad_frame", "params.msgid: required"),
        ('{"type":15,"params":{"msgid":"x"}}', "bad_frame", "params.msgid: expected 32"),
        ('{"type":1,"params":%s}' % ("[" * 64 + "]" * 64), "too_deep", "deeper than 64"),
    ],
)
def test_faults_are_named(frame: str, code: str, words: str) -> None:
    """The text begins with the path of the field; the answer will be in the chat dialect where it can be told."""
    with pytest.raises(BadFrame) as fault:
        parse_frame(frame.encode())

    assert code == fault.value.code
    assert str(fault.value).startswith(words) or code == "too_deep"
    assert fault.value.chat is (code != "too_deep")


@pytest.mark.parametrize(
    ("zone", "at_ms", "text"),
    [
        ("Asia/Shanghai", AT_MS, "Sat Jun 24 15:50:41 CST 2023"),
        ("Asia/Shanghai", 1_704_038_400_999, "Mon Jan 01 00:00:00 CST 2024"),
        ("UTC", AT_MS, "Sat Jun 24 07:50:41 UTC 2023"),
        ("America/New_York", AT_MS, "Sat Jun 24 03:50:41 EDT 2023"),
        ("America/New_York", 1_704_038_400_000, "Sun Dec 31 11:00:00 EST 2023"),
    ],
)
def test_dates_are_javas(zone: str, at_ms: int, text: str) -> None:
    """Date.toString, day and hour with two digits, in the zone that is set; twice in one second is the same."""
    chat = Chat(zone)

    assert text == chat.date(at_ms)
    assert text == chat.date(at_ms)


def test_each_second_has_its_date() -> None:
    """Though the last one is remembered."""
    chat = Chat("UTC")
    times = [chat.date(AT_MS + ms).split(" ")[3] for ms in (0, 999, 1000, 0)]

    assert ["07:50:41", "07:50:41", "07:50:42", "07:50:41"] == times


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(ID)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=4,
)
_NAMES = (
    *("openid", "userName", "loginStatus", "toMessageId", "message", "fileType", "requestId"),
    *("userIdList", "groupName", "groupId", "action", "msgid"),
)


@given(
    st.integers(-1, 20),
    st.one_of(_JSON, st.fixed_dictionaries({}, optional={name: st.one_of(st.just("a"), _JSON) for name in _NAMES})),
)
@example(3, {"userIdList": ["a"] * 5000})
def test_any_params_are_a_command_or_a_bad_frame(kind: int, params: object) -> None:
    """And every command can be answered, in JSON."""
    with suppress(BadFrame):
        asked = command({"type": kind, "params": params})
        answer(asked, message_id=ID, request_id="q", group=NewGroup("g", "", (), ()))


@given(st.integers(0, 20), st.binary(max_size=60))
def test_any_bytes_for_params_are_a_command_or_a_bad_frame(kind: int, params: bytes) -> None:
    """As before, with what is hardly ever JSON."""
    with suppress(BadFrame):
        parse_frame(b'{"type":%d,"params":%b}' % (kind, params))
