"""Senders and clients as a good application has them: retries under one requestId, acknowledgements, reconnects."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import orjson

from shared.backoff import Backoff
from tests.chaos.ledger import Ledger

_BATCH = 10
_HEARTBEAT_S = 1.0
_SILENCE_S = 4.0
_TRY_S = 8.0
_MOST_AT_ONCE = 60


class Sender:
    """Sends batches at a steady pace, each item tried until it is answered 200."""

    def __init__(
        self, http: aiohttp.ClientSession, urls: Callable[[], Sequence[str]], ledger: Ledger, clients: Sequence[str]
    ) -> None:
        self._http = http
        self._urls = urls
        self._ledger = ledger
        self._clients = itertools.cycle(clients)
        self._numbers = itertools.count(1)
        self._work: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self.under_way = 0
        self._name = f"{random.randrange(2**32):08x}"

    async def run(self, batches_a_second: float) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + 1 / batches_a_second, loop.time() - 1)
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._room.acquire()
            task = asyncio.create_task(self._send())
            self._work.add(task)
            task.add_done_callback(self._done)

    async def close(self) -> None:
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        self._room.release()

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        items = {}
        for _ in range(_BATCH):
            key, client_id = f"{self._name}-{next(self._numbers)}", next(self._clients)
            items[key] = {"to": client_id, "msg": {"key": key}, "requestId": key}
            self._ledger.begun(key, client_id, loop.time())
        self.under_way += 1
        backoff = Backoff(0.1, 1.0)
        try:
            while items:
                for key in await self._try(items):
                    self._ledger.answered(key, loop.time())
                    del items[key]
                if items:
                    await asyncio.sleep(backoff.next_s())
        finally:
            self.under_way -= 1

    async def _try(self, items: dict[str, Any]) -> list[str]:
        """The keys that were answered 200; half of the batches go one by one."""
        url = random.choice(self._urls())
        keys = list(items)
        try:
            async with asyncio.timeout(_TRY_S):
                if hash(keys[0]) % 2:
                    return [key for key in keys if await self._post(f"{url}/message/send", items[key]) == 200]
                async with self._http.post(
                    f"{url}/message/sendList", data=orjson.dumps(list(items.values()))
                ) as answer:
                    body = orjson.loads(await answer.read())
                    self._ledger.status(str(answer.status))
                    content = body["content"] or []
                    return [key for key, item in zip(keys, content, strict=False) if item["success"]]
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
            self._ledger.status(type(error).__name__)
            return []

    async def _post(self, url: str, item: object) -> int:
        async with self._http.post(url, data=orjson.dumps(item)) as answer:
            await answer.read()
            self._ledger.status(str(answer.status))
            return answer.status


class Client:
    """One client that always wants a session. `frozen`: it neither reads nor acknowledges while that is set."""

    def __init__(
        self, http: aiohttp.ClientSession, client_id: str, urls: Callable[[], Sequence[str]], ledger: Ledger
    ) -> None:
        self.client_id = client_id
        self.frozen = False
        self.connected = False
        self.closes: list[int] = []
        self._http = http
        self._urls = urls
        self._ledger = ledger
        self._place = random.randrange(100)

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                await self._session()
                backoff.reset()
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(backoff.next_s())
            self.connected = False

    async def _session(self) -> None:
        urls = self._urls()
        self._place += 1
        url = urls[self._place % len(urls)]
        async with asyncio.timeout(5.0):
            socket = await self._http.ws_connect(
                f"{url}?clientId={self.client_id}&ack=1", autoclose=True, timeout=_CLOSE
            )
        self.connected = True
        try:
            await self._read(socket)
        finally:
            transport = socket.get_extra_info("transport")
            if transport is not None:
                transport.abort()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        heard, beaten = loop.time(), 0.0
        while True:
            while self.frozen:
                await asyncio.sleep(0.1)
                heard = loop.time()
            if loop.time() - beaten > _HEARTBEAT_S:
                beaten = loop.time()
                await socket.send_str('{"msgType":3}')
            with suppress(TimeoutError):
                message = await socket.receive(timeout=_HEARTBEAT_S / 2)
                heard = loop.time()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    await self._closed(socket, message)
                    return
                await self._take(socket, message.data)
            if loop.time() - heard > _SILENCE_S:
                return

    async def _take(self, socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
        frame = orjson.loads(text)
        if frame["msgType"] != 1:
            return
        if frame["to"] != self.client_id:
            self._ledger.misdirected += 1
        now = asyncio.get_running_loop().time()
        self._ledger.arrived(frame["msg"]["key"], self.client_id, frame["messageId"], now)
        await socket.send_str('{"msgType":2,"messageId":"%s"}' % frame["messageId"])

    async def _closed(self, socket: aiohttp.ClientWebSocketResponse, message: aiohttp.WSMessage) -> None:
        code = socket.close_code or 1006
        self.closes.append(code)
        if code == 1001:
            with suppress(orjson.JSONDecodeError, KeyError, TypeError):
                await asyncio.sleep(orjson.loads(message.extra or "")["reconnectIn"] / 1000)


_CLOSE = aiohttp.ClientWSTimeout(ws_close=1.0)
