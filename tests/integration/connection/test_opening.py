"""A connection before frames: the request head, the answer to it, the listening socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway_node.websocket.frames import text_frame
from gateway_node.websocket.listener import ACCEPTS_PER_TURN, NOTSENT_LOWAT_BYTES, listening_socket
from tests.harness.connection import HEAD, LIMITS, TEXT, Node, until
from tests.unit.gateway.test_frames import client_frame


class TestOpening:
    async def test_messages_go_up_and_frames_come_down(self, node: Node) -> None:
        """After the 101 a text message reaches the layer above, and what it sends reaches the peer."""
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"up"))
        assert await node.layer.hears() == ("message", b"up")
        assert node.layer.connection.send(text_frame(b"down"))
        assert await peer.frame() == (TEXT, b"down")

    async def test_a_request_in_pieces(self, node: Node) -> None:
        """A head may come in any pieces."""
        peer = await node.peer()
        for at in range(0, len(HEAD), 20):
            await peer.send(HEAD[at : at + 20])
            await node.turn()
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")

    async def test_frames_behind_the_head_wait_for_the_answer(self, node: Node) -> None:
        """Pipelined frames go up after a later `accept`, in order with later ones, and not from inside it."""
        node.layer.on_request = lambda connection: None
        peer = await node.peer()
        await peer.send(HEAD + client_frame(TEXT, b"1") + client_frame(TEXT, b"2")[:5])
        assert await node.layer.hears() == ("request", "/websocket")
        assert node.layer.connection.accept("bearer")
        assert node.layer.told.empty()
        await peer.send(client_frame(TEXT, b"2")[5:] + client_frame(TEXT, b"3"))
        assert b"Sec-WebSocket-Protocol: bearer\r\n" in await peer.head()
        assert [await node.layer.hears() for _ in range(3)] == [("message", bytes([n])) for n in b"123"]

    async def test_the_answer_and_the_first_frames_are_one_write(self, node: Node) -> None:
        """What is sent in the turn of the `accept` goes out with the 101."""
        node.layer.on_request = lambda connection: connection.accept() and connection.send(text_frame(b"welcome"))
        peer = await node.peer()
        await peer.send(HEAD)
        data = await peer.more()
        assert data.endswith(b"\r\n\r\n" + text_frame(b"welcome"))

    async def test_early_bytes_are_bounded(self, node: Node) -> None:
        """A peer that floods before the answer is not read from; nothing of it is lost after `accept`."""
        node.layer.on_request = lambda connection: None
        peer = await node.peer()
        frame = client_frame(TEXT, b"x" * 50_000)
        await peer.send(HEAD)
        flood = asyncio.create_task(peer.send(frame * 200))
        assert await node.layer.hears() == ("request", "/websocket")
        opening = node.layer.connection._opening
        assert opening is not None
        await until(lambda: len(opening.received) > LIMITS.max_early_bytes)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(opening.received) < LIMITS.max_early_bytes + (1 << 20)
        assert not flood.done()
        assert node.layer.connection.accept()
        assert [await node.layer.hears() for _ in range(200)] == [("message", b"x" * 50_000)] * 200
        await flood

    async def test_refuse(self, node: Node) -> None:
        """A refused request gets the whole response and the end of TCP; the layer above hears no more of it."""
        node.layer.on_request = lambda connection: connection.refuse(503, b"full", {"Retry-After": "7"})
        peer = await node.peer()
        await peer.send(HEAD + client_frame(TEXT, b"early"))
        answer = await peer.all()
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 7\r\n" in answer
        assert answer.endswith(b"\r\n\r\nfull")
        peer.sock.close()
        await until(lambda: node.gate.alive == 0)
        assert await node.layer.hears() == ("request", "/websocket")
        assert node.layer.told.empty()

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"426"),
            (HEAD.replace(b": 13", b": 8"), b"426"),
            (HEAD.replace(b"Host: a", b"Host : a"), b"400"),
            (HEAD[:-2] + b"x: " + b"y" * 9000 + b"\r\n\r\n", b"431"),
        ],
    )
    async def test_bad_requests(self, node: Node, request_: bytes, status: bytes) -> None:
        """What is no good request or opening handshake is answered with its status, by itself."""
        peer = await node.peer()
        await peer.send(request_)
        assert status == (await peer.all())[9:12]

    async def test_a_peer_that_leaves_before_the_answer(self, node: Node) -> None:
        """The layer above hears of it once, and its answer comes to nothing."""
        node.layer.on_request = lambda connection: None
        peer = await node.peer()
        await peer.send(HEAD)
        assert await node.layer.hears() == ("request", "/websocket")
        peer.sock.close()
        assert await node.layer.hears() == ("closed", 1006, "", False)
        assert not node.layer.connection.accept()
        assert not node.layer.connection.send(b"x")
        node.layer.connection.refuse(503, b"")
        assert node.layer.told.empty()

    @pytest.mark.parametrize(
        ("sent", "answer", "told"),
        [
            (b"", b"", []),
            (b"GET /", b"408", []),
            (HEAD, b"503", [("request", "/websocket"), ("closed", 1006, "", False)]),
        ],
    )
    async def test_the_handshake_has_a_deadline(
        self, node: Node, sent: bytes, answer: bytes, told: list[tuple[object, ...]]
    ) -> None:
        """A connection without a request, with half of one, or with one that nobody answers, ends when it is due."""
        node.layer.on_request = lambda connection: None
        peer = await node.peer()
        await peer.send(sent)
        await until(lambda: len(node.gate.opening) == 1)
        if sent:
            await until(lambda: told or any(c._opening and c._opening.received for c in node.gate.opening.all()))
        if told:
            await until(lambda: not node.layer.told.empty())
        node.gate.tick(node.layer.now + 9.9)
        await node.turn()
        assert node.gate.alive == 1
        node.gate.tick(node.layer.now + 10.0)
        assert answer == (await peer.all())[9:12]
        peer.sock.close()
        assert told == [await node.layer.hears() for _ in told]
        await until(lambda: node.gate.alive == 0)
        assert node.layer.told.empty()

    async def test_accepted_sockets_inherit_the_options(self, node: Node) -> None:
        """TCP_NODELAY and TCP_NOTSENT_LOWAT are set on the listening socket and hold for each connection."""
        await node.opened()
        transport = node.layer.connection._transport
        assert transport is not None
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, 25) == NOTSENT_LOWAT_BYTES


class TestListening:
    async def test_accepts_in_batches(self, node: Node) -> None:
        """Connections that wait are taken in several a turn of the loop, and no more than the bound."""
        waiting = [socket.create_connection(node.sock.getsockname()) for _ in range(100)]
        most = before = 0
        while before < 100:
            await asyncio.sleep(0)
            most = max(most, node.gate.alive - before)
            before = node.gate.alive
        for sock in waiting:
            sock.close()
        assert most == ACCEPTS_PER_TURN

    async def test_close_frees_the_port(self, node: Node) -> None:
        """After `close` nobody listens, and who is in stays in."""
        address = node.sock.getsockname()
        peer = await node.opened()
        node.listener.close()
        await node.turn()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        node.layer.connection.send(text_frame(b"still here"))
        assert await peer.frame() == (TEXT, b"still here")

    async def test_ipv6(self) -> None:
        """An IPv6 address can be listened on; the one that means all takes IPv4 connections too."""
        with listening_socket("::1", 0) as sock:
            assert sock.getsockname()[0] == "::1"
        with listening_socket("::", 0) as sock:
            sock.listen()
            socket.create_connection(("127.0.0.1", sock.getsockname()[1])).close()

    async def test_a_taken_port(self, node: Node) -> None:
        """Raises OSError."""
        with pytest.raises(OSError, match="in use"):
            listening_socket("127.0.0.1", node.sock.getsockname()[1])
