"""The dispatcher's sends: what a caller is answered, what nodes are sent, what inboxes hold (PROTOCOL section 5)."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from dispatcher.idempotency import Ask, Idempotency, State, fingerprint
from dispatcher.requests import parse_send
from pushfleet.local_valkey import LocalValkey
from shared.upstream import UpstreamSend
from tests.harness.dispatcher import Caller, DispatcherProcess, FakeNode, Site, running_dispatcher

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGO_MS = time.time_ns() // 1_000_000 - 60_000
SUCCESS = '{"success":true,"statusCode":200,"content":null,"msg":"操作成功"}'
NAMESPACE = "dispatcher-sends"
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dispatcher(valkey: LocalValkey) -> AsyncIterator[DispatcherProcess]:
    """One for the module; its inboxes hold 20 messages."""
    async with running_dispatcher(valkey.url, NAMESPACE, PUSH_LEASE="1", PUSH_INBOX_MESSAGES="20") as running:
        await running.until("ready")
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(valkey: LocalValkey) -> AsyncIterator[Site]:
    site = Site(valkey.url, NAMESPACE)
    yield site
    await site.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(site: Site, dispatcher: DispatcherProcess) -> FakeNode:
    """A node that lives all the time."""
    return await site.node()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(dispatcher: DispatcherProcess) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as http:
        yield Caller(http, dispatcher.url)


@pytest.fixture
def name() -> Callable[[str], str]:
    """A clientId that no other test uses."""
    return lambda what: f"{what}-{next(_numbers)}"


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
        assert ("everyone", "", "") == (line.kind, line.fields["to"], line.fields["sessionId"])
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
    assert "everyone" == (await node.lines_of(items[5]["messageId"]))[0].kind
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
        (b'{"to":"a","msg":1,"toGroups":["g"]}', "toGroups: this version has no groups"),
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
