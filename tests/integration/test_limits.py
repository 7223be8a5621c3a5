"""
Each limit of a session and of a send: what is at it passes, what is beyond it is refused, and the role counts it.

The cluster of these tests has limits so low that a handful of frames meets them.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from pushfleet.local_valkey import LocalValkey
from tests.harness.chat import user
from tests.harness.client import Client, connected
from tests.harness.cluster import Cluster, running_cluster
from tests.harness.connection import CLOSE, HEAD, PING, PONG, TEXT, Peer, soon
from tests.unit.gateway.test_frames import client_frame

pytestmark = pytest.mark.asyncio(loop_scope="session")
Name = Callable[[str], str]

LOW: dict[str, Any] = {
    "PUSH_MESSAGE_RATE": "20",
    "PUSH_BYTE_RATE": "40000",
    "PUSH_MAX_FRAME": "20000",
    "PUSH_PING_RATE": "2",
    "PUSH_MAX_FRAGMENTS": "4",
    "PUSH_JSON_DEPTH": "8",
    "PUSH_BAD_FRAMES": "5",
    "PUSH_FRAME_TARGETS": "3",
    "PUSH_MAX_TARGETS": "3",
    "PUSH_GROUP_CREATES": "2",
    "PUSH_GROUP_MEMBERS": "3",
    "PUSH_CLIENT_GROUPS": "2",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict(valkey: LocalValkey) -> AsyncIterator[Cluster]:
    async with running_cluster(valkey.url, valkey.url, "strict", nodes=1, dispatchers=1, **LOW) as cluster:
        yield cluster


async def refused(cluster: Cluster, limit: str, *, by_dispatcher: bool = False) -> int:
    """How often the role says that this limit refused something."""
    role = "dispatcher" if by_dispatcher else "node"
    url = cluster.dispatcher_url if by_dispatcher else f"http://127.0.0.1:{cluster.nodes[0].ready['admin_port']}"
    async with cluster.http.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    series = f'push_{role}_refused_total{{limit="{limit}"}} '
    return next((int(float(line.split()[-1])) for line in lines if line.startswith(series)), 0)


def url_of(cluster: Cluster, client_id: str) -> str:
    return f"{cluster.socket_url()}?clientId={client_id}"


@asynccontextmanager
async def raw(cluster: Cluster, client_id: str) -> AsyncIterator[Peer]:
    """A session on a plain socket; its connection frame has been read."""
    sock = socket.socket()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await soon(loop.sock_connect(sock, ("127.0.0.1", int(cluster.nodes[0].ready["port"]))))
    peer = Peer(sock)
    try:
        await peer.send(HEAD.replace(b"?a=1", b"?clientId=" + client_id.encode()))
        await peer.head()
        await peer.frame()
        yield peer
    finally:
        sock.close()


async def until_closed(peer: Peer) -> tuple[list[int], int, str]:
    """The opcodes of what came before the close frame, its code and its reason."""
    opcodes: list[int] = []
    while True:
        opcode, payload = await peer.frame()
        if opcode == CLOSE:
            return opcodes, int.from_bytes(payload[:2], "big"), payload[2:].decode()
        opcodes.append(opcode)


def text(frame: object) -> bytes:
    return client_frame(TEXT, (frame if isinstance(frame, str) else json.dumps(frame)).encode())


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


class TestRates:
    async def test_messages(self, strict: Cluster, name: Name) -> None:
        """
        Five seconds' worth are taken at once; then 4029, with the limit and the wait as its reason. The client cannot
        come back before that, another one can come at any time.
        """
        before, mallory = await refused(strict, "messages"), name("mallory")
        async with raw(strict, mallory) as peer:
            await peer.send(text({"msgType": 3}) * 200)
            opcodes, code, words = await until_closed(peer)
            with pytest.raises(aiohttp.WSServerHandshakeError) as again:
                await strict.http.ws_connect(url_of(strict, mallory))
        async with connected(strict.http, url_of(strict, name("alice"))) as other:
            await other.send({"msgType": 3})
            await other.receive_type(4)

        reason = json.loads(words)
        assert 4029 == code
        assert 100 <= len(opcodes) <= 120
        assert ("messages", True) == (reason["limit"], 5000 < reason["reconnectIn"] <= 5100)
        assert 503 == again.value.status
        assert again.value.headers is not None
        assert 1 <= int(again.value.headers["Retry-After"]) <= 5
        assert before + 1 == await refused(strict, "messages")

    async def test_acknowledgements_of_what_came(self, strict: Cluster, name: Name) -> None:
        """Are free, each in a frame of its own, however many; those of nothing are a flood."""
        alice = name("alice")
        async with connected(strict.http, url_of(strict, alice) + "&ack=1") as client:
            for _ in range(3):
                items = [{"to": alice, "msg": "x" * 10} for _ in range(200)]
                await strict.post("/message/sendList", items)
            for number in range(600):
                await client.until_business(number + 1)
                await client.ack(client.business[number]["messageId"])
            await client.send({"msgType": 3})
            await client.receive_type(4)
        async with raw(strict, name("mallory")) as peer:
            await peer.send(text({"msgType": 2, "messageId": "0" * 32}) * 1400)
            _, code, reason = await until_closed(peer)
        assert (4029, "messages") == (code, json.loads(reason)["limit"])

    async def test_bytes(self, strict: Cluster, name: Name) -> None:
        """Five seconds' worth are taken at once."""
        before = await refused(strict, "bytes")
        async with raw(strict, name("mallory")) as peer:
            await peer.send(text({"msgType": 3, "messageId": "x" * 12_000}) * 24)
            opcodes, code, reason = await until_closed(peer)
        assert (4029, "bytes") == (code, json.loads(reason)["limit"])
        assert len(opcodes) < 24
        assert before + 1 == await refused(strict, "bytes")

    async def test_pings(self, strict: Cluster, name: Name) -> None:
        """Ten are answered, and with the second that may begin meanwhile two more; the next one ends it."""
        before = await refused(strict, "pings")
        async with raw(strict, name("mallory")) as peer:
            await peer.send(client_frame(PING, b"?") * 20)
            opcodes, code, reason = await until_closed(peer)
        assert (4029, "pings") == (code, json.loads(reason)["limit"])
        assert [PONG] * 10 == opcodes[:10]
        assert len(opcodes) < 20
        assert before + 1 == await refused(strict, "pings")

    async def test_groups_a_minute(self, strict: Cluster, name: Name) -> None:
        """Refused with a word, and the connection is kept."""
        before = await refused(strict, "group_creates")
        async with user(strict, 0, name("alice")) as alice:
            for _ in range(2):
                group = await alice.ask(3, 4, userIdList=[])
                await alice.ask(14, 14, groupId=group["groupId"], action="leave")
            params = await alice.refused(3, userIdList=[])
        assert ("overloaded", "more than 2 groups a minute; try again later") == (params["code"], params["message"])
        assert before + 1 == await refused(strict, "group_creates")


class TestSizes:
    async def test_fragments_of_a_message(self, strict: Cluster, name: Name) -> None:
        """Four make a message, five end the connection with 1008."""
        before = await refused(strict, "fragments")
        pieces = [b'{"msg', b"Type", b'":3', b"}"]
        async with raw(strict, name("alice")) as peer:
            await peer.send(fragments(pieces) + fragments([*pieces, b" "]))
            opcodes, code, _ = await until_closed(peer)
        assert ([TEXT], 1008) == (opcodes, code)
        assert before + 1 == await refused(strict, "fragments")

    async def test_bytes_of_a_message(self, strict: Cluster, name: Name) -> None:
        """As many as `maxFrame` says pass; one more is 1009."""
        before = await refused(strict, "message_bytes")
        frame = '{"msgType":3,"messageId":"%s"}'
        async with connected(strict.http, url_of(strict, name("alice"))) as client:
            most = (await client.receive())["msg"]["maxFrame"]
            await client.send(frame % ("x" * (most - len(frame) + 2)))
            await client.receive_type(4)
            await client.send(frame % ("x" * (most - len(frame) + 3)))
            assert 1009 == await client.closed()
        assert before + 1 == await refused(strict, "message_bytes")

    async def test_depth_of_a_frame(self, strict: Cluster, name: Name) -> None:
        """The object itself is one level; in either dialect."""
        before, alice = await refused(strict, "json_depth"), name("alice")
        async with connected(strict.http, url_of(strict, alice)) as client:
            await client.send('{"msgType":1,"to":"%s","msg":%s}' % (alice, nested(7)))
            await client.receive_type(2)
            await client.send('{"msgType":1,"to":"%s","msg":%s}' % (alice, nested(8)))
            error = await client.receive_type(-1)
            await client.send('{"type":1,"params":{"toMessageId":"%s","message":%s}}' % (alice, nested(7)))
            await client.receive_type(-1)
        assert ("too_deep", "nested deeper than 8") == (error["code"], error["resultMsg"])
        assert before + 2 == await refused(strict, "json_depth")

    @pytest.mark.parametrize("path", ["/message/send", "/v1/broadcasts"])
    async def test_depth_of_a_body(self, strict: Cluster, path: str) -> None:
        """The same over HTTP."""
        before = await refused(strict, "json_depth", by_dispatcher=True)
        body = '{"to":"a","msg":%s}' if path == "/message/send" else '{"toAll":true,"msg":%s}'
        good = await strict.post(path, (body % nested(7)).encode())
        bad = await strict.post(path, (body % nested(8)).encode())

        assert (True, 400) == (good.status in (200, 201), bad.status)
        assert "JSON nested deeper than 8" in (bad.body.get("msg") or bad.body.get("detail"))
        assert before + 1 == await refused(strict, "json_depth", by_dispatcher=True)

    async def test_targets_of_a_frame(self, strict: Cluster, name: Name) -> None:
        """Refused as a whole, with the figure."""
        before = await refused(strict, "targets")
        async with connected(strict.http, url_of(strict, name("alice"))) as client:
            await client.send({"msgType": 1, "to": ["a", "b", "c"], "msg": 1})
            await client.receive_type(2)
            await client.send({"msgType": 1, "to": ["a", "b", "c", "d"], "msg": 1})
            error = await client.receive_type(-1)
            await client.send({"msgType": 1, "toGroups": ["g"] * 101, "msg": 1})
            await client.receive_type(-1)
        assert ("too_many_targets", "to: 4 targets, at most 3") == (error["code"], error["resultMsg"])
        assert before + 2 == await refused(strict, "targets")

    async def test_targets_of_a_send(self, strict: Cluster) -> None:
        """400 with the field; in a list only the item that has too many."""
        before = await refused(strict, "targets", by_dispatcher=True)
        few, many = {"to": ["a", "b", "c"], "msg": 1}, {"to": ["a", "b", "c", "d"], "msg": 1}
        assert 200 == (await strict.post("/message/send", few)).status
        bad = await strict.post("/message/send", many)
        items = (await strict.post("/message/sendList", [few, many])).body["content"]
        groups = await strict.post("/message/send", {"toGroups": ["g"] * 101, "msg": 1})

        assert (400, "to: 4 targets, at most 3") == (bad.status, bad.body["msg"])
        assert [200, 400] == [item["statusCode"] for item in items]
        assert 400 == groups.status
        assert before + 3 == await refused(strict, "targets", by_dispatcher=True)

    async def test_groups_of_a_client_and_members_of_a_group(self, strict: Cluster, name: Name) -> None:
        """Both roles count whom they had to leave out."""
        before = [await refused(strict, limit) for limit in ("group_members", "client_groups")]
        users = [user(strict, 0, name(who)) for who in ("alice", "bob", "carol")]
        async with users[0] as alice, users[1] as bob, users[2] as carol:
            assert "bad_request" == (await alice.refused(3, userIdList=["a", "b", "c"]))["code"]
            full = (await alice.ask(3, 4, userIdList=["a", "b"]))["groupId"]
            assert "group_limit" == (await bob.refused(14, groupId=full))["code"]
            for _ in range(2):
                await strict.post("/v1/groups", {"members": [bob.client_id]})
            assert [bob.client_id] == [one["openid"] for one in await left_out(carol.client, bob.client_id)]
        assert [before[0] + 2, before[1] + 1] == [
            await refused(strict, limit) for limit in ("group_members", "client_groups")
        ]

    async def test_the_same_over_http(self, strict: Cluster, name: Name) -> None:
        """Counted by the dispatcher."""
        limits, alice = ("group_members", "client_groups"), name("alice")
        before = [await refused(strict, limit, by_dispatcher=True) for limit in limits]
        assert 400 == (await strict.post("/v1/groups", {"members": ["a1", "b1", "c1", "d1"]})).status
        for _ in range(3):
            answer = await strict.post("/v1/groups", {"members": [alice]})
        assert [alice] == [one["clientId"] for one in answer.body["refused"]]
        after = [await refused(strict, limit, by_dispatcher=True) for limit in limits]
        assert [count + 1 for count in before] == after


class TestBadFrames:
    async def test_they_are_counted(self, strict: Cluster, name: Name) -> None:
        """Five a minute are answered, the sixth ends it."""
        before = await refused(strict, "bad_frames")
        async with connected(strict.http, url_of(strict, name("mallory"))) as client:
            for _ in range(10):
                await client.send("nonsense")
            assert 1008 == await client.closed()
        assert 6 == len([frame for frame in client.frames if frame["msgType"] == -1])
        assert before + 1 == await refused(strict, "bad_frames")

    @pytest.mark.parametrize(
        "frame",
        [
            '{"msgType":9,"requestId":"%s","messageId":"%s"}',
            '{"msgType":"x","requestId":"%s","messageId":"%s"}',
            '{"msgType":1,"to":"%s","msg":1,"requestId":"%s"}',
            '{"type":7,"params":{"openid":"%s","loginStatus":"%s"}}',
            '{"type":14,"params":{"groupId":"g","action":"%s%s"}}',
            '{"type":99,"requestId":"%s%s"}',
        ],
    )
    async def test_the_answer_is_short(self, strict: Cluster, name: Name, frame: str) -> None:
        """Whatever names a frame of 16 KB holds, they are not sent back: the answer has less than a KiB."""
        async with connected(strict.http, url_of(strict, name("mallory"))) as client:
            await client.receive()
            await client.send(frame % ("é" * 4000, "é" * 4000))
            await client.receive()
        assert len(client.raw[1]) < 1024


def fragments(pieces: list[bytes]) -> bytes:
    """One text message."""
    opcodes = [TEXT] + [0] * (len(pieces) - 1)
    frames = [
        client_frame(opcode, piece, fin=place == len(pieces))
        for place, (opcode, piece) in enumerate(zip(opcodes, pieces, strict=True), 1)
    ]
    return b"".join(frames)


async def left_out(client: Client, member: str) -> list[Any]:
    """Who is left out of a new group with this member."""
    await client.send({"type": 3, "params": {"userIdList": [member]}})
    while True:
        frame = await client.receive()
        if frame.get("type") == 4 and "msgType" not in frame and "refused" in frame["params"]:
            refused: list[Any] = frame["params"]["refused"]
            return refused


async def test_an_address_whose_clients_flood_is_refused(valkey: LocalValkey, name: Name) -> None:
    """Who has tokens of many clients and floods with one after the other is refused at once, whoever it says to be."""
    variables: dict[str, Any] = {"PUSH_MESSAGE_RATE": "20", "PUSH_ADDRESS_AUTH_FAILURES": "4"}
    async with running_cluster(valkey.url, valkey.url, name("floods"), **variables) as cluster:
        async with raw(cluster, name("mallory")) as peer:
            await peer.send(text({"msgType": 3}) * 200)
            _, code, _ = await until_closed(peer)
        with pytest.raises(aiohttp.WSServerHandshakeError) as other:
            await cluster.http.ws_connect(url_of(cluster, name("another")))
        assert (4029, 429) == (code, other.value.status)
        assert 1 == await refused(cluster, "auth_failures")
