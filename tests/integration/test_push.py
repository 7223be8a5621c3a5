"""One push, end to end, on real RocketMQ and Valkey: PROTOCOL sections 1, 2 and 5 as a client sees them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

import pytest

from tests.harness.client import connected
from tests.harness.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]

FIELDS = ["activeTime", "from", "messageId", "msg", "requestId", "sessionId", "to", "trigger", "msgType"]


async def test_the_full_envelope_arrives(cluster: Cluster, name: Name) -> None:
    """Every field, in order, with the values of the send and of the session."""
    alice = name("alice")
    async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId={alice}") as client:
        welcome = await client.receive()
        answer = await cluster.send(alice, {"key1": "value"}, requestId="f231", **{"from": "billing"})
        envelope = (await client.until_business(1))[0]

    assert answer.body == {"success": True, "statusCode": 200, "content": None, "msg": "操作成功"}
    assert list(envelope) == FIELDS
    assert envelope == envelope | {
        "from": "billing",
        "messageId": answer.message_id,
        "msg": {"key1": "value"},
        "requestId": "f231",
        "sessionId": welcome["sessionId"],
        "to": alice,
        "trigger": 1,
        "msgType": 1,
    }
    assert answer.headers["X-Request-Id"] == "f231"
    assert abs(envelope["activeTime"] - welcome["activeTime"]) < 20_000
    assert re.fullmatch("[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", answer.message_id)


async def test_the_connection_frame_comes_first(cluster: Cluster, name: Name) -> None:
    """msgType 0 with what the client needs to know, and a sessionId of the contract's form."""
    alice = name("alice")
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={alice}&ack=1") as client:
        welcome = await client.receive()
    port = cluster.nodes[0].ready["port"]

    assert list(welcome) == [*FIELDS, "resultMsg"]
    assert welcome["msgType"] == 0
    assert welcome["to"] == alice
    assert set(welcome["msg"]) == {"heartbeatInterval", "ack", "ackTimeout", "maxFrame", "serverTime", "pending"}
    assert welcome["msg"]["ack"] is True
    assert welcome["msg"]["pending"] == 0
    assert re.fullmatch(rf"127\.0\.0\.1:{port}_{alice}_[0-9]{{17}}", welcome["sessionId"])


async def test_content_lists_who_is_not_online_and_they_get_it_later(cluster: Cluster, name: Name) -> None:
    """Stored for the absent, in order, and replayed behind the connection frame that announces them."""
    here, away = name("here"), name("away")
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={here}") as client:
        await client.receive()
        answers = [await cluster.send([here, away], number) for number in range(5)]
        await client.until_business(5)
    assert [answer.body["content"] for answer in answers] == [[away]] * 5

    async with connected(cluster.http, f"{cluster.socket_url(2)}?clientId={away}") as late:
        welcome = await late.receive()
        replayed = await late.until_business(5)

    assert welcome["msg"]["pending"] == 5
    assert [message["msg"] for message in replayed] == [0, 1, 2, 3, 4]
    assert [message["messageId"] for message in replayed] == [answer.message_id for answer in answers]
    assert {message["sessionId"] for message in replayed} == {welcome["sessionId"]}


async def test_delivered_means_gone_without_ack(cluster: Cluster, name: Name) -> None:
    """A session that does not acknowledge: what the kernel took is not replayed."""
    alice = name("alice")
    url = f"{cluster.socket_url()}?clientId={alice}"
    await cluster.send(alice, "stored")
    async with connected(cluster.http, url) as client:
        await client.receive()
        await cluster.send(alice, "live")
        await client.until_business(2)
        await until_pending(cluster, alice, 0)
    async with connected(cluster.http, url) as client:
        assert (await client.receive())["msg"]["pending"] == 0


async def test_unacknowledged_messages_come_again_on_the_next_session(cluster: Cluster, name: Name) -> None:
    """With ?ack=1 only what was acknowledged is gone; the rest is replayed under its messageId."""
    alice = name("alice")
    url = f"{cluster.socket_url()}?clientId={alice}&ack=1"
    async with connected(cluster.http, url) as client:
        await client.receive()
        ids = [(await cluster.send(alice, number)).message_id for number in range(4)]
        await client.until_business(4)
        await client.ack(ids[0], ids[2])
        await until_pending(cluster, alice, 2)
    async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId={alice}&ack=1") as client:
        welcome = await client.receive()
        replayed = await client.until_business(2)
        await client.send({"msgType": 2, "messageId": ids[1]})
        await client.ack(ids[3])
        await until_pending(cluster, alice, 0)

    assert welcome["msg"]["pending"] == 2
    assert [message["messageId"] for message in replayed] == [ids[1], ids[3]]


async def test_every_session_of_a_client_gets_it_and_the_first_ack_retires(cluster: Cluster, name: Name) -> None:
    """Sessions on two nodes coexist; one acknowledgement is enough."""
    alice = name("alice")
    async with (
        connected(cluster.http, f"{cluster.socket_url(0)}?clientId={alice}&ack=1") as phone,
        connected(cluster.http, f"{cluster.socket_url(1)}?clientId={alice}&ack=1") as laptop,
    ):
        await phone.receive()
        await laptop.receive()
        answer = await cluster.send(alice, "hi")
        on_phone = (await phone.until_business(1))[0]
        on_laptop = (await laptop.until_business(1))[0]
        await laptop.ack(answer.message_id)
        await until_pending(cluster, alice, 0)

    assert on_phone["messageId"] == on_laptop["messageId"] == answer.message_id
    assert on_phone["sessionId"] != on_laptop["sessionId"]


async def test_500_sends_keep_their_order(cluster: Cluster, name: Name) -> None:
    """One after the other, through two dispatchers in turn, to a live session."""
    alice = name("alice")
    async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId={alice}") as client:
        await client.receive()
        for number in range(500):
            url = cluster.url_of(cluster.dispatchers[number % 2])
            await cluster.post_to(url, "/message/send", {"to": alice, "msg": number})
        got = await client.until_business(500)

    assert [message["msg"] for message in got] == list(range(500))


async def test_a_backlog_beyond_the_window_keeps_its_order(cluster: Cluster, name: Name) -> None:
    """700 stored messages and 100 that come while they are replayed; slice by slice as acknowledgements come."""
    alice = name("alice")
    items = [{"to": alice, "msg": number} for number in range(800)]
    assert (await cluster.post("/message/sendList", items[:700])).status == 200
    async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId={alice}&ack=1") as client:
        await client.receive()
        assert (await cluster.post("/message/sendList", items[700:])).status == 200
        seen: dict[str, int] = {}  # as a client does: a resend of what it knows is acknowledged and no more
        while len(seen) < 800:
            message = await client.receive_type(1)
            seen.setdefault(message["messageId"], message["msg"])
            await client.ack(message["messageId"])
        await until_pending(cluster, alice, 0)

    assert list(seen.values()) == list(range(800))


@pytest.mark.parametrize(
    "msg",
    [
        json.dumps("你好 🚀 " * 6000, ensure_ascii=False).encode(),
        b'{"z":9223372036854775808,"a":-9223372036854775809,"m":{"b":1.0,"a":1e400}}',
        b'{ "pretty" : [ 1,\r\n\t2 ] ,\n "text" : "\\n\\u0000\\ud83d\\ude80" }',
        b'{"sessionId":"","to":"","messageId":"no","trigger":9}',
        b"null",
        b'""',
    ],
)
async def test_msg_arrives_byte_for_byte(cluster: Cluster, name: Name, msg: bytes) -> None:
    """60 KB of unicode, numbers beyond 64 bits, key order, white space; live and from the inbox."""
    alice = name("alice")
    body = b'{"to":"%b","msg":%b}' % (alice.encode(), msg)
    assert (await cluster.post("/message/send", body)).status == 200
    async with connected(cluster.http, f"{cluster.socket_url(1)}?clientId={alice}") as client:
        await client.until_business(1)
        assert (await cluster.post("/message/send", body)).status == 200
        await client.until_business(2)

    for raw in client.raw[1:]:
        assert b'"msg":' + msg + b',"requestId"' in raw


async def test_send_to_all_reaches_every_session_on_every_node(cluster: Cluster, name: Name) -> None:
    """Each with its own `to` and sessionId; content is null."""
    names = [name("all") for _ in range(6)]
    async with (
        connected(cluster.http, f"{cluster.socket_url(0)}?clientId={names[0]}") as a,
        connected(cluster.http, f"{cluster.socket_url(1)}?clientId={names[1]}") as b,
        connected(cluster.http, f"{cluster.socket_url(2)}?clientId={names[2]}&ack=1") as c,
    ):
        clients = [a, b, c]
        welcomes = [await client.receive() for client in clients]
        answer = await cluster.post("/message/send", {"msg": "to you all", "sendToAll": True})
        got = [(await client.until_business(1))[0] for client in clients]

    assert answer.body == {"success": True, "statusCode": 200, "content": None, "msg": "操作成功"}
    assert [message["to"] for message in got] == names[:3]
    assert [message["sessionId"] for message in got] == [welcome["sessionId"] for welcome in welcomes]
    assert {message["messageId"] for message in got} == {answer.message_id}


async def test_not_durable_is_for_who_is_online_now(cluster: Cluster, name: Name) -> None:
    """Delivered to the online, listed and not stored for the others."""
    here, away = name("here"), name("away")
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={here}") as client:
        await client.receive()
        answer = await cluster.send([here, away], "now", durable=False)
        await client.until_business(1)
    assert answer.body["content"] == [away]
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={away}") as late:
        assert (await late.receive())["msg"]["pending"] == 0


async def test_an_expired_message_is_not_replayed(cluster: Cluster, name: Name) -> None:
    """ttl counts from acceptance."""
    alice = name("alice")
    await cluster.send(alice, "short-lived", ttl=1)
    await cluster.send(alice, "long-lived")
    await until_pending(cluster, alice, 1)
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={alice}") as client:
        welcome = await client.receive()
        got = await client.until_business(1)

    assert welcome["msg"]["pending"] == 1
    assert [message["msg"] for message in got] == ["long-lived"]


async def test_the_same_request_id_is_sent_once(cluster: Cluster, name: Name) -> None:
    """Also when both dispatchers get it at the same time; the first answer again, 409 for another body."""
    alice, request_id = name("alice"), name("request")
    urls = [cluster.url_of(dispatcher) for dispatcher in cluster.dispatchers]
    body = {"to": alice, "msg": 1, "requestId": request_id}
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={alice}") as client:
        await client.receive()
        answers = await asyncio.gather(*(cluster.post_to(url, "/message/send", body) for url in urls * 10))
        other = await cluster.post("/message/send", body | {"msg": 2})
        await cluster.send(alice, "last")
        got = await client.until_business(2)

    assert [message["msg"] for message in got] == [1, "last"]
    assert {answer.message_id for answer in answers} == {got[0]["messageId"]}
    assert {answer.status for answer in answers} == {200}
    assert other.status == 409


async def test_server_get_names_the_last_node_or_the_least_loaded(cluster: Cluster, name: Name) -> None:
    """A client goes back to where it was."""
    alice = name("alice")
    async with connected(cluster.http, f"{cluster.socket_url(2)}?clientId={alice}") as client:
        await client.receive()
    again = await cluster.get(f"/server/get?clientId={alice}")
    fresh = await cluster.get(f"/server/get?clientId={name('new')}")
    ports = {node.ready["port"] for node in cluster.nodes}

    assert again.body["content"] == {
        "nodeId": f"127.0.0.1:{cluster.nodes[2].ready['port']}",
        "url": cluster.socket_url(2),
    }
    assert int(fresh.body["content"]["nodeId"].rpartition(":")[2]) in ports


async def until_pending(cluster: Cluster, client_id: str, count: int) -> None:
    """Until so many messages of the client wait: seen by a session of its own that does not acknowledge them."""
    async with asyncio.timeout(20):
        while True:
            url = f"{cluster.socket_url()}?clientId={client_id}&ack=1&device=probe"
            async with connected(cluster.http, url) as probe:
                if (await probe.receive())["msg"]["pending"] == count:
                    return
