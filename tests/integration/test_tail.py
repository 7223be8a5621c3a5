"""`pushfleet tail` against a peer that says what each test wants a node to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import WSMessage, web

from pushfleet.tail import Ended, Tail, TailOptions

DEADLINE_S = 20.0
Script = Callable[["Peer", web.WebSocketResponse], Awaitable[None]]


@dataclass
class Peer:
    """Runs one script a connection, in order, the last one for all further ones; notes what it was asked and told."""

    scripts: list[Script]
    requests: list[web.Request] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    refusal: int = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.refusal:
            return web.Response(status=self.refusal)
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
        await script(self, socket)
        return socket

    async def next_frame(self, socket: web.WebSocketResponse) -> WSMessage:
        frame = await socket.receive(timeout=DEADLINE_S)
        self.received.append(orjson.loads(frame.data))
        return frame


@asynccontextmanager
async def running(*scripts: Script, refusal: int = 0) -> AsyncIterator[Peer]:
    peer = Peer(list(scripts), refusal=refusal)
    app = web.Application()
    app.router.add_get("/websocket", peer.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    peer.url = f"ws://127.0.0.1:{runner.addresses[0][1]}/websocket"
    try:
        yield peer
    finally:
        await runner.cleanup()


@dataclass
class Run:
    """A tail that runs until it ends or the block is left."""

    shown: list[bytes] = field(default_factory=list)
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def until_end(self, peer: Peer, *, ack: bool = True, token: str | None = None) -> str:
        """Why it ended."""
        options = TailOptions("alice", peer.url, "", token, None, ack)
        task = Tail(options, say=lambda event, text, **f: self.said.append((event, f)), show=self.shown.append)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(Ended) as ended:
                await task.run()
        return str(ended.value)


def envelope(message_id: str, msg: object = 1, kind: int = 1) -> str:
    return orjson.dumps({"messageId": message_id, "msg": msg, "to": "alice", "msgType": kind}).decode()


async def kick(_: Peer, socket: web.WebSocketResponse) -> None:
    await socket.close(code=4002)


def say_then(code: int, reason: bytes, *frames: str) -> Script:
    async def script(_: Peer, socket: web.WebSocketResponse) -> None:
        for frame in frames:
            await socket.send_str(frame)
        await socket.close(code=code, message=reason)

    return script


async def test_every_envelope_is_shown_as_it_came_and_business_messages_are_acknowledged() -> None:
    """The bytes of each frame, in order; an ack follows each business message and nothing else."""
    spaced = '{"messageId":"m2", "msg": {"a": 1.50},\n "msgType":1}'

    async def script(peer: Peer, socket: web.WebSocketResponse) -> None:
        for frame in (envelope("m0", {"heartbeatInterval": 20}, kind=0), envelope("m1"), spaced):
            await socket.send_str(frame)
        await peer.next_frame(socket)
        await peer.next_frame(socket)
        await kick(peer, socket)

    run = Run()
    async with running(script) as peer:
        await run.until_end(peer)
    expected = [envelope("m0", {"heartbeatInterval": 20}, kind=0), envelope("m1"), spaced.replace("\n", " ")]
    assert expected == [line.decode() for line in run.shown]
    assert [{"msgType": 2, "messageId": "m1"}, {"msgType": 2, "messageId": "m2"}] == peer.received
    assert {"clientId": "alice", "ack": "1"} == dict(peer.requests[0].query)


async def test_a_message_that_comes_again_is_shown_once_and_acknowledged_again() -> None:
    """Also on the next connection: the ack may have been lost with the last one."""

    async def script(peer: Peer, socket: web.WebSocketResponse) -> None:
        for _ in range(2):
            await socket.send_str(envelope("m1"))
            await peer.next_frame(socket)
        await socket.close(code=1001, message=b'{"reconnectIn":1}')

    async def again(peer: Peer, socket: web.WebSocketResponse) -> None:
        await socket.send_str(envelope("m1"))
        await peer.next_frame(socket)
        await kick(peer, socket)

    run = Run()
    async with running(script, again) as peer:
        await run.until_end(peer)
    assert [envelope("m1").encode()] == run.shown
    assert len(peer.received) == 3


async def test_a_draining_nodes_pause_is_kept() -> None:
    """1001 with reconnectIn: that pause, not one of our own."""
    run = Run()
    async with running(say_then(1001, b'{"reconnectIn":123}'), kick) as peer:
        await run.until_end(peer)
    assert [0.123] == [fields["seconds"] for event, fields in run.said if event == "reconnecting"]


@pytest.mark.parametrize(("code", "word"), [(4001, "expired"), (4002, "kicked"), (4003, "replaced")])
async def test_what_somebody_decided_ends_it(code: int, word: str) -> None:
    """4001 to 4003: no second connection, and the reason is told."""
    run = Run()
    async with running(say_then(code, b"")) as peer:
        reason = await run.until_end(peer)
    assert word in reason
    assert len(peer.requests) == 1


@pytest.mark.parametrize("code", [1000, 1008, 1013, 4008, 4009, 4029])
async def test_any_other_end_is_followed_by_another_try(code: int) -> None:
    """The client stays with its node's service."""
    async with running(say_then(code, b""), kick) as peer:
        await Run().until_end(peer)
    assert len(peer.requests) == 2


async def test_a_refused_token_ends_it_and_travels_in_a_header() -> None:
    """401: trying again is of no use. The token is never part of the URL."""
    async with running(kick, refusal=401) as peer:
        reason = await Run().until_end(peer, token="secret")
    assert "401" in reason
    assert peer.requests[0].headers["Authorization"] == "Bearer secret"
    assert "secret" not in str(peer.requests[0].url)


async def test_without_ack_nothing_is_acknowledged() -> None:
    """`--no-ack`: the node hears no frame from it."""

    async def script(peer: Peer, socket: web.WebSocketResponse) -> None:
        await socket.send_str(envelope("m1"))
        await socket.ping(b'{"pong":true}')
        await peer.next_frame(socket)  # an ack would come before the pong
        await kick(peer, socket)

    run = Run()
    async with running(script) as peer:
        await run.until_end(peer, ack=False)
    assert len(run.shown) == 1
    assert [{"pong": True}] == peer.received
    assert "ack" not in peer.requests[0].query


async def test_frames_that_are_no_envelopes_do_not_end_it() -> None:
    """They are told and left out."""
    run = Run()
    async with running(say_then(4002, b"", "{", "[1]", envelope("m1"))) as peer:
        await run.until_end(peer)
    assert [envelope("m1").encode()] == run.shown
    assert ["bad_frame", "bad_frame"] == [event for event, _ in run.said if event == "bad_frame"]
