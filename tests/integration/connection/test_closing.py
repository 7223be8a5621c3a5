"""How a connection ends, and that the layer above hears of it once."""

from __future__ import annotations

import socket

from structlog.testing import capture_logs

from gateway_node.websocket.connection import Connection
from gateway_node.websocket.frames import close_frame, text_frame
from tests.harness.connection import BINARY, CLOSE, HEAD, PING, PONG, TEXT, Node, until
from tests.unit.gateway.test_frames import client_frame


class TestClosing:
    async def test_the_peer_closes(self, node: Node) -> None:
        """A close frame is echoed behind what was sent, TCP ends, and the code goes up as a clean close."""
        node.layer.on_message = lambda connection, data: connection.send(text_frame(data))
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"last") + client_frame(CLOSE, b"\x0f\xa0bye") + client_frame(TEXT, b"no"))
        assert await peer.all() == text_frame(b"last") + close_frame(4000)
        assert await node.layer.hears() == ("message", b"last")
        assert await node.layer.hears() == ("closed", 4000, "bye", True)
        await until(lambda: node.gate.alive == 0)
        assert node.layer.told.empty()

    async def test_we_close(self, node: Node) -> None:
        """The close frame goes behind what was sent; the peer's messages are dropped; its echo ends TCP, cleanly."""
        peer = await node.opened()
        connection = node.layer.connection
        connection.send(text_frame(b"before"))
        connection.close(4002, "kicked")
        connection.close(1000, "only the first counts")
        assert not connection.open
        assert not connection.send(text_frame(b"after"))
        await peer.send(client_frame(TEXT, b"dropped") + client_frame(PING, b""))
        assert await peer.frame() == (TEXT, b"before")
        assert await peer.frame() == (CLOSE, (4002).to_bytes(2, "big") + b"kicked")
        await peer.send(client_frame(CLOSE, b"\x0f\xa2"))
        assert await peer.all() == b""
        assert await node.layer.hears() == ("closed", 4002, "kicked", True)

    async def test_a_close_that_is_not_answered(self, node: Node) -> None:
        """TCP is cut when the close timeout is over, not before."""
        peer = await node.opened()
        node.layer.connection.close(1001)
        assert await peer.frame() == (CLOSE, b"\x03\xe9")
        node.gate.tick(node.layer.now + 4.9)
        await node.turn()
        assert node.gate.alive == 1
        node.gate.tick(node.layer.now + 5.0)
        assert await node.layer.hears() == ("closed", 1001, "", False)

    async def test_an_answer_that_comes_too_late(self, node: Node) -> None:
        """A peer that ends its half before the answer is not accepted any more, also while TCP goes down."""
        node.layer.on_request = lambda connection: None
        peer = await node.peer()
        await peer.send(HEAD)
        assert await node.layer.hears() == ("request", "/websocket")
        node.layer.connection.eof_received()
        assert not node.layer.connection.accept()
        assert await node.layer.hears() == ("closed", 1006, "", False)

    async def test_a_half_closed_peer(self, node: Node) -> None:
        """A peer that stops sending without a close frame is gone (1006), but gets what was sent to it."""
        peer = await node.opened()
        node.layer.connection.send(text_frame(b"a"))
        peer.sock.shutdown(socket.SHUT_WR)
        assert await peer.all() == text_frame(b"a")
        assert await node.layer.hears() == ("closed", 1006, "", False)

    async def test_a_reset_peer(self, node: Node) -> None:
        """A reset is 1006."""
        peer = await node.opened()
        peer.reset()
        assert await node.layer.hears() == ("closed", 1006, "", False)

    async def test_a_violation(self, node: Node) -> None:
        """
        What came before it goes up, then the peer gets its close frame and the end of our half, however much more
        it sends: no reset overtakes the frame.
        """
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"good") + b"\xc1\x80" + b"garbage" * 10_000)
        await peer.send(b"garbage" * 10_000)
        opcode, payload = await peer.frame()
        assert (CLOSE, 1002) == (opcode, int.from_bytes(payload[:2], "big"))
        assert await peer.all() == b""
        await peer.send(b"more")
        assert await node.layer.hears() == ("message", b"good")
        assert node.layer.told.empty()
        peer.sock.close()
        assert await node.layer.hears() == ("closed", 1002, payload[2:].decode(), False)

    async def test_a_violator_that_stays(self, node: Node) -> None:
        """After a violation TCP is cut at the deadline if the peer does not close its half."""
        peer = await node.opened()
        await peer.send(b"\xc1\x80")
        assert (await peer.all())[:4] == b"\x88" + bytes(
            [len("a reserved bit is set and no extension was agreed on") + 2]
        ) + b"\x03\xea"
        node.gate.tick(node.layer.now + 5.0)
        assert (await node.layer.hears())[:2] == ("closed", 1002)

    async def test_binary_messages_are_not_taken(self, node: Node) -> None:
        """1003, unless the gate was told who takes them."""
        peer = await node.opened()
        await peer.send(client_frame(BINARY, b"x"))
        opcode, payload = await peer.frame()
        assert (CLOSE, 1003) == (opcode, int.from_bytes(payload[:2], "big"))
        node.gate.on_binary = lambda connection, data: node.binary.append(data)
        peer = await node.opened()
        await peer.send(client_frame(BINARY, b"x") + client_frame(PING, b""))
        assert await peer.frame() == (PONG, b"")
        assert node.binary == [b"x"]

    async def test_too_big(self, node: Node) -> None:
        """1009 comes from the header alone."""
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"x" * 100_001)[:10])
        opcode, payload = await peer.frame()
        assert (CLOSE, 1009) == (opcode, int.from_bytes(payload[:2], "big"))

    async def test_a_layer_above_that_fails(self, node: Node) -> None:
        """An exception is logged once and closes its connection with 1011; the next one is served."""

        def fail(connection: Connection, data: bytes) -> None:
            raise ValueError("secret")

        node.layer.on_message = fail
        peer = await node.opened()
        with capture_logs() as logs:
            await peer.send(client_frame(TEXT, b"1") + client_frame(TEXT, b"2"))
            assert await peer.frame() == (CLOSE, b"\x03\xf3")
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert await node.layer.hears() == ("message", b"1")
        await node.opened()

    async def test_a_layer_above_that_fails_at_the_request(self, node: Node) -> None:
        """An exception before the answer is a 500."""

        def fail(connection: Connection) -> None:
            raise ValueError("secret")

        node.layer.on_request = fail
        peer = await node.peer()
        with capture_logs() as logs:
            await peer.send(HEAD)
            assert (await peer.all())[9:12] == b"500"
        assert len(logs) == 1

    async def test_abort_unopened(self, node: Node) -> None:
        """A node that stops cuts what is not open; sessions close their own."""
        await node.opened()
        await node.peer()
        await until(lambda: node.gate.alive == 2)
        node.gate.abort_unopened()
        await until(lambda: node.gate.alive == 1)
        node.layer.connection.close(1001)
        node.gate.abort_unopened()
        assert await node.layer.hears() == ("closed", 1001, "", False)
