"""A layer above, a peer and a node around real connections, for tests of the WebSocket side."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from gateway_node.websocket.connection import Connection
from gateway_node.websocket.gate import Gate, Limits
from gateway_node.websocket.handshake import Request
from gateway_node.websocket.listener import Listener, listening_socket, serve
from shared.tls import ServerTls
from tests.harness.certificates import Authority

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
        self.limits: list[str] = []
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

    def limit_exceeded(self, connection: Connection, limit: str) -> None:
        self.limits.append(limit)

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

    def sealed(self, data: bytes) -> bytes:
        """The bytes on the wire, to be sent by hand."""
        return data

    async def take(self, size: int) -> bytes:
        while len(self._read) < size:
            data = await self.more()
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
        while more := await self.more():
            data += more
        return data

    async def more(self) -> bytes:
        """What comes next; b"" at the end."""
        return await soon(self._loop.sock_recv(self.sock, 65536))

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class TlsPeer(Peer):
    """The same behind TLS."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        self.ended = False  # by the word of the other end

    async def shake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
        await self._flush()

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self._flush()

    def sealed(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()

    async def more(self) -> bytes:
        while True:
            try:
                data = self.tls.read(65536)
                self.ended = not data
                return data
            except ssl.SSLWantReadError:
                if not await self._feed():
                    return b""

    async def say_all(self) -> None:
        """Close TLS, and leave TCP be."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()

    async def _flush(self) -> None:
        await super().send(self._outgoing.read())

    async def _feed(self) -> bytes:
        data = await super().more()
        self._incoming.write(data)
        return data


class Node:
    """A gate that listens, and peers of it. With `authority` both speak TLS."""

    def __init__(self, authority: Authority | None = None, limits: Limits = LIMITS, **options: Any) -> None:
        self.layer = Layer()
        self.binary: list[bytes] = []
        self._client_context = None if authority is None else authority.client_context()
        if authority is not None:
            pair = authority.sign()
            options["tls"] = ServerTls(pair.cert, pair.key).context
        self.gate = Gate(self.layer, asyncio.get_running_loop(), limits, **options)
        self.sock = listening_socket("127.0.0.1", 0)
        self._peers: list[socket.socket] = []
        self.listener: Listener

    async def start(self) -> None:
        self.listener = await serve(self.gate, self.sock)

    async def peer(self, receive_buffer: int | None = None) -> Peer:
        return await self.begin(await self.bare_peer(receive_buffer))

    async def begin(self, peer: Peer) -> Peer:
        """Behind TLS, if the node speaks that."""
        if self._client_context is None:
            return peer
        secure = TlsPeer(peer.sock, self._client_context)
        await secure.shake()
        return secure

    async def bare_peer(self, receive_buffer: int | None = None, source: str = "127.0.0.1") -> Peer:
        """A TCP connection and no more."""
        sock = socket.socket()
        self._peers.append(sock)
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((source, 0))
        await soon(asyncio.get_running_loop().sock_connect(sock, self.sock.getsockname()))
        return Peer(sock)

    async def opened(
        self, receive_buffer: int | None = None, *, source: str = "127.0.0.1", header: bytes = b""
    ) -> Peer:
        """A peer with an open WebSocket, whose server end is `layer.connection`. `header` goes first."""
        peer = await self.bare_peer(receive_buffer, source)
        await peer.send(header)
        peer = await self.begin(peer)
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


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until the condition holds."""

    async def turn() -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)

    await soon(turn())
