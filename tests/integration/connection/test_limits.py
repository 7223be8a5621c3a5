"""A connection that is held, and one that is cut: how little what still comes can do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway_node.websocket.gate import Limits
from gateway_node.websocket.pace import too_fast
from tests.harness.connection import CLOSE, PING, PONG, TEXT, Node, Peer, soon, until
from tests.unit.gateway.test_frames import client_frame

_MOST_BEHIND = 64 << 20


@asynccontextmanager
async def limited(**limits: float) -> AsyncIterator[Node]:
    node = Node(limits=Limits(**limits))  # type: ignore[arg-type]
    await node.start()
    yield node
    await soon(node.stop())


async def told(node: Node) -> list[object]:
    """The messages that were handed up, once the loop has nothing left to do."""
    for _ in range(20):
        await node.turn()
    return [node.layer.told.get_nowait()[1] for _ in range(node.layer.told.qsize())]


class TestHolding:
    async def test_nothing_is_handed_up_until_it_is_released(self, node: Node) -> None:
        """Not what came in the same read, nor what comes later; then all of it, in order, pings among it answered."""
        node.layer.on_message = lambda connection, data: connection.hold() if data == b"stop" else None
        peer = await node.opened()
        await peer.send(b"".join(client_frame(TEXT, data) for data in (b"a", b"stop", b"b")) + client_frame(PING, b"?"))
        assert [b"a", b"stop"] == [(await node.layer.hears())[1] for _ in range(2)]
        await peer.send(client_frame(TEXT, b"c") + client_frame(TEXT, b"d"))
        assert [] == await told(node)
        assert node.layer.connection.held
        node.layer.connection.release()
        assert [b"b", b"c", b"d"] == [(await node.layer.hears())[1] for _ in range(3)]
        assert (PONG, b"?") == await peer.frame()
        assert not node.layer.connection.held

    async def test_it_may_be_held_again_and_again(self, node: Node) -> None:
        """With each message, of many that came in one read."""
        node.layer.on_message = lambda connection, data: connection.hold()
        peer = await node.opened()
        await peer.send(b"".join(client_frame(TEXT, b"%d" % number) for number in range(50)))
        for number in range(50):
            assert ("message", b"%d" % number) == await node.layer.hears()
            assert [] == await told(node)
            node.layer.connection.release()
        await peer.send(client_frame(TEXT, b"last"))
        assert ("message", b"last") == await node.layer.hears()
        node.layer.connection.release()

    async def test_the_peer_waits_in_the_end(self, node: Node) -> None:
        """What is not read fills the kernel's buffers and then blocks the sender: the node keeps none of it."""
        node.layer.on_message = lambda connection, data: connection.hold()
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"a"))
        assert ("message", b"a") == await node.layer.hears()
        assert await fill(peer, client_frame(TEXT, b"b" * 1000)) < _MOST_BEHIND
        assert [] == await told(node)
        node.layer.connection.abort()

    async def test_a_held_connection_ends(self, node: Node) -> None:
        """Whoever closes it: the layer above hears of it once, and a late release does nothing."""
        node.layer.on_message = lambda connection, data: connection.hold()
        peer = await node.opened()
        connection = node.layer.connection
        await peer.send(client_frame(TEXT, b"a") + client_frame(CLOSE, b"\x03\xe8"))
        assert ("message", b"a") == await node.layer.hears()
        connection.release()
        assert ("closed", 1000, "", True) == await node.layer.hears()
        connection.release()
        assert [] == await told(node)

    async def test_a_held_connection_is_closed_from_above(self, node: Node) -> None:
        """What it held is dropped; the peer's answer is read once it is released."""
        node.layer.on_message = lambda connection, data: connection.hold()
        peer = await node.opened()
        connection = node.layer.connection
        await peer.send(client_frame(TEXT, b"a") + client_frame(TEXT, b"b"))
        assert ("message", b"a") == await node.layer.hears()
        connection.close(4002, "kicked")
        assert CLOSE == (await peer.frame())[0]
        await peer.send(client_frame(CLOSE, b"\x0f\xa2"))
        connection.release()
        assert ("closed", 4002, "kicked", True) == await node.layer.hears()

    async def test_a_violation_behind_what_is_held(self, node: Node) -> None:
        """The connection ends at once, and what was held goes with it."""
        node.layer.on_message = lambda connection, data: connection.hold()
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"a") + client_frame(TEXT, b"b") + b"\xc1\x80")
        assert ("message", b"a") == await node.layer.hears()
        assert CLOSE == (await peer.frame())[0]
        node.layer.connection.release()
        assert [] == await told(node)


class TestCutting:
    async def test_nothing_is_looked_at_behind_it(self, node: Node) -> None:
        """Messages of the same read and later ones are dropped, pings are not answered; the peer gets the reason."""
        node.layer.on_message = lambda connection, data: connection.cut(4029, "enough")
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"a") + client_frame(TEXT, b"b") + client_frame(PING, b""))
        assert ("message", b"a") == await node.layer.hears()
        assert (CLOSE, b"\x0f\xbdenough") == await peer.frame()
        await peer.send(client_frame(TEXT, b"c") + client_frame(PING, b""))
        assert b"" == await peer.all()
        assert [] == await told(node)
        peer.sock.close()
        assert ("closed", 4029, "enough", False) == await node.layer.hears()

    async def test_who_goes_on_is_not_even_read(self, node: Node) -> None:
        """A flood behind the close frame waits in the kernel, until the connection is cut at its deadline."""
        node.layer.on_message = lambda connection, data: connection.cut(4029, "enough")
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"a"))
        assert ("message", b"a") == await node.layer.hears()
        assert await fill(peer, bytes(65536)) < _MOST_BEHIND
        node.gate.tick(node.layer.now + 5.0)
        assert ("closed", 4029, "enough", False) == await node.layer.hears()
        await until(lambda: node.gate.alive == 0)


class TestLimits:
    async def test_bytes(self) -> None:
        """4029 with the limit and the wait in the reason; the layer above is told which."""
        async with limited(byte_rate=1000) as node:
            peer = await node.opened()
            await peer.send(client_frame(TEXT, bytes(4900)))
            await node.layer.hears()
            await peer.send(client_frame(TEXT, bytes(1000)))
            opcode, payload = await peer.frame()
            assert (CLOSE, 4029) == (opcode, int.from_bytes(payload[:2], "big"))
            assert {"limit": "bytes", "reconnectIn": 5916} == json.loads(payload[2:])
            assert ["bytes"] == node.layer.limits

    async def test_pings(self) -> None:
        """As many as allowed are answered."""
        async with limited(control_rate=10) as node:
            peer = await node.opened()
            await peer.send(client_frame(PING, b"") * 51)
            assert [(PONG, b"")] * 50 == [await peer.frame() for _ in range(50)]
            assert (CLOSE, b"\x0f\xbd" + too_fast("pings", 5.1).encode()) == await peer.frame()
            assert ["pings"] == node.layer.limits

    async def test_the_clock_is_the_one_above(self) -> None:
        """What was spent comes back as time goes by."""
        async with limited(control_rate=10) as node:
            peer = await node.opened()
            for _ in range(5):
                await peer.send(client_frame(PING, b"") * 50)
                assert [(PONG, b"")] * 50 == [await peer.frame() for _ in range(50)]
                node.layer.now += 5.0
            assert [] == node.layer.limits


async def fill(peer: Peer, data: bytes) -> int:
    """Send until the kernel has taken nothing for a moment; how many bytes it took."""
    taken, since = 0, time.monotonic()
    while taken < _MOST_BEHIND and time.monotonic() - since < 0.5:
        try:
            taken += peer.sock.send(data)
            since = time.monotonic()
        except BlockingIOError:
            await asyncio.sleep(0.001)
    return taken
