"""
What callers send to a dispatcher: bodies of all kinds, paths and queries. A BadRequest, or something well formed.

The first octet chooses what the rest is read as. What is sent on becomes an envelope, which has to be the JSON that
was asked for.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from multidict import MultiDict

from dispatcher import v1
from dispatcher.broadcasts_api import BroadcastBody, BroadcastsApi
from dispatcher.clients_api import ClientsApi, OnlineBody
from dispatcher.groups_api import GroupBody, GroupsApi, MembersBody, RenameBody
from dispatcher.nodes_api import DrainBody, NodesApi
from dispatcher.requests import MOST_TTL_S, Send, parse_list, parse_send
from dispatcher.sessions_api import SessionsApi
from shared.envelope import Trigger, business_template, fill_template, message_id_of, session_id_of
from shared.errors import BadRequest, NotFound
from shared.ids import client_id_fault, request_id_fault
from shared.json_text import DEEPEST
from shared.paging import read_cursor
from tests.fuzz.target import Chooser, Target

_MOST_TEXT = 1024
_ID = b"0176f0c1a2b37c4d8e5f60718293a4b5"
_SESSION = b"127.0.0.1:9000_someone_20201204191140123"
_BODIES: tuple[type, ...] = (BroadcastBody, OnlineBody, GroupBody, MembersBody, RenameBody, DrainBody)
_NOTHING: Any = None
_OPERATIONS = (
    *GroupsApi(_NOTHING, _NOTHING).operations(),
    *ClientsApi(_NOTHING, _NOTHING, _NOTHING, keep_s=1).operations(),
    *SessionsApi(_NOTHING).operations(),
    *NodesApi(_NOTHING, _NOTHING).operations(),
    *BroadcastsApi(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, rate=1).operations(),
)


def run(data: bytes) -> None:
    chooser = Chooser(data)
    kind = chooser.below(6)
    body = chooser.rest()
    try:
        (_send, _list, _v1, _path, _query, _names)[kind](body)
    except BadRequest as error:
        assert error.status in (400, 413)
        assert len(str(error)) < _MOST_TEXT, "a refusal as long as what it refuses"
        json.dumps(str(error)).encode()  # no half of a surrogate pair


def _send(body: bytes) -> None:
    send = parse_send(body)
    sent = json.loads(body)
    _judge(send, sent)


def _judge(send: Send, sent: dict[str, Any]) -> None:
    assert json.loads(send.msg) == sent["msg"]
    assert send.everyone == (sent.get("sendToAll") is True)
    to = sent.get("to") or []
    wanted = () if send.everyone else tuple(dict.fromkeys([to] if isinstance(to, str) else to))
    assert wanted == send.targets
    assert all(client_id_fault(name) is None for name in (*send.targets, *send.groups))
    assert not send.request_id or request_id_fault(send.request_id) is None
    assert 1000 <= send.ttl_ms <= MOST_TTL_S * 1000
    _judge_envelope(send, sent)


def _judge_envelope(send: Send, sent: dict[str, Any]) -> None:
    """No text that a caller gives gets out of its place in the envelope."""
    group = send.groups[0] if send.groups else ""
    template = business_template(
        active_time_ms=1_700_000_000_000,
        sender=send.sender,
        message_id=_ID.decode(),
        msg=send.msg,
        request_id=send.request_id,
        trigger=Trigger.HTTP,
        group=group,
    )
    envelope = fill_template(template, _SESSION, b"someone")
    assert session_id_of(envelope) == _SESSION
    if '"messageId":"' not in json.dumps(send.sender, ensure_ascii=False).replace('\\"', ""):
        assert message_id_of(envelope) == _ID
    fields = json.loads(envelope)
    expected = {"activeTime": 1_700_000_000_000, "from": send.sender, "messageId": _ID.decode(), "msg": sent["msg"]}
    expected |= {"requestId": send.request_id, "sessionId": _SESSION.decode(), "to": "someone", "trigger": 1}
    expected |= {"msgType": 1, **({"group": group} if group else {})}
    assert expected == fields
    assert list(expected) == list(fields)


def _list(body: bytes) -> None:
    items = parse_list(body)
    sent = json.loads(body)
    assert len(items) == len(sent)
    for item, asked in zip(items[:20], sent, strict=False):
        try:
            send = parse_send(item)
        except BadRequest:
            continue
        _judge(send, asked)


def _v1(body: bytes) -> None:
    chooser = Chooser(body)
    kind = _BODIES[chooser.below(len(_BODIES))]
    text = chooser.rest()
    decoded: object = v1._decode(text, kind, DEEPEST)
    assert isinstance(decoded, kind)
    assert isinstance(json.loads(text or b"{}"), dict)


def _path(body: bytes) -> None:
    raw_path = "/v1/" + body.decode("latin-1")
    for method in ("GET", "POST", "PATCH", "DELETE"):
        try:
            operation, params = v1._find(_ROOT, raw_path, method)
        except (NotFound, v1.MethodNotAllowed):
            continue
        assert operation.method == method
        assert all(params.values())
        for value in params.values():
            value.encode()


def _query(body: bytes) -> None:
    text = body.decode("utf-8", "replace")
    query = MultiDict(limit=text)
    for most in (1, 1000):
        assert 1 <= v1.page_limit(cast(Any, query), usual=1, most=most) <= most


def _names(body: bytes) -> None:
    scan, member = read_cursor(body.decode("utf-8", "replace"))
    assert 0 <= int(scan.partition(".")[0]) < 1 << 64
    assert not member or client_id_fault(member) is None


def _root() -> Any:
    served = v1.V1(_OPERATIONS, lambda _: SimpleNamespace(), _NOTHING)  # type: ignore[arg-type, return-value]
    return served._root


_ROOT = _root()
_SEND = (
    b'{"to":["a","b"],"msg":{"k":"v"},"from":"x","requestId":"r","toGroups":["g"],"ttl":60,"durable":true,"delay":0}'
)
_SEEDS = (
    b"\0" + _SEND,
    b'\0{"to":"a","msg":"\\u00e9\\n","sendToAll":false,"deliverAt":null}',
    b'\0{"to":[],"msg":1e5,"sendToAll":true}',
    b"\1[" + _SEND + b",1," + _SEND + b"]",
    b'\2\0{"msg":1,"toAll":true,"rate":5,"from":"a","ttl":1.5,"requestId":"r"}',
    b'\2\1{"clientIds":["a","b"]}',
    b'\2\2{"groupId":"g","groupName":"G","owner":"o","members":["a"]}',
    b'\2\3{"members":["a"]}',
    b'\2\4{"groupName":"G"}',
    b'\2\5{"seconds":1.5}',
    b"\3nodes/127.0.0.1%3A9000/drain",
    b"\3groups/g/members",
    b"\3sessions/127.0.0.1:9000_a_20201204191140123",
    b"\x04100",
    b"\5s12.0abcdef0",
    b"\5bsomeone",
)

TARGET = Target("http_bodies", run, _SEEDS)
