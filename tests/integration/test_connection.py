"""Connections over real sockets: handshake, frames, closing, slow consumers, and what counts as taken by the kernel."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from gateway_node.websocket.connection import Connection
from gateway_node.websocket.frames import close_frame, text_frame
from gateway_node.websocket.gate import Gate, Limits
from gateway_node.websocket.handshake import Request
from gateway_node.websocket.listener import ACCEPTS_PER_TURN, NOTSENT_LOWAT_BYTES, Listener, listening_socket, serve
from tests.unit.gateway.test_frames import client_frame

DEADLINE_S = 10
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
HEAD = (
    b"GET /websocket?a=1 HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIMITS = Limits(max_message=100_000, max_outbox_bytes=200_000, max_early_bytes=4096)

T = TypeVar("T")


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, DEADLINE_S)


class Layer:
    """The layer above: keeps what it is told, in order, and answers as a test wants it to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
        self.connection: Connection
        self.on_request: Callable[[Connection], object] = Connection.accept
        self.on_message: Callable[[Connection, bytes], object] = lambda connection, data: None

    def request_received(self, connection: Connection, request: Request) -> None:
        self.connection = connection
        self.told.put_nowait(("request", request.path))
        self.on_request(connection)

    def message_received(self, connection: Connection, data: bytes) -> None:
        self.told.put_nowait(("message", data))
        self.on_message(connection, data)

    def connection_closed(self, connection: Connection, code: int, reason: str, clean: bool) -> None:
        self.told.put_nowait(("closed", code, reason, clean))

    def drained(self, connection: Connection) -> None:
        self.told.put_nowait(("drained", connection.blocked, connection.outbox_bytes))

    async def hears(self) -> tuple[object, ...]:
        return await soon(self.told.get())


class Peer:
    """The client's end: a plain socket that reads only when asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._read = b""

    async def send(self, data: bytes) -> None:
        await soon(self._loop.sock_sendall(self.sock, data))

    async def take(self, size: int) -> bytes:
        while len(self._read) < size:
            data = await soon(self._loop.sock_recv(self.sock, 65536))
            if not data:
                raise EOFError(f"{len(self._read)} of {size} bytes")
            self._read += data
        taken, self._read = self._read[:size], self._read[size:]
        return taken

    async def head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await self.take(1)
        return head

    async def frame(self) -> tuple[int, bytes]:
        first, size = await self.take(2)
        assert first & 0xF0 == 0x80
        if size >= 126:
            size = int.from_bytes(await self.take(2 if size == 126 else 8), "big")
        return first & 0xF, await self.take(size)

    async def all(self) -> bytes:
        """Everything until the server closes its half."""
        data = self._read
        while more := await soon(self._loop.sock_recv(self.sock, 65536)):
            data += more
        return data

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Node:
    """A gate that listens, and peers of it."""

    def __init__(self) -> None:
        self.layer = Layer()
        self.binary: list[bytes] = []
        self.gate = Gate(self.layer, asyncio.get_running_loop(), LIMITS)
        self.sock = listening_socket("127.0.0.1", 0)
        self._peers: list[socket.socket] = []
        self.listener: Listener

    async def start(self) -> None:
        self.listener = await serve(self.gate, self.sock)

    async def peer(self, receive_buffer: int | None = None) -> Peer:
        sock = socket.socket()
        self._peers.append(sock)
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await soon(asyncio.get_running_loop().sock_connect(sock, self.sock.getsockname()))
        return Peer(sock)

    async def opened(self, receive_buffer: int | None = None) -> Peer:
        """A peer with an open WebSocket, whose server end is `layer.connection`."""
        peer = await self.peer(receive_buffer)
        await peer.send(HEAD)
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
        assert await self.layer.hears() == ("request", "/websocket")
        return peer

    async def turn(self) -> None:
        """Until what was sent in this turn of the loop has been flushed."""
        for _ in range(2):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self.listener.close()
        for sock in self._peers:
            sock.close()
        while self.gate.alive:
            self.gate.tick(float("inf"))
            await asyncio.sleep(0)


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    running = Node()
    await running.start()
    yield running
    await soon(running.stop())


class Counting:
    """A transport that counts its writes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


class TestOpening:
    async def test_messages_go_up_and_frames_come_down(self, node: Node) -> None:
        """After the 101 a text message reaches the layer above, and what it sends reaches the peer."""
        peer = await node.opened()
        await peer.send(client_frame(TEXT, b"up"))
        assert await node.layer.hears() == ("message", b"up")
        assert node.layer.connection.send(text_frame(b"down"))
        assert await peer.frame() == (TEXT, b"down")
        assert node.layer.connection.peer == "127.0.0.1"

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
        data = await soon(asyncio.get_running_loop().sock_recv(peer.sock, 65536))
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
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n")
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


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until the condition holds."""

    async def turn() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)

    await soon(turn())


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
