"""
A TCP proxy between two parts, with faults to switch on and off.

    delay        each piece of data waits, with jitter, and keeps its order
    reset        every connection is cut with RST, once (new ones are taken)
    half_open    data from the server is thrown away, data to it is not, and nobody is told
    black_hole   both ways; new connections are accepted and hear nothing
    refuse       the listener is closed and every connection is cut
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress

_RST = struct.pack("ii", 1, 0)  # SO_LINGER on with 0 s: close(2) resets the connection


class _Pair:
    """A client's connection and the one to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server

    def reset(self) -> None:
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            writer.transport.abort()


class Proxy:
    """Forwards `host:port` to a server. `port` 0 takes a free one."""

    def __init__(self, to_host: str, to_port: int, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self.delay_s = 0.0
        self.half_open = False
        self.black_hole = False
        self._to = (to_host, to_port)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._forward, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self.refuse()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refuse(self) -> None:
        """Until `start`, which takes the same port again."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        for pair in list(self._pairs):
            pair.reset()

    def heal(self) -> None:
        """No fault any more. What a half-open connection lost stays lost, so those that were are cut."""
        was_deaf = self.half_open or self.black_hole
        self.delay_s, self.half_open, self.black_hole = 0.0, False, False
        if was_deaf:
            self.reset()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._to)
        pair = _Pair(writer, server_writer)
        self._pairs.add(pair)
        try:
            up = asyncio.create_task(self._pump(reader, server_writer, from_server=False))
            down = asyncio.create_task(self._pump(server_reader, writer, from_server=True))
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if not self.black_hole and not self.half_open:
                await asyncio.wait((up, down), timeout=1.0)
            for pump in (up, down):
                pump.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        finally:
            self._pairs.discard(pair)
            for end in (writer, server_writer):
                end.transport.abort() if end.transport.is_closing() else end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool) -> None:
        with suppress(OSError, RuntimeError):  # uvloop raises RuntimeError for a transport that is closed
            while data := await reader.read(1 << 16):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s * random.uniform(0.5, 1.5))
                if self.black_hole or (self.half_open and from_server):
                    continue
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof() and not self.black_hole:
                writer.write_eof()
