"""Frames on their way to the kernel: one write a turn, bounded, and the truth about what was taken."""

from __future__ import annotations

import asyncio

from gateway_node.websocket.frames import text_frame
from tests.harness.connection import CLOSE, LIMITS, PING, PONG, TEXT, Counting, Node, soon, until
from tests.unit.gateway.test_frames import client_frame


class TestSending:
    async def test_one_write_a_turn(self, node: Node) -> None:
        """All frames of one turn of the loop go out in one write, in order."""
        peer = await node.opened()
        connection = node.layer.connection
        counting = Counting(connection._transport)  # type: ignore[arg-type]
        connection._transport = counting  # type: ignore[assignment]
        frames = [text_frame(b"%d" % n) for n in range(50)]
        for frame in frames:
            connection.send(frame)
        assert counting.writes == []
        assert connection.outbox_bytes == sum(map(len, frames))
        await node.turn()
        assert counting.writes == [b"".join(frames)]
        assert connection.outbox_bytes == 0
        connection.send(frames[0])
        await node.turn()
        assert counting.writes[1:] == frames[:1]
        assert await peer.take(len(counting.writes[0]) + len(frames[0])) == b"".join(counting.writes)

    async def test_send_now(self, node: Node) -> None:
        """Writes at once when nothing waits to go first, else behind it; a dead socket takes nothing."""
        peer = await node.opened()
        connection = node.layer.connection
        counting = Counting(connection._transport)  # type: ignore[arg-type]
        connection._transport = counting  # type: ignore[assignment]
        assert connection.send_now(text_frame(b"1"))
        assert counting.writes == [text_frame(b"1")]
        connection.send(text_frame(b"2"))
        assert connection.send_now(text_frame(b"3"))
        assert counting.writes == [text_frame(b"1")]
        await node.turn()
        assert counting.writes[1:] == [text_frame(b"2") + text_frame(b"3")]
        assert [await peer.frame() for _ in range(3)] == [(TEXT, b"1"), (TEXT, b"2"), (TEXT, b"3")]
        peer.reset()
        connection.send_now(text_frame(b"4"))
        assert connection.outbox_bytes > 0

    async def test_taken_by_the_kernel(self, node: Node) -> None:
        """Blocked as soon as the kernel refuses bytes; drained when it has taken all, of the frames in between too."""
        peer = await node.opened(receive_buffer=8192)
        connection = node.layer.connection
        connection.send(text_frame(b"small"))
        await node.turn()
        assert (connection.blocked, connection.outbox_bytes) == (False, 0)
        big = text_frame(b"x" * 150_000)
        connection.send(big)
        await node.turn()
        assert connection.blocked
        assert 0 < connection.outbox_bytes < len(big)
        before = connection.outbox_bytes
        connection.send(text_frame(b"between"))
        await node.turn()
        assert before + 9 == connection.outbox_bytes
        expected = text_frame(b"small") + big + text_frame(b"between")
        assert expected == await peer.take(len(expected))
        assert await node.layer.hears() == ("drained", False, 0)
        assert node.layer.told.empty()

    async def test_a_slow_consumer(self, node: Node) -> None:
        """
        Beyond the bound the outbox is dropped and 4008 offered: a peer that reads again gets whole frames, then the
        close frame. The connection never counts as drained again.
        """
        peer = await node.opened(receive_buffer=8192)
        connection = node.layer.connection
        frame = text_frame(b"x" * 1000)
        sent = 0
        while connection.send(frame):
            sent += 1
            await node.turn()
        assert not connection.open
        assert connection.blocked
        assert connection.outbox_bytes >= LIMITS.max_outbox_bytes
        got = 0
        while (received := await peer.frame()) == (TEXT, b"x" * 1000):
            got += 1
        assert received == (CLOSE, (4008).to_bytes(2, "big") + b"slow consumer")
        assert 0 < got < sent
        assert connection.blocked
        await peer.send(client_frame(CLOSE, b"\x0f\xa8"))
        assert await node.layer.hears() == ("closed", 4008, "slow consumer", True)

    async def test_a_slow_consumer_that_stays_slow(self, node: Node) -> None:
        """4008 is offered until the close deadline, then the connection is cut."""
        await node.opened(receive_buffer=8192)
        connection = node.layer.connection
        while connection.send(text_frame(b"x" * 1000)):
            await node.turn()
        node.gate.tick(node.layer.now + 4.9)
        await node.turn()
        assert node.gate.alive == 1
        node.gate.tick(node.layer.now + 5.0)
        assert await node.layer.hears() == ("closed", 4008, "slow consumer", False)
        assert connection.outbox_bytes > 0

    async def test_the_bound_holds_within_one_turn(self, node: Node) -> None:
        """A layer above that sends without end in one turn of the loop fills no more memory than over many."""
        await node.opened(receive_buffer=8192)
        connection = node.layer.connection
        frames = 0
        while connection.send(text_frame(b"x" * 1000)):
            frames += 1
            assert frames < 10_000
        assert not connection.open
        assert frames * 1004 < 3_000_000

    async def test_a_reader_that_keeps_up(self, node: Node) -> None:
        """Any amount reaches a peer that reads, as long as the layer above heeds `blocked`."""
        peer = await node.opened()
        connection = node.layer.connection
        reading = asyncio.create_task(peer.take(1000 * 1003))
        for _ in range(20):
            for _ in range(50):
                assert connection.send(text_frame(b"x" * 999))
            await until(lambda: not connection.blocked and not connection.outbox_bytes)
        await soon(reading)

    async def test_blocked_at_the_first_byte(self, node: Node) -> None:
        """However little the kernel refuses, the connection is blocked while it does."""
        await node.opened(receive_buffer=8192)
        connection = node.layer.connection
        while not connection.outbox_bytes:
            assert not connection.blocked
            assert connection.send(text_frame(b"x" * 500))
            await node.turn()
        assert connection.blocked
        assert connection.outbox_bytes <= 504

    async def test_a_dead_socket_takes_nothing(self, node: Node) -> None:
        """What is written to a socket that was reset counts as not taken, also before the loss is heard of."""
        peer = await node.opened()
        connection = node.layer.connection
        peer.reset()
        connection.send(text_frame(b"lost"))
        connection.flush()
        assert connection.blocked
        assert connection.outbox_bytes > 0
        assert await node.layer.hears() == ("closed", 1006, "", False)
        assert connection.outbox_bytes > 0

    async def test_what_a_closing_connection_is_given_is_not_taken(self, node: Node) -> None:
        """A frame that `send` refuses is never counted as taken."""
        peer = await node.opened()
        connection = node.layer.connection
        connection.close()
        assert not connection.send(text_frame(b"x"))
        assert await peer.frame() == (CLOSE, b"\x03\xe8")
        assert connection.blocked
        assert connection.outbox_bytes == 3

    async def test_bytes_in_the_transport_are_lost_with_it(self, node: Node) -> None:
        """A blocked connection that is cut stays blocked: its bytes were not taken."""
        peer = await node.opened(receive_buffer=8192)
        connection = node.layer.connection
        connection.send(text_frame(b"x" * 150_000))
        await node.turn()
        peer.reset()
        assert await node.layer.hears() == ("closed", 1006, "", False)
        assert connection.blocked
        assert connection.outbox_bytes > 0

    async def test_pings(self, node: Node) -> None:
        """Each ping has its pong, in order; bytes of any kind are activity."""
        peer = await node.opened()
        node.layer.now = 250.0
        await peer.send(b"".join(client_frame(PING, bytes([n])) for n in range(20)))
        assert [await peer.frame() for _ in range(20)] == [(PONG, bytes([n])) for n in range(20)]
        assert node.layer.connection.seen == 250.0

    async def test_a_ping_flood_fills_nothing(self, node: Node) -> None:
        """While the kernel takes nothing only the latest ping is answered (RFC 6455 section 5.5.3)."""
        peer = await node.opened(receive_buffer=8192)
        connection = node.layer.connection
        big = text_frame(b"x" * 150_000)
        connection.send(big)
        await node.turn()
        before = connection.outbox_bytes
        await peer.send(b"".join(client_frame(PING, b"%03d" % n) for n in range(1000)) + client_frame(TEXT, b"end"))
        assert await node.layer.hears() == ("message", b"end")
        assert before == connection.outbox_bytes
        await peer.take(len(big))
        assert await peer.frame() == (PONG, b"999")
