"""Senders and clients as a good application has them: retries under one requestId, acknowledgements, reconnects."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import orjson

from shared.backoff import Backoff
from tests.chaos.ledger import Ledger

_BATCH = 10
_HEARTBEAT_S = 1.0
_SILENCE_S = 4.0
_CONNECT_S = 5.0
_ASK_S = 2.0
_TRY_S = 8.0
_ABANDONED_S = 15.0
_MOST_AT_ONCE = 60
_MOST_BEHIND_S = 0.2
_BULK = "x" * 60_000


class Sender:
    """
    Sends at a steady pace, each item tried until it is answered 200.

    Clients in `bulk` get large messages. `pause` lets what is under way be answered and begins no more until `resume`.
    """

    def __init__(
        self, http: aiohttp.ClientSession, urls: Callable[[], Sequence[str]], ledger: Ledger, clients: Sequence[str]
    ) -> None:
        self.http = http
        self.urls = urls
        self._ledger = ledger
        self._everybody = clients
        self._clients = itertools.cycle(clients)
        self._numbers = itertools.count(1)
        self._work: set[asyncio.Task[None]] = set()
        self._name = f"{random.randrange(2**32):08x}"
        self._may_send = asyncio.Event()
        self._idle = asyncio.Event()
        self.bulk: frozenset[str] = frozenset()
        self.resume()
        self._idle.set()

    async def run(self, batches_a_second: float) -> None:
        """Batches to one client after the other. Until cancelled."""
        await self.keep_up(batches_a_second, lambda: self.send(self._next_items(), one_by_one=random.random() < 0.5))

    async def keep_up(self, times_a_second: float, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin this so often, unless too many are still at work. Until cancelled."""
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(_MOST_AT_ONCE)
        due = loop.time()
        while True:
            due += 1 / times_a_second
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._may_send.wait()
            await room.acquire()
            due = max(due, loop.time() - _MOST_BEHIND_S)  # after a pause or a full house: no burst
            self._idle.clear()
            task = asyncio.create_task(begin())
            self._work.add(task)
            task.add_done_callback(self._done)
            task.add_done_callback(lambda _: room.release())

    async def pause(self, deadline_s: float) -> int:
        """How much is still unanswered then."""
        self._may_send.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        return len(self._work)

    def resume(self) -> None:
        self._may_send.set()

    async def probe(self) -> int:
        """Send to every client; how many were said not to be online."""
        items: dict[str, Any] = {}
        for client_id in self._everybody:
            items |= self._item(client_id)
        offline: set[str] = set()
        await self.send(items, one_by_one=False, offline=offline)
        return len(offline)

    async def close(self) -> None:
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not self._work:
            self._idle.set()

    def _next_items(self) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for _ in range(_BATCH):
            items |= self._item(next(self._clients))
        return items

    def next_key(self) -> str:
        return f"{self._name}-{next(self._numbers)}"

    def _item(self, client_id: str) -> dict[str, Any]:
        key = self.next_key()
        msg = {"key": key}
        if client_id in self.bulk:
            msg["bulk"] = _BULK
        self._ledger.begun(key, (client_id,), asyncio.get_running_loop().time())
        return {key: {"to": client_id, "msg": msg, "requestId": key}}

    async def send(self, items: dict[str, Any], *, one_by_one: bool, offline: set[str] | None = None) -> None:
        """Until each is answered 200; to the keys of `offline` are added those of clients that are not online."""
        backoff = Backoff(0.1, 1.0)
        while True:
            await self._try(items, one_by_one=one_by_one, offline=offline)
            if not items:
                return
            await asyncio.sleep(backoff.next_s())

    async def _try(self, items: dict[str, Any], *, one_by_one: bool, offline: set[str] | None) -> None:
        """Once; takes out what was answered 200."""
        url = random.choice(self.urls())
        try:
            async with asyncio.timeout(_TRY_S):
                for keys in [[key] for key in items] if one_by_one else [list(items)]:
                    if one_by_one:
                        status, answer = await self._post(f"{url}/message/send", items[keys[0]])
                        answers = [answer]
                    else:
                        status, answer = await self._post(f"{url}/message/sendList", [items[key] for key in keys])
                        answers = answer["content"] if status == 200 else []
                    if not answers:
                        self._ledger.status(str(status))
                    for key, item in zip(keys, answers, strict=bool(answers)):
                        self._take_answer(key, item, items, offline)
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
            self._ledger.status(type(error).__name__)

    def _take_answer(self, key: str, answer: Any, items: dict[str, Any], offline: set[str] | None) -> None:
        self._ledger.status(str(answer["statusCode"]))
        if answer["statusCode"] != 200:
            return
        self._ledger.answered(key, asyncio.get_running_loop().time())
        del items[key]
        if answer["content"] and offline is not None:
            offline.add(key)

    async def _post(self, url: str, body: object) -> tuple[int, Any]:
        async with self.http.post(url, data=orjson.dumps(body)) as answer:
            return answer.status, orjson.loads(await answer.read())


class Client:
    """
    One client that always wants a session, and acknowledges unless it is `plain`.

    It goes round the nodes, or asks a dispatcher where to go, in turn. While `frozen` is set it neither reads nor
    answers anything; while `slow` is, it reads a message a second. A connection that falls silent is given up for
    another one, but not closed at once: what still comes on it is told to the ledger.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        client_id: str,
        node_urls: Callable[[], Sequence[str]],
        dispatcher_urls: Callable[[], Sequence[str]],
        ledger: Ledger,
        *,
        plain: bool = False,
    ) -> None:
        self.client_id = client_id
        self.plain = plain
        self._dialect = "" if plain else "&ack=1"
        self.frozen = False
        self.slow = False
        self.connected = False
        self.url = ""
        self._wanted_url = ""
        self._http = http
        self._node_urls = node_urls
        self._dispatcher_urls = dispatcher_urls
        self._ledger = ledger
        self._attempts = random.randrange(100)
        self._abandoned: set[asyncio.Task[None]] = set()

    def move(self, url: str) -> None:
        """To this node."""
        self.connected = False
        self._wanted_url = url

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff(0.1, 2.0)
        try:
            while True:
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    await self._session(backoff)
                self.connected = False
                await asyncio.sleep(backoff.next_s())
        finally:
            for task in self._abandoned:
                task.cancel()
            await asyncio.gather(*self._abandoned, return_exceptions=True)

    async def _session(self, backoff: Backoff) -> None:
        self.url = await self._where()
        async with asyncio.timeout(_CONNECT_S):
            socket = await self._http.ws_connect(
                f"{self.url}?clientId={self.client_id}{self._dialect}", autoping=False, timeout=_CLOSE, max_msg_size=0
            )
        given_up = False
        try:
            async with asyncio.timeout(_CONNECT_S):
                first = await socket.receive()
            if first.type is not aiohttp.WSMsgType.TEXT:
                return
            self.connected = True
            backoff.reset()
            session_id = orjson.loads(first.data)["sessionId"]
            given_up = await self._read(socket, session_id)
        finally:
            if given_up:
                self._own(self._listen(socket, session_id))
            else:
                _abort(socket)

    async def _where(self) -> str:
        """The URL of a node."""
        if self._wanted_url:
            url, self._wanted_url = self._wanted_url, ""
            return url
        self._attempts += 1
        if self._attempts % 2:
            url = random.choice(self._dispatcher_urls())
            with suppress(aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError, TypeError):
                async with (
                    asyncio.timeout(_ASK_S),
                    self._http.get(f"{url}/server/get?clientId={self.client_id}") as answer,
                ):
                    return str(orjson.loads(await answer.read())["content"]["url"])
        urls = self._node_urls()
        return urls[self._attempts // 2 % len(urls)]

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, session_id: str) -> bool:
        """Until it ends (False), or is silent for too long (True)."""
        loop = asyncio.get_running_loop()
        heard, beaten = loop.time(), 0.0
        while not self._wanted_url:
            if self.frozen or self.slow:
                await self._do_not_read(socket)
                heard = loop.time()
            if loop.time() - beaten > _HEARTBEAT_S:
                beaten = loop.time()
                await socket.send_str('{"msgType":3}')
            with suppress(TimeoutError):
                message = await socket.receive(timeout=_HEARTBEAT_S / 2)
                heard = loop.time()
                if message.type is aiohttp.WSMsgType.TEXT:
                    await self._take(socket, session_id, message.data)
                elif message.type is aiohttp.WSMsgType.PING:
                    await socket.pong(message.data)
                else:
                    await self._closed(socket, message)
                    return False
            if loop.time() - heard > _SILENCE_S:
                return True
        return False

    async def _do_not_read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Nothing is taken out of the kernel either."""
        transport = _transport(socket)
        if transport is None or transport.is_closing():
            return
        transport.pause_reading()
        await asyncio.sleep(0.1 if self.frozen else 0.9)
        while self.frozen:  # noqa: ASYNC110 - tests set it by hand
            await asyncio.sleep(0.1)
        if not transport.is_closing():
            transport.resume_reading()
        await asyncio.sleep(0)

    async def _take(self, socket: aiohttp.ClientWebSocketResponse, session_id: str, text: str) -> None:
        frame = orjson.loads(text)
        if frame["msgType"] != 1:
            return
        if frame["to"] != self.client_id or frame["sessionId"] != session_id:
            self._ledger.misdirected += 1
        now = asyncio.get_running_loop().time()
        self._ledger.arrived(frame["msg"]["key"], self.client_id, session_id, frame["messageId"], now)
        if not self.plain:
            await socket.send_str('{"msgType":2,"messageId":"%s"}' % frame["messageId"])

    async def _closed(self, socket: aiohttp.ClientWebSocketResponse, message: aiohttp.WSMessage) -> None:
        """As 1001 asks: it tells how long to wait before the next connection."""
        if socket.close_code == 1001:
            self.connected = False
            with suppress(orjson.JSONDecodeError, KeyError, TypeError):
                await asyncio.sleep(orjson.loads(message.extra or "")["reconnectIn"] / 1000)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse, session_id: str) -> None:
        """To a connection that was given up."""
        try:
            async with asyncio.timeout(_ABANDONED_S):
                while True:
                    message = await socket.receive()
                    if message.type is aiohttp.WSMsgType.TEXT:
                        frame = orjson.loads(message.data)
                        if frame["msgType"] == 1:
                            self._ledger.on_abandoned(frame["msg"]["key"], self.client_id, session_id)
                    elif message.type is not aiohttp.WSMsgType.PING:
                        return
        except (TimeoutError, aiohttp.ClientError, OSError):
            return
        finally:
            _abort(socket)


def _abort(socket: aiohttp.ClientWebSocketResponse) -> None:
    transport = _transport(socket)
    if transport is not None:
        transport.abort()


def _transport(socket: aiohttp.ClientWebSocketResponse) -> asyncio.Transport | None:
    """aiohttp has no public way to it."""
    connection = socket._response.connection
    return connection.transport if connection is not None else None


_CLOSE = aiohttp.ClientWSTimeout(ws_close=1.0)
