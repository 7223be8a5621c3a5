"""A WebSocket client for tests: what it received, in order, and waits with a deadline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

DEADLINE_S = 20.0


class Client:
    """One connection. `frames` holds every text frame as (bytes, JSON)."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.frames: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.pings = 0
        self.pongs: list[bytes] = []
        self.close_reason = ""
        self._taken = 0
        self._more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                self.close_reason = str(message.extra or self.close_reason)
                if self.socket.closed:
                    break
            elif message.type == aiohttp.WSMsgType.ERROR:
                break
            elif message.type == aiohttp.WSMsgType.TEXT:
                self.raw.append(message.data.encode())
                self.frames.append(_loads(message.data))
            elif message.type == aiohttp.WSMsgType.PING:
                self.pings += 1
            elif message.type == aiohttp.WSMsgType.PONG:
                self.pongs.append(bytes(message.data))
            async with self._more:
                self._more.notify_all()
        async with self._more:
            self._more.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Until it holds; looked at after each frame and at the end of the connection."""
        async with asyncio.timeout(DEADLINE_S), self._more:
            await self._more.wait_for(holds)

    async def receive(self) -> dict[str, Any]:
        """The next frame not taken yet."""
        await self.until(lambda: len(self.frames) > self._taken)
        self._taken += 1
        return self.frames[self._taken - 1]

    async def receive_type(self, msg_type: int) -> dict[str, Any]:
        """The next frame of this msgType; others before it are passed over."""
        while True:
            frame = await self.receive()
            if frame.get("msgType") == msg_type:
                return frame

    @property
    def business(self) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame.get("msgType") == 1]

    async def until_business(self, count: int) -> list[dict[str, Any]]:
        """Until `count` business messages came in all."""
        await self.until(lambda: len(self.business) >= count)
        return self.business

    async def send(self, frame: object) -> None:
        await self.socket.send_str(frame if isinstance(frame, str) else orjson.dumps(frame).decode())

    async def ack(self, *message_ids: str) -> None:
        await self.send({"msgType": 2, "messageIds": list(message_ids)})

    async def closed(self) -> int:
        """Wait for the end of the connection; the close code."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.shield(self._reading)
        return self.socket.close_code or 0

    def abort(self) -> None:
        """Cut TCP without a close frame."""
        transport = self.socket.get_extra_info("transport")
        if transport is not None:
            transport.abort()

    async def close(self) -> None:
        await self.socket.close()
        async with asyncio.timeout(DEADLINE_S):
            await self._reading


def _loads(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)  # keeps numbers of any size
    return value


@asynccontextmanager
async def connected(
    http: aiohttp.ClientSession,
    url: str,
    *,
    protocols: tuple[str, ...] = (),
    headers: Mapping[str, str] | None = None,
    autoping: bool = True,
) -> AsyncIterator[Client]:
    """A connection whose upgrade was answered; the connection frame has not been read yet."""
    socket = await http.ws_connect(url, protocols=protocols, headers=headers, autoping=autoping, max_msg_size=0)
    client = Client(socket)
    try:
        yield client
    finally:
        await client.close()
