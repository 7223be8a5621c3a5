"""The dispatcher's sends: what a caller is answered, what nodes are sent, what inboxes hold (PROTOCOL section 5)."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable

import pytest

from dispatcher.idempotency import Ask, Idempotency, State, fingerprint
from dispatcher.requests import parse_send
from tests.harness.dispatcher import Caller, FakeNode, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGO_MS = time.time_ns() // 1_000_000 - 60_000
SUCCESS = '{"success":true,"statusCode":200,"content":null,"msg":"操作成功"}'
Name = Callable[[str], str]


# -- one send ------------------------------------------------------------------------------------------------------


async def test_an_online_target_gets_the_whole_envelope(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """The answer is the documented one; the node gets one line for the session; the inbox holds the message."""
    alice = name("alice")
    session_id = await node.connect(alice)
    before_ms = time.time_ns() // 1_000_000
    answer = await caller.send([alice], {"key1": "value"}, requestId="f231", from_="billing")
    (line,) = await node.lines_of(answer.message_id)
    assert (200, SUCCESS) == (answer.status, answer.text)
    assert "f231" == answer.headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", answer.message_id)
    active = line.fields["activeTime"]
    assert before_ms <= active <= time.time_ns() // 1_000_000
    assert (
        f'{{"activeTime":{active},"from":"billing","messageId":"{answer.message_id}","msg":{{"key1":"value"}},'
        f'"requestId":"f231","sessionId":"{session_id}","to":"{alice}","trigger":1,"msgType":1}}'
        == line.envelope.decode()
    )
    assert ("direct", active + 7 * 86_400_000) == (line.kind, line.expires_ms)
    assert [answer.message_id] == await site.held(alice)


async def test_the_predecessors_longer_path_serves_too(caller: Caller, node: FakeNode, name: Name) -> None:
    """Callers of the older system need not change."""
    alice = name("alice")
    await node.connect(alice)
    body = json.dumps({"to": [alice], "msg": 1, "sendToAll": False})
    answer = await caller.post("/api/chatServe/rocketmq/mqmessage/message/send", body)
    assert (200, SUCCESS) == (answer.status, answer.text)
    assert await node.lines_of(answer.message_id)


async def test_without_names_the_send_gets_its_own(caller: Caller, node: FakeNode, name: Name) -> None:
    """`from` is system with PUSH_AUTH=off; requestId is a UUID that the answer tells."""
    alice = name("alice")
    await node.connect(alice)
    answer = await caller.send(alice)
    (line,) = await node.lines_of(answer.message_id)
    assert "system" == line.fields["from"]
    assert re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.headers["X-Request-Id"])
    assert answer.headers["X-Request-Id"] == line.fields["requestId"]


@pytest.mark.parametrize(
    "msg", ['{"b":1,  "a":[1,\n2]}', "123456789012345678901234567890.50", '"\\u00e9é\\n"', '{"x":"\\"sessionId\\":"}']
)
async def test_msg_reaches_the_node_byte_for_byte(caller: Caller, node: FakeNode, name: Name, msg: str) -> None:
    """Also with line breaks between its tokens, which would break the lines of a record."""
    alice = name("alice")
    session_id = await node.connect(alice)
    answer = await caller.post("/message/send", f'{{"to":"{alice}","msg":{msg} }}'.encode())
    (line,) = await node.lines_of(answer.message_id)
    assert f'"msg":{msg},"requestId":' in line.envelope.decode()
    assert session_id == line.fields["sessionId"]


async def test_absent_targets_are_listed_and_stored_for(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """`content` holds who is not online, in the order of `to`; their inboxes hold the message."""
    alice, bob, carol = name("alice"), name("bob"), name("carol")
    await node.connect(bob)
    answer = await caller.send([carol, bob, alice])
    assert [carol, alice] == answer.content
    for client_id in (alice, bob, carol):
        assert [answer.message_id] == await site.held(client_id)
    assert [bob] == [line.fields["to"] for line in await node.lines_of(answer.message_id)]


async def test_every_session_of_a_client_gets_it(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """Two sessions, one of them on another node."""
    alice = name("alice")
    other = await site.node()
    first, second, third = await node.connect(alice), await node.connect(alice), await other.connect(alice)
    answer = await caller.send(alice)
    assert None is answer.content
    assert {first, second} == {line.fields["sessionId"] for line in await node.lines_of(answer.message_id, 2)}
    assert [third] == [line.fields["sessionId"] for line in await other.lines_of(answer.message_id)]
    await other.release()


async def test_what_is_not_durable_is_never_stored(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """durable:false goes to who is online now; who is not is listed."""
    alice, bob = name("alice"), name("bob")
    await node.connect(alice)
    answer = await caller.send([alice, bob], durable=False)
    (line,) = await node.lines_of(answer.message_id)
    assert ("online", 0) == (line.kind, line.place)
    assert [bob] == answer.content
    assert [] == await site.held(alice) + await site.held(bob)


async def test_ttl_sets_the_expiry(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """In the line and in the inbox."""
    alice = name("alice")
    await node.connect(alice)
    answer = await caller.send(alice, ttl=60)
    (line,) = await node.lines_of(answer.message_id)
    (part,) = await site.inbox.read([alice], most=1, most_bytes=1)
    assert line.fields["activeTime"] + 60_000 == line.expires_ms == part.messages[0].expires_ms
    assert part.messages[0].order == line.place


async def test_a_repeated_target_is_sent_to_once(caller: Caller, node: FakeNode, name: Name) -> None:
    """One line, also for a target that is named three times."""
    alice, bob = name("alice"), name("bob")
    await node.connect(alice)
    await node.connect(bob)
    answer = await caller.send([alice, alice, bob, alice])
    assert [alice, bob] == [line.fields["to"] for line in await node.lines_of(answer.message_id, 2)]


async def test_a_full_inbox_is_told(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """The target is in `content` though it is online; nothing is sent to it."""
    alice = name("alice")
    await node.connect(alice)
    for _ in range(20):
        assert None is (await caller.send(alice)).content
    full = await caller.send(alice)
    assert [alice] == full.content
    assert full.message_id not in await site.held(alice)
    assert None is (await caller.send(alice, durable=False)).content
    assert not [line for line in node.lines if full.message_id.encode() in line.envelope]


async def test_ten_thousand_targets_are_one_send(caller: Caller, node: FakeNode, name: Name) -> None:
    """The most that a send may have."""
    crowd = [name("crowd") for _ in range(10_000)]
    for client_id in crowd[5000:5003]:
        await node.connect(client_id)
    answer = await caller.send(crowd, 1)
    assert crowd[:5000] + crowd[5003:] == answer.content
    assert crowd[5000:5003] == [line.fields["to"] for line in await node.lines_of(answer.message_id, 3)]


async def test_sends_to_one_client_keep_their_order(caller: Caller, node: FakeNode, name: Name) -> None:
    """A caller that waits for each answer sees its sends arrive in that order."""
    alice = name("alice")
    await node.connect(alice)
    ids = [(await caller.send(alice, n, durable=False)).message_id for n in range(50)]
    await node.lines_of(ids[-1])
    assert ids == [line.fields["messageId"] for line in node.lines if line.fields["to"] == alice]


# -- everyone ------------------------------------------------------------------------------------------------------


async def test_send_to_all_is_one_line_a_node(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """A template each, whatever the number of clients; a node that started a moment ago has it, too."""
    await node.connect(name("alice"))
    await node.connect(name("bob"))
    other = await site.node()
    answer = await caller.send(None, {"hello": "all"}, sendToAll=True, ttl=60)
    assert (200, SUCCESS) == (answer.status, answer.text)
    for one in (node, other):
        (line,) = await one.lines_of(answer.message_id)
        assert ("audience", "*") == (line.kind, line.audience)
        assert ("", "") == (line.fields["to"], line.fields["sessionId"])
        assert {"hello": "all"} == line.fields["msg"]
        assert line.fields["activeTime"] + 60_000 == line.expires_ms
    await other.release()


# -- nodes that come and go ----------------------------------------------------------------------------------------


async def test_a_route_of_a_dead_node_is_no_route(caller: Caller, site: Site, name: Name) -> None:
    """Without a lease the client is offline; so it is when the node lives with another epoch."""
    alice = name("alice")
    dead = site.silent_node()
    await dead.connect(alice)
    assert [alice] == (await caller.send(alice)).content
    again = site.silent_node(dead.node_id, "another")
    await again.listen()
    await again.lease()
    bob = name("bob")
    await again.connect(bob)
    assert None is (await caller.send(bob)).content
    assert [alice] == (await caller.send(alice)).content
    await again.connect(alice)
    assert None is (await caller.send(alice)).content
    await again.release()


async def test_routes_of_dead_nodes_are_removed(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """After a lease of being dead, or at once when the node lives with another epoch; live ones stay."""
    alice = name("alice")
    live = await node.connect(alice)
    dead = site.silent_node()
    await dead.connect(alice)
    async with asyncio.timeout(20):
        while await site.routes(alice) != {live}:
            assert None is (await caller.send(alice, durable=False)).content
            await asyncio.sleep(0.05)


async def test_a_node_that_just_started_is_known(caller: Caller, site: Site, name: Name) -> None:
    """A route that names an unknown node makes the dispatcher read the leases before it answers."""
    for _ in range(5):
        alice = name("alice")
        fresh = await site.node()
        await fresh.connect(alice)
        answer = await caller.send(alice)
        assert None is answer.content
        assert await fresh.lines_of(answer.message_id)
        await fresh.release()


async def test_a_node_whose_topic_is_gone_is_offline(caller: Caller, node: FakeNode, site: Site, name: Name) -> None:
    """It drained since its lease was read; the message waits in the inbox, other targets are served."""
    alice, bob, carol = name("alice"), name("bob"), name("carol")
    gone = site.silent_node()
    await gone.lease()
    for client_id in (alice, carol):
        await gone.connect(client_id)
    await node.connect(bob)
    await node.connect(carol)
    answer = await caller.send([alice, bob, carol])
    assert (200, [alice]) == (answer.status, answer.content)
    assert [answer.message_id] == await site.held(alice)
    assert [bob, carol] == [line.fields["to"] for line in await node.lines_of(answer.message_id, 2)]
    await gone.release()


# -- idempotency ---------------------------------------------------------------------------------------------------


async def test_the_same_request_again_gets_the_first_answer(caller: Caller, node: FakeNode, name: Name) -> None:
    """The first messageId and content, and nothing is sent twice, though the client came online meanwhile."""
    alice, request_id = name("alice"), name("request")
    first = await caller.send(alice, requestId=request_id)
    await node.connect(alice)
    again = await caller.send(alice, requestId=request_id)
    assert (first.text, first.message_id) == (again.text, again.message_id)
    assert [alice] == again.content
    later = await caller.send(alice)
    await node.lines_of(later.message_id)
    assert [later.message_id] == [line.fields["messageId"] for line in node.lines if line.fields["to"] == alice]


async def test_the_same_request_with_another_body_is_a_conflict(caller: Caller, site: Site, name: Name) -> None:
    """409, and nothing is sent; the order of fields is no difference."""
    alice, request_id = name("alice"), name("request")
    first = await caller.send(alice, "one", requestId=request_id)
    conflict = await caller.send(alice, "two", requestId=request_id)
    assert (409, False) == (conflict.status, conflict.fields["success"])
    assert "requestId" in conflict.fields["msg"]
    body = json.dumps({"requestId": request_id, "msg": "one", "to": [alice]})
    assert first.message_id == (await caller.post("/message/send", body)).message_id
    assert [first.message_id] == await site.held(alice)


async def test_the_same_request_many_times_at_once_is_one_send(caller: Caller, node: FakeNode, name: Name) -> None:
    """All get the same answer, by whatever path they came."""
    alice, request_id = name("alice"), name("request")
    await node.connect(alice)
    answers = await asyncio.gather(*(caller.send(alice, requestId=request_id) for _ in range(20)))
    item = {"to": alice, "msg": "hello", "requestId": request_id}
    (in_list, twice) = (await caller.send_list(item, item)).content
    ids = {answer.message_id for answer in answers} | {in_list["messageId"], twice["messageId"]}
    assert {SUCCESS} == {answer.text for answer in answers}
    assert 1 == len(ids)
    later = await caller.send(alice)
    await node.lines_of(later.message_id)
    assert 2 == len([line for line in node.lines if line.fields["to"] == alice])


def ask_of(body: bytes, message_id: str, idempotency: Idempotency) -> Ask:
    """As another dispatcher would begin the same send."""
    send = parse_send(body)
    claim = idempotency.claim()
    return Ask("key:system", send.request_id, message_id, AGO_MS, fingerprint(send, "system"), claim)


async def test_who_comes_second_waits_for_the_answer(caller: Caller, site: Site, name: Name) -> None:
    """Another dispatcher has begun this send: its answer is given, once it is there."""
    alice = name("alice")
    body = json.dumps({"to": alice, "msg": 1, "requestId": name("request")}).encode()
    idempotency = Idempotency(site.store)
    ask = ask_of(body, "0" * 32, idempotency)
    assert State.MINE is (await idempotency.begin([ask]))[0].state
    second = asyncio.create_task(caller.post("/message/send", body))
    await asyncio.wait((second,), timeout=0.2)
    assert not second.done()
    await idempotency.end([(ask, b'["x"]')])
    answer = await second
    assert (200, ["x"], "0" * 32) == (answer.status, answer.content, answer.message_id)
    assert [] == await site.held(alice)


async def test_a_send_that_failed_goes_out_under_its_first_id(caller: Caller, site: Site, name: Name) -> None:
    """Another dispatcher began and gave up: the retry keeps messageId and activeTime."""
    alice = name("alice")
    body = json.dumps({"to": alice, "msg": 1, "requestId": name("request")}).encode()
    idempotency = Idempotency(site.store)
    ask = ask_of(body, "1" * 32, idempotency)
    await idempotency.begin([ask])
    await idempotency.end([(ask, b"")])
    answer = await caller.post("/message/send", body)
    assert (200, "1" * 32) == (answer.status, answer.message_id)
    (part,) = await site.inbox.read([alice], most=1, most_bytes=1)
    assert "1" * 32 == part.messages[0].message_id
    assert b'{"activeTime":%d,' % AGO_MS in part.messages[0].template


async def test_a_first_send_that_takes_too_long_is_503(caller: Caller, site: Site, name: Name) -> None:
    """After five seconds, with Retry-After."""
    body = json.dumps({"to": name("alice"), "msg": 1, "requestId": name("request")}).encode()
    idempotency = Idempotency(site.store)
    await idempotency.begin([ask_of(body, "2" * 32, idempotency)])
    answer = await caller.post("/message/send", body)
    assert (503, "1") == (answer.status, answer.headers["Retry-After"])
