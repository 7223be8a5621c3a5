"""`pushfleet send`: the body it sends, the curl line, and what an answer means."""

from __future__ import annotations

import shlex
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from pushfleet.cli import main
from pushfleet.dispatcher_api import Answer
from pushfleet.send import Send, curl_line, meaning


def answer(content: Any = None, *, status: int = 200, msg: str = "操作成功") -> Answer:
    return Answer(status == 200, status, content, msg, "", 0.0)


def test_the_message_is_passed_on_as_it_was_written() -> None:
    """Digits, spaces and key order of the caller's JSON survive: nothing is decoded and written again."""
    msg = b'{"b":1.10,  "a":12345678901234567890123,"b":"\\u00e9"}'
    assert msg in Send(("alice",), msg).body()


def test_only_what_was_asked_for_is_in_the_body() -> None:
    """Defaults are the dispatcher's business."""
    assert {"to": ["a", "b"], "msg": 1} == orjson.loads(Send(("a", "b"), b"1").body())
    full = Send((), b"1", "billing", "r-1", 60, durable=False, to_all=True)
    expected = {"to": [], "msg": 1, "from": "billing", "requestId": "r-1", "ttl": 60, "durable": False}
    assert {**expected, "sendToAll": True} == orjson.loads(full.body())


def test_the_curl_line_carries_the_same_body_through_a_shell() -> None:
    """Quotes in the message do not break the line, and an API key is not in it."""
    body = Send(("alice",), b'"it\'s \\"$HOME\\" `x`"').body()
    words = shlex.split(curl_line("http://127.0.0.1:8080/", body, with_key=True))
    assert words[:3] == ["curl", "-sS", "http://127.0.0.1:8080/message/send"]
    assert words[words.index("-d") + 1].encode() == body
    assert "Authorization: Bearer $PUSH_API_KEY" in words


@pytest.mark.parametrize(
    ("send", "reply", "expected"),
    [
        (Send(("a",), b"1"), answer(), "a is online"),
        (Send(("a", "b"), b"1"), answer(), "a, b are online"),
        (Send(("a",), b"1"), answer(["a"]), "stored for later"),
        (Send(("a", "b", "c"), b"1"), answer(["b"]), "2 others online"),
        (Send(("a",), b"1", durable=False), answer(["a"]), "will not get it"),
        (Send((), b"1", to_all=True), answer(), "everyone"),
        (Send(("a",), b"1"), answer(status=400, msg="to: empty"), "Nothing was sent: to: empty"),
        (Send(("a",), b"1"), answer(status=401, msg="no key"), "PUSH_API_KEY"),
    ],
)
def test_an_answer_is_told_in_a_sentence(send: Send, reply: Answer, expected: str) -> None:
    """Online, stored for later, lost, refused: each reads differently."""
    assert expected in meaning(send, reply)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["alice", "{hello:1}"], "is not JSON"),
        (["{}"], "name at least one CLIENT"),
        (["alice", "{}", "--all"], "name no CLIENT"),
        (["a b", "{}"], "a clientId may hold only"),
        (["alice", "{}", "--dispatcher", "http://127.0.0.1:1"], "the dispatcher does not answer"),
        (["alice", "{}", "--dispatcher", "nowhere"], "is not a URL"),
    ],
)
def test_what_cannot_be_sent_is_explained(arguments: list[str], expected: str) -> None:
    """The exit code is not 0, and the reason is said."""
    result = CliRunner().invoke(main, ["send", *arguments])
    assert result.exit_code in (1, 2)
    assert expected in " ".join(result.stderr.split())


def test_show_curl_sends_nothing() -> None:
    """Where no dispatcher is, the line is printed all the same."""
    result = CliRunner().invoke(main, ["send", "alice", "{}", "--show-curl", "--dispatcher", "http://127.0.0.1:1"])
    assert (result.exit_code, result.stdout.split()[0]) == (0, "curl")
