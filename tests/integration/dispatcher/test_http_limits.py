"""What the HTTP port bounds: connections, heads, bodies, requests under way, failures; and what that costs others."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from dispatcher.key_file import digest_of
from pushfleet.local_valkey import LocalValkey
from tests.harness.dispatcher import DEADLINE_S, Caller, DispatcherProcess, running_dispatcher

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMITS = {
    "PUSH_HTTP_MAX_BODY": "2048",
    "PUSH_HTTP_MAX_HEAD": "4096",
    "PUSH_HTTP_MAX_HEADERS": "20",
    "PUSH_HTTP_MAX_IN_FLIGHT": "3",
    "PUSH_HTTP_MAX_CONNECTIONS": "24",
    "PUSH_HTTP_ADDRESS_CONNECTIONS": "16",
    "PUSH_HTTP_HEADER_TIMEOUT": "0.5",
    "PUSH_HTTP_BODY_TIMEOUT": "0.5",
    "PUSH_HTTP_KEEPALIVE": "3",
    "PUSH_AUTH_FAILURES": "5",
    "PUSH_TRUSTED_PROXIES": "127.0.0.64/26",
}
HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(valkey: LocalValkey, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DispatcherProcess]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = [
        {"name": "billing", "sha256": digest_of("billing-key").hex(), "scopes": ["send"]},
        {"name": "slow", "sha256": digest_of("slow-key").hex(), "scopes": ["send", "broadcast"], "rate": 0.001},
    ]
    path.write_text(json.dumps({"keys": keys}))
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(path), "PUSH_HTTP_HOST": "0.0.0.0", **LIMITS}
    async with running_dispatcher(valkey.url, "http-limits", **environ) as running:
        await running.until("ready")
        yield running


class Wire:
    """A connection to the port, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with lower-case names, body."""
        async with asyncio.timeout(DEADLINE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            return int(status.split()[1]), headers, await self._reader.readexactly(int(headers["content-length"]))

    async def ended(self) -> bytes:
        """What came until the other side closed."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def wire(dispatcher: DispatcherProcess, local: str = "127.0.0.1") -> AsyncIterator[Wire]:
    port = int(dispatcher.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(local, 0))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


async def metric(dispatcher: DispatcherProcess, name: str) -> float:
    async with wire(dispatcher) as line:
        line.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        _, _, body = await line.answer()
    found = re.search(rf"^{re.escape(name)} (\S+)$", body.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


async def refused(dispatcher: DispatcherProcess, limit: str) -> float:
    return await metric(dispatcher, f'push_dispatcher_refused_total{{limit="{limit}"}}')


def post(body: bytes, key: str = "billing-key", *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST /message/send HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


async def until_connections(dispatcher: DispatcherProcess, count: int) -> None:
    """Until there are so many beside the one that asks."""
    async with asyncio.timeout(DEADLINE_S):
        while await metric(dispatcher, "push_http_connections") != count + 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def until_in_flight(dispatcher: DispatcherProcess, count: int) -> None:
    """Until so many requests are under way, with the one that asks."""
    async with asyncio.timeout(DEADLINE_S):
        while await metric(dispatcher, "push_http_in_flight") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begin", [b"", b"GET /heal", HEAD, HEAD + b"\r\n" + HEAD], ids=["none", "line", "head", "next"]
)
async def test_a_head_that_does_not_come_ends_the_connection(limited: DispatcherProcess, begin: bytes) -> None:
    """Slowloris: a byte now and then does not help. Who sent something is told 408; a silent one is just cut."""
    before = await refused(limited, "header_time")
    async with wire(limited) as line:
        if begin.count(HEAD) == 2:
            line.send(HEAD + b"\r\n")
            assert 200 == (await line.answer())[0]
            begin = HEAD
        dripping = asyncio.create_task(drip(line, begin))
        try:
            text = await line.ended()
        finally:
            dripping.cancel()
    assert begin[:0] + (b"HTTP/1.1 408" if begin else b"") == text[:12]
    assert before + 1 == await refused(limited, "header_time")


async def drip(line: Wire, begin: bytes) -> None:
    """Never a whole head."""
    line.send(begin)
    while begin:
        await asyncio.sleep(0.05)
        line.send(b"a")


async def test_a_connection_that_is_idle_between_requests_is_kept(limited: DispatcherProcess) -> None:
    """For PUSH_HTTP_KEEPALIVE, which is longer than a head may take; then it is closed without a word."""
    async with wire(limited) as line:
        for _ in range(2):
            line.send(HEAD + b"\r\n")
            assert 200 == (await line.answer())[0]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await line.ended()
        assert b"" == await line.ended()


async def test_a_body_may_take_longer_than_a_head(limited: DispatcherProcess) -> None:
    """Its own time is bounded: 408, and the connection ends as the rest of it cannot be read past."""
    before = await refused(limited, "body_time")
    async with wire(limited) as line:
        line.send(post(b'{"to":', length=100))
        status, _, body = await line.answer()
        assert (408, "the body did not arrive within 0.5 s") == (status, json.loads(body)["msg"])
    assert before + 1 == await refused(limited, "body_time")


@pytest.mark.parametrize(
    "lines",
    [
        b"A: " + b"x" * 5000,
        b"x" * 5000 + b": a",
        b"\r\n".join(b"A%d: %s" % (number, b"x" * 400) for number in range(15)),
        b"\r\n".join(b"A%d: x" % number for number in range(25)),
    ],
    ids=["value", "name", "all", "count"],
)
@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_head_is_bounded(limited: DispatcherProcess, lines: bytes, pieces: int) -> None:
    """In bytes and in lines, whether it comes at once or in pieces: 431."""
    before = await refused(limited, "header_size")
    head = HEAD + lines + b"\r\n\r\n"
    async with wire(limited) as line:
        for place in range(pieces):
            part = len(head) // pieces + 1
            line.send(head[place * part : (place + 1) * part])
            await asyncio.sleep(0.01 if pieces > 1 else 0)
        text = await line.ended()
    assert re.match(rb"HTTP/1.[01] 431 ", text)
    assert b"X-Content-Type-Options: nosniff\r\n" in text
    assert before + 1 == await refused(limited, "header_size")


async def test_a_target_is_bounded(limited: DispatcherProcess) -> None:
    """It is part of the head."""
    async with wire(limited) as line:
        line.send(b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert re.match(rb"HTTP/1.[01] 431 ", await line.ended())


async def test_what_is_no_http_is_answered_in_four_fields(limited: DispatcherProcess) -> None:
    """400, without a word of what serves here; the log says at most once a second that it happens."""
    for junk in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        async with wire(limited) as line:
            line.send(junk)
            status, headers, body = await line.answer()
            assert (400, False, 400) == (status, json.loads(body)["success"], json.loads(body)["statusCode"])
            assert "pushfleet" == headers["server"]
            assert b"" == await line.ended()


# -- connections -----------------------------------------------------------------------------------------------------


async def test_connections_of_an_address_are_bounded(limited: DispatcherProcess) -> None:
    """One more is told 503 and closed; another address is let in; who leaves makes room."""
    await until_connections(limited, 0)
    before = await refused(limited, "address_connections")
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(wire(limited)) for _ in range(16)]
        for line in lines:
            line.send(HEAD + b"\r\n")
            assert 200 == (await line.answer())[0]
        async with wire(limited) as one_more:
            assert (await one_more.ended()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        async with wire(limited, "127.0.0.2") as other:
            other.send(HEAD + b"\r\n")
            assert 200 == (await other.answer())[0]
    await until_connections(limited, 0)
    assert before + 1 <= await refused(limited, "address_connections")


async def test_connections_are_bounded(limited: DispatcherProcess) -> None:
    """Over all addresses."""
    await until_connections(limited, 0)
    before = await refused(limited, "connections")
    async with AsyncExitStack() as stack:
        for number in range(24):
            line = await stack.enter_async_context(wire(limited, f"127.0.0.{2 + number % 3}"))
            line.send(HEAD + b"\r\n")
            assert 200 == (await line.answer())[0]
        async with wire(limited, "127.0.0.9") as one_more:
            assert (await one_more.ended()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    await until_connections(limited, 0)
    assert before + 1 <= await refused(limited, "connections")


async def test_a_proxy_brings_many(limited: DispatcherProcess) -> None:
    """Its connections are not bounded as one client's, and failures behind it are those of who sent them."""
    body = b'{"to":"alice","msg":1}'
    await until_connections(limited, 0)
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(wire(limited, "127.0.0.65")) for _ in range(20)]
        found: dict[str, set[int]] = {"10.0.0.1": set(), "10.0.0.2": set()}
        for place, line in enumerate(lines):
            client = "10.0.0.2" if place % 10 == 9 else "10.0.0.1"
            line.send(post(body, "guessed").replace(b"Host", b"X-Forwarded-For: 1.2.3.4, %s\r\nHost" % client.encode()))
            found[client].add((await line.answer())[0])
        assert {"10.0.0.1": {401, 429}, "10.0.0.2": {401}} == found
    await until_connections(limited, 0)


# -- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["at once", "told before", "chunked", "chunked in pieces"])
async def test_a_body_is_bounded(limited: DispatcherProcess, sent: str) -> None:
    """413, whether its size is told before or comes out as it arrives."""
    before = await refused(limited, "body")
    async with wire(limited) as line:
        if sent.startswith("chunked"):
            head = b"POST /message/send HTTP/1.1\r\nHost: x\r\nX-API-Key: billing-key\r\n"
            line.send(head + b"Transfer-Encoding: chunked\r\n\r\n800\r\n" + b" " * 0x800 + b"\r\n")
            if sent == "chunked in pieces":
                await until_in_flight(limited, 2)
            line.send(b"1\r\n \r\n0\r\n\r\n")
        elif sent == "told before":
            line.send(post(b" ", length=2049))
        else:
            line.send(post(b" " * 2049))
        status, _, body = await line.answer()
    assert 413 == status
    assert "at most 2048" in json.loads(body)["msg"]
    assert before + 1 == await refused(limited, "body")


async def test_a_body_at_the_limit_is_taken(limited: DispatcherProcess) -> None:
    """To the byte."""
    body = b'{"to":"alice","msg":1}'
    async with wire(limited) as line:
        line.send(post(body + b" " * (2048 - len(body))))
        assert 200 == (await line.answer())[0]


async def test_requests_under_way_are_bounded(limited: DispatcherProcess) -> None:
    """429 beyond; health and metrics are answered all the same."""
    before = await refused(limited, "in_flight")
    async with AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(wire(limited)) for _ in range(3)]
        for line in lines:
            line.send(post(b'{"to":', length=22))
        await until_in_flight(limited, 4)
        async with wire(limited) as line:
            line.send(post(b'{"to":"alice","msg":1}'))
            status, headers, _ = await line.answer()
            assert (429, "1") == (status, headers["retry-after"])
            line.send(HEAD + b"\r\n")
            assert 200 == (await line.answer())[0]
        for line in lines:
            line.send(b'"alice","msg":1}')
            assert 200 == (await line.answer())[0]
    assert before + 1 == await refused(limited, "in_flight")


# -- keys ------------------------------------------------------------------------------------------------------------


async def test_what_is_forwarded_by_others_is_not_believed(limited: DispatcherProcess) -> None:
    """Who is no proxy fails as who it is, whatever it says."""
    found = []
    async with wire(limited, "127.0.0.6") as line:
        for number in range(20):
            forwarded = b"X-Forwarded-For: 10.1.0.%d\r\nHost" % number
            line.send(post(b'{"to":"alice","msg":1}', "guessed").replace(b"Host", forwarded))
            found.append((await line.answer())[0])
    assert 429 in found


async def test_guesses_from_an_address_are_bounded(limited: DispatcherProcess) -> None:
    """401, then 429; a good key from there and anybody elsewhere are not held up. Keys are not in the log."""
    before = await refused(limited, "unauthorized")
    body = b'{"to":"alice","msg":1}'
    async with wire(limited, "127.0.0.7") as line, wire(limited, "127.0.0.8") as other:
        found = []
        for number in range(20):
            line.send(post(body, f"guessed-{number}"))
            found.append((await line.answer())[0])
        assert {401, 429} == set(found)
        assert [401] * 5 == found[:5]
        line.send(post(body))
        assert 200 == (await line.answer())[0]
        other.send(post(body, "guessed"))
        assert 401 == (await other.answer())[0]
    assert before + 21 == await refused(limited, "unauthorized")
    assert 0 < await refused(limited, "auth_failures")
    logged = [event for event in limited.log if event["event"] == "unauthorized"]
    assert 1 <= len(logged) <= 21
    assert all({"address", "reason", "requests"} <= set(event) for event in logged)
    assert "guessed" not in limited.text


async def test_who_is_over_its_rate_costs_no_round_trip(limited: DispatcherProcess, valkey: LocalValkey) -> None:
    """429 before the body is looked at, for sends, lists and broadcasts; Redis sees nothing of it."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer slow-key"}) as http:
        caller = Caller(http, limited.url)
        async with heard(valkey) as sent:
            assert 200 == (await caller.send("over-rate", requestId="over-rate")).status
        assert sent
        async with heard(valkey) as sent:
            for _ in range(20):
                assert 429 == (await caller.send("over-rate", requestId="over-rate-2")).status
                assert 429 == (await caller.post("/message/send", b"no JSON at all")).status
                assert 429 == (await caller.send_list({"to": "over-rate", "msg": 1})).status
                body = b'{"toAll":true,"msg":1,"requestId":"over-rate"}'
                assert 429 == (await caller.post("/v1/broadcasts", body)).status
        assert [] == sent
    assert 80 == await refused(limited, "rate")


@asynccontextmanager
async def heard(valkey: LocalValkey) -> AsyncIterator[list[str]]:
    """Commands that Redis gets meanwhile and that have to do with `over-rate`."""
    found: list[str] = []
    async with Redis.from_url(valkey.url) as redis, Redis.from_url(valkey.url) as other, redis.monitor() as monitor:
        yield found
        await other.set("over-rate-end", 1, ex=60)
        async with asyncio.timeout(DEADLINE_S):
            async for command in monitor.listen():
                text = str(command["command"])
                if "over-rate-end" in text:
                    return
                if "over-rate" in text:
                    found.append(text)
