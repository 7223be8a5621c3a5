"""The envelope dialect, PROTOCOL section 3: what clients send, on real RocketMQ and Valkey."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
import pytest

from tests.harness.client import connected
from tests.harness.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]


async def test_a_business_frame_reaches_another_client_and_is_acknowledged(cluster: Cluster, name: Name) -> None:
    """Trigger 2, `from` is the session's client whatever the frame claims; the sender gets msgType 2."""
    alice, bob = name("alice"), name("bob")
    async with (
        connected(cluster.http, f"{cluster.socket_url(0)}?clientId={alice}") as sender,
        connected(cluster.http, f"{cluster.socket_url(1)}?clientId={bob}") as receiver,
    ):
        await sender.receive()
        await receiver.receive()
        await sender.send({"msgType": 1, "to": bob, "msg": {"hi": 1}, "requestId": "q-1", "from": "mallory"})
        ack = await sender.receive_type(2)
        got = (await receiver.until_business(1))[0]

    assert (ack["requestId"], ack["messageId"]) == ("q-1", got["messageId"])
    assert got == got | {"from": alice, "to": bob, "msg": {"hi": 1}, "requestId": "q-1", "trigger": 2, "msgType": 1}


async def test_msg_of_a_client_arrives_byte_for_byte(cluster: Cluster, name: Name) -> None:
    """Also between clients nothing decodes it."""
    alice, bob = name("alice"), name("bob")
    msg = '{ "z":18446744073709551616,\n"a":[1.0] }'
    async with (
        connected(cluster.http, f"{cluster.socket_url(0)}?clientId={alice}") as sender,
        connected(cluster.http, f"{cluster.socket_url(1)}?clientId={bob}") as receiver,
    ):
        await receiver.receive()
        await sender.send('{"msgType":1,"to":["%s"],"msg":%s}' % (bob, msg))
        await receiver.until_business(1)

    assert b'"msg":' + msg.encode() + b"," in receiver.raw[1]


async def test_absent_targets_get_it_when_they_come(cluster: Cluster, name: Name) -> None:
    """A client's message is durable like any other."""
    alice, bob, eve = name("alice"), name("bob"), name("eve")
    async with connected(cluster.http, f"{cluster.socket_url(0)}?clientId={alice}") as sender:
        await sender.receive()
        for number in range(20):
            await sender.send({"msgType": 1, "to": [bob, eve], "msg": number})
        for _ in range(20):
            await sender.receive_type(2)
    for client_id in (bob, eve):
        async with connected(cluster.http, f"{cluster.socket_url(2)}?clientId={client_id}") as late:
            assert sorted(message["msg"] for message in await late.until_business(20)) == list(range(20))


async def test_a_frame_sent_again_is_delivered_once(cluster: Cluster, name: Name) -> None:
    """The same requestId after a lost acknowledgement: acknowledged again, nothing sent twice."""
    alice, bob = name("alice"), name("bob")
    frame = {"msgType": 1, "to": bob, "msg": "once", "requestId": "same"}
    async with (
        connected(cluster.http, f"{cluster.socket_url(0)}?clientId={alice}") as sender,
        connected(cluster.http, f"{cluster.socket_url(1)}?clientId={bob}") as receiver,
    ):
        await receiver.receive()
        await sender.send(frame)
        await sender.receive_type(2)
        await receiver.until_business(1)
        await sender.send(frame)
        await sender.receive_type(2)
        await sender.send(frame | {"msg": "last", "requestId": "other"})
        got = await receiver.until_business(2)

    assert [message["msg"] for message in got] == ["once", "last"]


async def test_heartbeats_are_answered_with_their_message_id(cluster: Cluster, name: Name) -> None:
    """msgType 3 is answered by msgType 4, an RFC 6455 ping by a pong."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={name('alice')}", autoping=False) as client:
        await client.receive()
        await client.send({"msgType": 3, "messageId": "beat-1"})
        answer = await client.receive()
        await client.socket.ping(b"there?")
        await client.until(lambda: bool(client.pongs))

    assert (answer["msgType"], answer["messageId"]) == (4, "beat-1")
    assert client.pongs == [b"there?"]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "not_json"),
        ('{"msgType":77,"requestId":"r-1"}', "unknown_type"),
        ('{"msgType":1,"to":7,"msg":1,"requestId":"r-1"}', "bad_frame"),
        ('{"msgType":1,"to":["%s"],"msg":1,"requestId":"r-1"}' % '","'.join(["a"] * 1001), "too_many_targets"),
        ('{"msgType":2,"messageIds":["zz"]}', "bad_frame"),
    ],
)
async def test_a_bad_frame_is_answered_and_the_connection_kept(
    cluster: Cluster, name: Name, frame: str, code: str
) -> None:
    """msgType -1 with code, resultMsg and the frame's requestId; the next frame works."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={name('alice')}") as client:
        await client.receive()
        await client.send(frame)
        error = await client.receive()
        await client.send({"msgType": 3, "messageId": "alive"})
        beat = await client.receive()

    assert (error["msgType"], error["code"]) == (-1, code)
    assert error["resultMsg"]
    assert error["requestId"] == ("r-1" if "r-1" in frame else None)
    assert beat["msgType"] == 4


async def test_a_bad_frame_of_the_chat_dialect_is_answered_in_it(cluster: Cluster, name: Name) -> None:
    """Type 500 with code and message."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={name('alice')}") as client:
        await client.receive()
        await client.send({"type": 99})
        unknown = await client.receive()
        await client.send({"type": 7, "params": 5})
        wrong = await client.receive()

    assert (unknown["type"], unknown["params"]["code"]) == (500, "unknown_type")
    assert (wrong["type"], wrong["params"]["code"]) == (500, "bad_frame")


async def test_thirty_bad_frames_a_minute_are_enough(cluster: Cluster, name: Name) -> None:
    """The 31st ends the connection with 1008."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={name('alice')}") as client:
        await client.receive()
        for _ in range(31):
            await client.send("nonsense")
        assert await client.closed() == 1008
    assert len([frame for frame in client.frames if frame["msgType"] == -1]) >= 30


async def test_binary_frames_are_refused(cluster: Cluster, name: Name) -> None:
    """Close 1003."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={name('alice')}") as client:
        await client.receive()
        await client.socket.send_bytes(b"\x00")
        assert await client.closed() == 1003


async def test_a_frame_beyond_max_frame_is_refused(cluster: Cluster, name: Name) -> None:
    """Close 1009; the connection frame told the limit."""
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={name('alice')}") as client:
        limit = (await client.receive())["msg"]["maxFrame"]
        await client.send('{"msgType":3,"messageId":"%s"}' % ("x" * limit))
        assert await client.closed() == 1009


async def test_type_7_may_name_only_the_sessions_own_client(cluster: Cluster, name: Name) -> None:
    """Answered by type 8 with the sessionId; another name is refused; loginStatus 0 logs out with 1000."""
    alice = name("alice")
    register = {"type": 7, "params": {"openid": alice, "userName": "Alice", "loginStatus": "1"}}
    async with connected(cluster.http, f"{cluster.socket_url()}?clientId={alice}") as client:
        welcome = await client.receive()
        await client.send(register)
        answer = await client.receive()
        await client.send({"type": 7, "params": {"openid": "eve"}})
        refused = await client.receive()
        await client.send({"type": 7, "params": {"openid": alice, "loginStatus": "0"}})
        assert await client.closed() == 1000

    params = {"openid": alice, "userName": "Alice", "loginStatus": "1", "sessionId": welcome["sessionId"]}
    assert answer == {"type": 8, "params": params, "status": 200}
    assert (refused["type"], refused["status"], refused["params"]["code"]) == (500, 500, "forbidden")


async def test_the_first_frame_may_name_the_client(cluster: Cluster, name: Name) -> None:
    """Without authentication and without ?clientId=: type 7 makes the session; anything else ends it with 1008."""
    alice = name("alice")
    async with connected(cluster.http, cluster.socket_url()) as client:
        await client.send({"type": 7, "params": {"openid": alice, "userName": "Alice", "loginStatus": "1"}})
        welcome, answer = await client.receive(), await client.receive()
        await cluster.send(alice, "found")
        await client.until_business(1)
    async with connected(cluster.http, cluster.socket_url()) as stranger:
        await stranger.send({"msgType": 3})
        assert await stranger.closed() == 1008

    assert welcome["msgType"] == 0
    assert answer["params"]["sessionId"] == welcome["sessionId"]


async def test_closing_says_goodbye(cluster: Cluster, name: Name) -> None:
    """The client's close is echoed."""
    socket = await cluster.http.ws_connect(f"{cluster.socket_url()}?clientId={name('alice')}")
    await socket.close(code=1000)

    assert socket.close_code == 1000
    assert not isinstance(socket.exception(), aiohttp.ClientError)
