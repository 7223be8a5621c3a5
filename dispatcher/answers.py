"""
Answers of the predecessor's paths: four fields, always in this order. Pure.

    {"success":true,"statusCode":200,"content":null,"msg":"操作成功"}

An item of a list's answer has `messageId` behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from shared.errors import PushfleetError

_DONE = '"msg":"操作成功"}'.encode()
_HEAD = b'{"success":true,"statusCode":200,"content":'
SUCCESS = _HEAD + b"null," + _DONE


def id_list(ids: Sequence[str]) -> bytes:
    """A JSON list of clientIds, none of which needs escaping."""
    return b'["' + '","'.join(ids).encode() + b'"]'


def success(content: bytes | None = None) -> bytes:
    """`content` is JSON text."""
    if content is None:
        return SUCCESS
    return b"".join((_HEAD, content, b",", _DONE))


def failure(status: int, text: str) -> bytes:
    return orjson.dumps({"success": False, "statusCode": status, "content": None, "msg": text})


def item_success(content: bytes | None, message_id: str) -> bytes:
    return b'%b,"messageId":"%b"}' % (success(content)[:-1], message_id.encode())


def item_failure(error: PushfleetError) -> bytes:
    return failure(error.status, str(error))[:-1] + b',"messageId":null}'
