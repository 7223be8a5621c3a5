"""Lists of sends, what is refused, and frames that nodes send on (PROTOCOL sections 3 and 5)."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from shared.upstream import UpstreamSend
from tests.harness.dispatcher import Caller, DispatcherProcess, FakeNode, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGO_MS = time.time_ns() // 1_000_000 - 60_000
SUCCESS = '{"success":true,"statusCode":200,"content":null,"msg":"操作成功"}'
Name = Callable[[str], str]


# -- lists ---------------------------------------------------------------------------------------------------------


async def test_each_item_of_a_list_has_its_own_answer(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """Four fields and messageId each, in order; a bad item spoils no other."""
    alice, bob = name("alice"), name("bob")
    await node.connect(alice)
    answer = await caller.send_list(
        {"to": alice, "msg": 1},
        {"to": [alice, 3], "msg": 1},
        {"to": bob, "msg": 2},
        7,
        {"to": bob, "msg": json.loads("[" * 80 + "]" * 80)},
        {"msg": "all", "sendToAll": True},
    )
    items = answer.content
    assert (200, True) == (answer.status, answer.fields["success"])
    assert [200, 400, 200, 400, 400, 200] == [item["statusCode"] for item in items]
    assert all(["success", "statusCode", "content", "msg", "messageId"] == list(item) for item in items)
    assert [None, [bob], None] == [item["content"] for item in items if item["success"]]
    assert "to[1]: expected a string, got a whole number" == items[1]["msg"]
    assert [None] * 3 == [item["messageId"] for item in items if not item["success"]]
    assert await node.lines_of(items[0]["messageId"])
    assert "audience" == (await node.lines_of(items[5]["messageId"]))[0].kind
    assert [items[2]["messageId"]] == await site.held(bob)


async def test_a_thousand_items_are_taken_and_no_more(caller: Caller, site: Site, name: Name) -> None:
    """In order for one target: its inbox shows the first twenty, the others found it full."""
    alice = name("alice")
    items = (await caller.send_list(*({"to": alice, "msg": n} for n in range(1000)))).content
    assert [item["messageId"] for item in items[:20]] == await site.held(alice)
    assert 1000 == len({item["messageId"] for item in items})
    refused = await caller.send_list(*({"to": alice, "msg": n} for n in range(1001)))
    assert (400, None) == (refused.status, refused.content)
    assert [] == (await caller.send_list()).content


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is not JSON"),
        (b'{"msg":1}', "to: required"),
        (b'{"to":["a","' + b"x" * 200 + b'"],"msg":1}', "to[1]: 200 characters, at most 128"),
        (b'{"to":"a","msg":1,"toGroups":["a group"]}', "toGroups[0]: a groupId may hold only"),
        (b'{"to":"a","msg":1,"delay":3}', "delay: this version has no scheduled sends"),
        (b'{"to":"a","msg":' + b"[" * 65 + b"]" * 65 + b"}", "nested deeper than 64"),
    ],
)
async def test_bad_input_is_400_in_four_fields(caller: Caller, body: bytes, words: str) -> None:
    """`msg` is the reason with the field's path."""
    answer = await caller.post("/message/send", body)
    assert 400 == answer.status
    assert ["success", "statusCode", "content", "msg"] == list(answer.fields)
    assert (False, 400, None) == (answer.fields["success"], answer.fields["statusCode"], answer.content)
    assert words in answer.fields["msg"]


async def test_a_bad_target_keeps_the_whole_send_back(caller: Caller, site: Site, name: Name) -> None:
    """Nothing of a request that is refused is sent."""
    alice = name("alice")
    assert 400 == (await caller.send([alice, "not good"])).status
    assert [] == await site.held(alice)


@pytest.mark.parametrize("path", ["/message/send", "/message/sendList"])
async def test_a_body_over_a_mebibyte_is_413(caller: Caller, path: str) -> None:
    """Told by its Content-Length, or found out while it comes in."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 65_536

    for body in (b'"' + b"x" * (1 << 20) + b'"', chunks()):
        answer = await caller.post(path, body)
        assert (413, 413) == (answer.status, answer.fields["statusCode"])


async def test_a_body_of_nearly_a_mebibyte_is_taken(caller: Caller, node: FakeNode, name: Name) -> None:
    """Also when the caller waits for 100 Continue (RFC 9110 section 10.1.1), and in chunks."""
    alice = name("alice")
    await node.connect(alice)
    msg = "x" * ((1 << 20) - 200)
    body = json.dumps({"to": alice, "msg": msg, "durable": False}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    for data, expect in ((body, {}), (body, {"Expect": "100-continue"}), (chunks(), {})):
        answer = await caller.post("/message/send", data, **expect)
        assert 200 == answer.status
        assert msg == (await node.lines_of(answer.message_id))[0].fields["msg"]


async def test_a_compressed_body_is_taken(caller: Caller, dispatcher: DispatcherProcess) -> None:
    """Its size counts as it is inside; one that cannot be unpacked is 400, and the log stays JSON lines."""
    packed = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"to":"nobody","msg":1,"durable":false}')
    assert 200 == (await caller.post("/message/send", body, **packed)).status
    assert 413 == (await caller.post("/message/send", gzip.compress(b"x" * (20 << 20)), **packed)).status
    broken = await caller.post("/message/send", b"not gzip", **packed)
    assert (400, 400) == (broken.status, broken.fields["statusCode"])
    assert len(dispatcher.text.splitlines()) == len(dispatcher.log)


async def test_unknown_paths_and_methods_are_told_in_four_fields(caller: Caller) -> None:
    """404, and 405 with what is allowed."""
    missing, wrong = await caller.get("/nothing"), await caller.get("/message/send")
    assert (404, 404) == (missing.status, missing.fields["statusCode"])
    assert (405, "POST") == (wrong.status, wrong.headers["Allow"])
    assert 405 == (await caller.request("HEAD", "/message/send")).status


async def test_connections_are_kept_or_closed_as_asked(dispatcher: DispatcherProcess) -> None:
    """HTTP/1.1 keeps them, `Connection: close` and HTTP/1.0 end them; pipelined requests are answered in order."""
    host, port = dispatcher.url.removeprefix("http://").split(":")
    body = b'{"to":"nobody","msg":1,"durable":false}'
    post = b"POST /message/send HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b"
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(20):
        writer.write(
            post % (len(body), b"", body) + post % (2, b"", b"{}") + post % (len(body), b"Connection: close\r\n", body)
        )
        answers = await reader.read()
        assert [b"200", b"400", b"200"] == re.findall(rb"HTTP/1.1 (\d+)", answers)
        assert 1 == answers.count(b"Connection: close")
        writer.close()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /message/send HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


# -- upstream ------------------------------------------------------------------------------------------------------


def frame(sender: str, to: list[str], message_id: str, request_id: str, msg: bytes = b'"hi"') -> UpstreamSend:
    return UpstreamSend(message_id, request_id, sender, AGO_MS, to, msgspec.Raw(msg))


async def test_a_clients_frame_is_sent_on(site: Site, node: FakeNode, name: Name) -> None:
    """Trigger 2, from its sender, under the messageId and activeTime of its node; absent targets are stored for."""
    alice, bob, carol = name("alice"), name("bob"), name("carol")
    await node.connect(bob)
    await site.publish_upstream(frame(alice, [bob, carol], "a" * 32, "r1", b'{"a" : 1}'))
    (line,) = await node.lines_of("a" * 32)
    fields = line.fields
    assert (2, alice, bob, "r1") == (fields["trigger"], fields["from"], fields["to"], fields["requestId"])
    assert AGO_MS == fields["activeTime"]
    assert b'"msg":{"a" : 1},' in line.envelope
    assert ["a" * 32] == await site.held(carol)


async def test_what_cannot_be_read_blocks_nothing(
    site: Site, node: FakeNode, name: Name, dispatcher: DispatcherProcess
) -> None:
    """It is set aside with a log line, and what follows is sent."""
    bob = name("bob")
    await node.connect(bob)
    bad_target = frame("alice", ["not good"], "b" * 32, "r2")
    await site.publish_upstream(b"\xff", b"{}", bad_target, frame("alice", [bob], "c" * 32, "r3"))
    await node.lines_of("c" * 32)
    assert "reason" in await dispatcher.until("upstream_set_aside")
    await site.until_acknowledged()


async def test_a_frame_that_comes_twice_is_sent_once(site: Site, node: FakeNode, name: Name) -> None:
    """A record that is delivered again, or published again by its node, is known by its requestId."""
    alice, bob = name("alice"), name("bob")
    await node.connect(bob)
    twice = frame(alice, [bob], "d" * 32, "r4")
    await site.publish_upstream(twice, twice)
    await site.publish_upstream(twice, frame(alice, [bob], "e" * 32, "r5"))
    await node.lines_of("e" * 32)
    assert ["d" * 32, "e" * 32] == sorted(line.fields["messageId"] for line in node.lines if line.fields["to"] == bob)


async def test_frames_of_one_client_keep_their_order(site: Site, node: FakeNode, name: Name) -> None:
    """Sends are begun as they were fetched."""
    alice, bob = name("alice"), name("bob")
    await node.connect(bob)
    ids = [f"{n:032x}" for n in range(1000, 1020)]
    await site.publish_upstream(*(frame(alice, [bob], message_id, message_id) for message_id in ids))
    await node.lines_of(ids[-1])
    assert ids == [line.fields["messageId"] for line in node.lines if line.fields["to"] == bob]
