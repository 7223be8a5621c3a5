"""The four fields, byte for byte."""

from __future__ import annotations

import json

from dispatcher.answers import failure, id_list, item_failure, item_success, success
from shared.errors import BadRequest


def test_success_is_as_documented() -> None:
    """Field order, and Chinese text unescaped."""
    assert '{"success":true,"statusCode":200,"content":null,"msg":"操作成功"}' == success().decode()
    assert '{"success":true,"statusCode":200,"content":["a","b"],"msg":"操作成功"}' == success(id_list("ab")).decode()


def test_failure_has_the_same_four_fields() -> None:
    """`statusCode` is the status, `msg` the reason."""
    expected = {"success": False, "statusCode": 400, "content": None, "msg": 'to: "x"'}
    assert list(expected.items()) == list(json.loads(failure(400, 'to: "x"')).items())


def test_items_add_their_message_id() -> None:
    """Four fields, then messageId, null for what was not sent."""
    assert ["success", "statusCode", "content", "msg", "messageId"] == list(json.loads(item_success(None, "0" * 32)))
    assert "0" * 32 == json.loads(item_success(b'["a"]', "0" * 32))["messageId"]
    failed = json.loads(item_failure(BadRequest("no", field="to")))
    assert ["success", "statusCode", "content", "msg", "messageId"] == list(failed)
    assert None is failed["messageId"]
