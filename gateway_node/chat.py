"""
The chat dialect: frames with `type`, at the node's edge. Pure: frames to commands, and what became of them to frames.

| type | is asked for | is answered | other clients get |
|------|--------------|-------------|-------------------|
| 7, 5 | register, log in; loginStatus "0": log out | 8, 6 | - |
| 1 | a message to a user | 0 | 2 |
| 9 | a message to a group | 0 | 10 |
| 3 | create a group | 4 | 4 |
| 14 | join a group; action "leave": leave it | 14 | - |
| 11 | heartbeat | 12 | - |
| 15 | a message was read | 16 | 17 |
| any | what cannot be done | 500 | - |

`message` and `fileType` are the client's JSON text, byte for byte. Dates are written as Java's Date.toString writes
them, with English names wherever the node stands.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import orjson

from gateway_node.commands import (
    Asker,
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
from gateway_node.incoming import Incoming, in_words
from shared.ids import client_id_fault, display_name_fault, is_message_id, request_id_fault
from shared.person import Person

_MOST_FILE_TYPE = 128
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ABSENT = msgspec.Raw()


class _Registration(msgspec.Struct):
    openid: str
    userName: str | None = None  # noqa: N815 - the wire's own name
    loginStatus: Literal["0", "1"] = "1"  # noqa: N815


class _Message(msgspec.Struct):
    toMessageId: str  # noqa: N815
    message: msgspec.Raw
    fileType: msgspec.Raw = _ABSENT  # noqa: N815
    requestId: str | None = None  # noqa: N815


class _Group(msgspec.Struct):
    userIdList: list[str]  # noqa: N815
    groupName: str | None = None  # noqa: N815


class _Membership(msgspec.Struct):
    groupId: str  # noqa: N815
    action: Literal["join", "leave"] = "join"


class _Receipt(msgspec.Struct):
    msgid: str


Params = TypeVar("Params", bound=msgspec.Struct)

_registration = msgspec.json.Decoder(_Registration)
_message = msgspec.json.Decoder(_Message)
_group = msgspec.json.Decoder(_Group)
_membership = msgspec.json.Decoder(_Membership)
_receipt = msgspec.json.Decoder(_Receipt)
_file_type = msgspec.json.Decoder(str | int | None)


# -- frames to commands --------------------------------------------------------------------------------------


def read_chat(incoming: Incoming) -> Command:
    """Raises BadFrame."""
    kind = incoming.type
    if kind == 11:
        return Heartbeat()
    if kind == 1:
        return _tell(incoming)
    if kind == 9:
        return _tell_group(incoming)
    if kind in (5, 7):
        return _register(incoming)
    if kind == 15:
        return _read(incoming)
    if kind == 3:
        return _create_group(incoming)
    if kind == 14:
        return _change_group(incoming)
    text = f"type: {kind} is not one that clients send; expected 1, 3, 5, 7, 9, 11, 14 or 15"
    raise incoming.fault("unknown_type", text)


def _params(incoming: Incoming, decoder: msgspec.json.Decoder[Params]) -> Params:
    text = bytes(incoming.params)
    if not text:
        raise incoming.fault("bad_frame", "params: required")
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise incoming.fault("bad_frame", in_words(error, "params")) from None


def _check(incoming: Incoming, field: str, fault: str | None) -> None:
    """Raises BadFrame if there is a fault."""
    if fault:
        raise incoming.fault("bad_frame", f"params.{field}: {fault}")


def _register(incoming: Incoming) -> Register:
    params = _params(incoming, _registration)
    name = params.userName or ""
    _check(incoming, "openid", client_id_fault(params.openid))
    _check(incoming, "userName", display_name_fault(name))
    return Register(params.openid, name, present=params.loginStatus == "1", login=incoming.type == 5)


def _tell(incoming: Incoming) -> Tell:
    params, file_type = _told(incoming)
    _check(incoming, "toMessageId", client_id_fault(params.toMessageId))
    return Tell(params.toMessageId, bytes(params.message), file_type, params.requestId or incoming.request_id())


def _tell_group(incoming: Incoming) -> TellGroup:
    params, file_type = _told(incoming)
    _check(incoming, "toMessageId", client_id_fault(params.toMessageId, "groupId"))
    return TellGroup(params.toMessageId, bytes(params.message), file_type, params.requestId or incoming.request_id())


def _told(incoming: Incoming) -> tuple[_Message, bytes]:
    """What types 1 and 9 have in common: params, and the checked fileType."""
    params = _params(incoming, _message)
    if params.requestId is not None:
        _check(incoming, "requestId", request_id_fault(params.requestId))
    text = bytes(params.fileType) or b"null"
    try:
        file_type = _file_type.decode(text)
    except msgspec.DecodeError as error:
        raise incoming.fault("bad_frame", in_words(error, "params.fileType")) from None
    if len(str(file_type)) > _MOST_FILE_TYPE:
        _check(incoming, "fileType", f"{len(str(file_type))} characters, at most {_MOST_FILE_TYPE}")
    return params, text


def _create_group(incoming: Incoming) -> CreateGroup:
    params = _params(incoming, _group)
    name = params.groupName or ""
    _check(incoming, "groupName", display_name_fault(name))
    for place, client_id in enumerate(params.userIdList):
        _check(incoming, f"userIdList[{place}]", client_id_fault(client_id))
    return CreateGroup(name, tuple(dict.fromkeys(params.userIdList)))


def _change_group(incoming: Incoming) -> ChangeGroup:
    params = _params(incoming, _membership)
    _check(incoming, "groupId", client_id_fault(params.groupId, "groupId"))
    return ChangeGroup(params.groupId, leave=params.action == "leave")


def _read(incoming: Incoming) -> Read:
    params = _params(incoming, _receipt)
    _check(incoming, "msgid", None if is_message_id(params.msgid) else "expected 32 lower-case hex digits")
    return Read(params.msgid)


# -- what became of them to frames ---------------------------------------------------------------------------


class Chat:
    """See commands.Dialect and commands.Words. `zone` is the name of a time zone, which has to exist."""

    __slots__ = ("_second", "_text", "_zone")

    def __init__(self, zone: str) -> None:
        self._zone = ZoneInfo(zone)
        self._second = -1
        self._text = ""

    def answer(self, asker: Asker, command: Command, done: Done) -> bytes:
        if isinstance(command, Tell | TellGroup):
            return b'{"type":0,"params":{"date":"%b","message":%b,"messageId":"%b","requestId":%b},"status":200}' % (
                self.date(done.at_ms).encode(),
                command.message,
                done.message_id.encode(),
                orjson.dumps(done.request_id),
            )
        if isinstance(command, Heartbeat):
            return b'{"type":12,"status":200}'
        if isinstance(command, Read):
            return _document(16, {"date": self.date(done.at_ms), "message": command.message_id})
        if isinstance(command, Register):
            return _document(6 if command.login else 8, _registered(asker, command))
        if isinstance(command, ChangeGroup):
            action = "leave" if command.leave else "join"
            return _document(14, {"groupId": command.group_id, "action": action})
        assert done.group is not None
        return _new_group(done.group, with_refused=True)

    def refusal(self, asker: Asker, refused: Refused) -> bytes:
        params = {"code": refused.code, "message": str(refused)}
        if refused.request_id is not None:
            params["requestId"] = refused.request_id
        return orjson.dumps({"type": 500, "status": 500, "params": params})

    def told(self, command: Tell, sender: Person, receiver: Person) -> bytes:
        return b'{"type":2,"params":{"fromUser":%b,"toUser":%b,"message":%b,"fileType":%b},"status":200}' % (
            orjson.dumps(_user(sender, online=True)),
            orjson.dumps(_user(receiver)),
            command.message,
            command.file_type,
        )

    def told_group(self, command: TellGroup, sender: Person) -> bytes:
        return b'{"type":10,"params":{"fromUser":%b,"groupId":"%b","message":%b,"fileType":%b},"status":200}' % (
            orjson.dumps(_user(sender, online=True)),
            command.group_id.encode(),
            command.message,
            command.file_type,
        )

    def invited(self, group: NewGroup) -> bytes:
        return _new_group(group, with_refused=False)

    def read(self, command: Read, reader: Person, sender: Person) -> bytes:
        users = {"fromUser": _user(reader, online=True), "toUser": _user(sender)}
        return _document(17, {"msgid": command.message_id, **users})

    def date(self, at_ms: int) -> str:
        """As `EEE MMM dd HH:mm:ss zzz yyyy` of Java (java.util.Date, `toString`): Sat Jun 24 15:50:41 CST 2023."""
        second = at_ms // 1000
        if second != self._second:
            at = datetime.fromtimestamp(second, self._zone)
            day, month = _DAYS[at.weekday()], _MONTHS[at.month]
            self._text = f"{day} {month} {at.day:02d} {at:%H:%M:%S} {at.tzname()} {at.year}"
            self._second = second
        return self._text


def _document(kind: int, params: object) -> bytes:
    return orjson.dumps({"type": kind, "params": params, "status": 200})


def _user(person: Person, *, online: bool = False) -> dict[str, str]:
    status = "1" if online or person.online else "0"
    return {"openid": person.client_id, "userName": person.name, "loginStatus": status}


def _registered(asker: Asker, command: Register) -> dict[str, str]:
    return {
        "openid": asker.client_id,
        "userName": command.user_name,
        "loginStatus": "1" if command.present else "0",
        "sessionId": asker.session_id.decode(),
    }


def _new_group(group: NewGroup, *, with_refused: bool) -> bytes:
    params: dict[str, object] = {
        "groupId": group.group_id,
        "groupName": group.name,
        "userIdList": group.members,
    }
    if with_refused and group.refused:
        params["refused"] = [{"openid": client_id, "reason": reason} for client_id, reason in group.refused]
    return _document(4, params)
