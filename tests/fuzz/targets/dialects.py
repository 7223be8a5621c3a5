"""
What clients send, in both dialects: a command or a BadFrame; and what the node writes because of it is JSON.

Texts come to this parser as the frame parser lets them through: valid UTF-8.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from gateway_node.chat import Chat
from gateway_node.client_frames import parse_frame
from gateway_node.commands import (
    Ack,
    Asked,
    BadFrame,
    Business,
    Command,
    CreateGroup,
    Done,
    Heartbeat,
    NewGroup,
    Read,
    Register,
    Renew,
    Tell,
    TellGroup,
)
from gateway_node.envelope_dialect import EnvelopeDialect
from shared.ids import client_id_fault, is_message_id, request_id_fault
from shared.person import Person
from tests.fuzz.target import Target

MOST_TEXT = 4096
"""Of what a refusal says: it must not be an echo of what was sent."""


@dataclass(slots=True)
class _Asker:
    session_id: bytes = b"127.0.0.1:9000_someone_20201204191140123"
    client_id: str = "someone"


_ASKER = _Asker()
_CHAT = Chat("Asia/Shanghai")
_ENVELOPE = EnvelopeDialect()
_SOMEONE = Person('so"me\none', "a name \u2028 '\"\\", online=True)


def run(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    try:
        asked = parse_frame(data)
    except BadFrame as bad:
        _judge_refusal(bad)
        return
    sent = json.loads(data)
    assert isinstance(sent, dict), "a frame that is no object was taken"
    if asked.chat:
        assert "msgType" not in sent or sent["msgType"] is None
    _judge_command(asked.command, sent)
    _judge_answer(asked)


def _judge_refusal(bad: BadFrame) -> None:
    assert len(str(bad)) <= MOST_TEXT, "a refusal as long as what it refuses"
    for dialect in (_CHAT, _ENVELOPE):
        answer = json.loads(dialect.refusal(_ASKER, bad))
        assert (answer["type"] == 500) if dialect is _CHAT else (answer["code"] == bad.code)


def _judge_command(command: Command, sent: dict[str, Any]) -> None:
    """What is in a command was sent, and is of the form that everything behind it relies on."""
    match command:
        case Business():
            assert json.loads(bytes(command.msg)) == sent["msg"]
            assert all(client_id_fault(name) is None for name in (*command.to, *command.groups))
            assert command.to or command.groups
            assert command.request_id is None or request_id_fault(command.request_id) is None
        case Ack():
            assert command.message_ids
            assert all(map(is_message_id, command.message_ids))
        case Tell() | TellGroup():
            assert json.loads(command.message) == sent["params"]["message"]
            assert json.loads(command.file_type) == sent["params"].get("fileType")
            name = command.to if isinstance(command, Tell) else command.group_id
            assert client_id_fault(name) is None
        case Register():
            assert client_id_fault(command.client_id) is None
        case CreateGroup():
            assert all(client_id_fault(name) is None for name in command.members)
        case Read():
            assert is_message_id(command.message_id)
        case Renew():
            assert command.token == sent["token"]
        case Heartbeat():
            assert command.message_id == (None if "msgType" not in sent else sent.get("messageId"))


def _judge_answer(asked: Asked) -> None:
    """Everything that is written is JSON to a second reader as well."""
    command = asked.command
    group = NewGroup("g1", getattr(command, "name", ""), ("a", "b"), (("c", "full"),))
    done = Done(1_700_000_000_000, "0" * 32, 'r"1', group, 1.5)
    written = [_CHAT.answer(_ASKER, command, done) if asked.chat else _ENVELOPE.answer(_ASKER, command, done)]
    if isinstance(command, Tell):
        written.append(_CHAT.told(command, _SOMEONE, _SOMEONE))
    elif isinstance(command, TellGroup):
        written.append(_CHAT.told_group(command, _SOMEONE))
    elif isinstance(command, CreateGroup):
        written.append(_CHAT.invited(group))
    elif isinstance(command, Read):
        written.append(_CHAT.read(command, _SOMEONE, _SOMEONE))
    for text in written:
        assert isinstance(json.loads(text), dict)
        assert b"\n" not in text or b"\n" in getattr(command, "message", b"") + getattr(command, "file_type", b"")


_ID = "0176f0c1a2b37c4d8e5f60718293a4b5"
_FRAMES: tuple[dict[str, object], ...] = (
    {"msgType": 1, "to": ["a", "b"], "msg": {"k": [1, 2.5e3, None, "é"]}, "requestId": "r-1", "toGroups": ["g"]},
    {"msgType": 1, "to": "a", "msg": "text"},
    {"msgType": 2, "messageIds": [_ID], "messageId": _ID},
    {"msgType": 3, "messageId": "x"},
    {"msgType": 5, "token": "a.b.c", "messageId": "y"},
    {"type": 7, "params": {"openid": "a", "userName": "A", "loginStatus": "1"}},
    {"type": 5, "params": {"openid": "a", "loginStatus": "0"}},
    {"type": 1, "params": {"toMessageId": "b", "message": "hi", "fileType": 0, "requestId": "q"}},
    {"type": 9, "params": {"toMessageId": "g", "message": [1], "fileType": None}},
    {"type": 3, "params": {"userIdList": ["a", "b"], "groupName": "G"}},
    {"type": 14, "params": {"groupId": "g", "action": "leave"}},
    {"type": 11},
    {"type": 15, "params": {"msgid": _ID}},
)
_SEEDS = (
    *map(orjson.dumps, _FRAMES),
    *(json.dumps(frame, indent=1, ensure_ascii=True).encode() for frame in _FRAMES[:2]),
    b'{"msgType":1,"to":"a","msg":' + b"[" * 80 + b"]" * 80 + b"}",
    b'{"type":7,"msgType":"1","params":{"openid":1}}',
)

TARGET = Target("dialects", run, _SEEDS)
