"""
A WebSocket client that reads as slowly as it is told to, on a plain socket with a small receive buffer.

Kernels of clients that read slowly buffer megabytes otherwise, each another amount, and nothing would be seen of them.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import orjson

DEADLINE_S = 60.0
_BUFFER = 16384
_PIECE = 4096


class Reader:
    """`brisk` is set: it reads as fast as it can; else a piece each `pause_s`. `closed` is the close code, 0 so far."""

    def __init__(self, sock: socket.socket, pause_s: float) -> None:
        self.brisk = asyncio.Event()
        self.closed = 0
        self._ended = False
        self._sock = sock
        self._pause_s = pause_s
        self._bytes = bytearray()
        self._frames: list[dict[str, Any]] = []
        self._more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @property
    def numbers(self) -> list[int]:
        """The `n` of each business message, in the order in which they came."""
        return [frame["msg"]["n"] for frame in self._frames if frame.get("msgType") == 1]

    async def until(self, count: int) -> None:
        """Until so many business messages came, or the node closed."""
        async with asyncio.timeout(DEADLINE_S), self._more:
            await self._more.wait_for(lambda: self.closed or self._ended or len(self.numbers) >= count)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        self._sock.close()

    async def _read(self) -> None:
        with suppress(ConnectionError):
            while data := await asyncio.get_running_loop().sock_recv(self._sock, _PIECE):
                self._bytes += data
                if self._take_frames():
                    await self._tell()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s):
                        await self.brisk.wait()
        self._ended = True
        await self._tell()

    async def _tell(self) -> None:
        async with self._more:
            self._more.notify_all()

    def _take_frames(self) -> bool:
        taken = False
        while len(self._bytes) >= 4:
            size, start = self._bytes[1], 2
            if size >= 126:
                start = 4 if size == 126 else 10
                size = int.from_bytes(self._bytes[2:start], "big")
            if len(self._bytes) < start + size:
                break
            payload = bytes(self._bytes[start : start + size])
            if self._bytes[0] == 0x81:
                self._frames.append(orjson.loads(payload))
            elif self._bytes[0] == 0x88:
                self.closed = int.from_bytes(payload[:2], "big") or 1005
            del self._bytes[: start + size]
            taken = True
        return taken


async def open_reader(port: int, client_id: str, *, pause_s: float) -> Reader:
    """Connected, its connection frame still to be read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE_S):
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(
            sock,
            f"GET /websocket?clientId={client_id} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await loop.sock_recv(sock, 1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return Reader(sock, pause_s)
