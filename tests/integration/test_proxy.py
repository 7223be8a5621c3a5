"""The fault proxy of the harness, on real sockets: each fault does what it says, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.harness.proxy import Proxy, Way

DEADLINE_S = 10.0


class Server:
    """Keeps what it gets, a stream a connection; answers nothing by itself."""

    def __init__(self) -> None:
        self.streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._more = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stream(self, number: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(DEADLINE_S), self._more:
            await self._more.wait_for(lambda: len(self.streams) > number)
        return self.streams[number]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for _, writer in self.streams:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._more:
            self.streams.append((reader, writer))
            self._more.notify_all()


@asynccontextmanager
async def proxied(translation: tuple[bytes, bytes] | None = None) -> AsyncIterator[tuple[Proxy, Server]]:
    server = Server()
    await server.start()
    proxy = Proxy("127.0.0.1", server.port, translation=translation)
    await proxy.start()
    try:
        yield proxy, server
    finally:
        await proxy.close()
        await server.close()


@asynccontextmanager
async def client_of(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def got(reader: asyncio.StreamReader, size: int) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.readexactly(size)


async def until_cut(reader: asyncio.StreamReader) -> None:
    """A reset, and no orderly end."""
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.readexactly(1), DEADLINE_S)


async def test_bytes_and_ends_pass_both_ways() -> None:
    """In order, whatever their size; a client that only stops sending still gets its answer; then nothing is left."""
    size = 3_000_000
    async with proxied() as (proxy, server), client_of(proxy) as (reader, writer):
        data = bytes(range(250)) * (size // 250)
        writer.write(data)
        writer.write_eof()
        far_reader, far_writer = await server.stream()
        async with asyncio.timeout(DEADLINE_S):
            arrived = await far_reader.read(-1)
        far_writer.write(b"answer")
        far_writer.close()
        async with asyncio.timeout(DEADLINE_S):
            answer = await reader.read(-1)
            while proxy.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)

    assert (True, b"answer") == (arrived == data, answer)


async def test_a_side_that_does_not_read_stops_the_other() -> None:
    """A proxy that took everything would hide a slow consumer."""
    async with proxied() as (proxy, server), client_of(proxy) as (reader, _):
        _, far_writer = await server.stream()
        for _ in range(300):
            far_writer.write(b"x" * (1 << 17))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await far_writer.drain()
        left = len(await got(reader, 300 << 17))

    assert 300 << 17 == left


async def test_delayed_bytes_keep_their_order_and_none_is_missing() -> None:
    """Though each piece is late by another time; and from `heal` on they are not late."""
    async with proxied() as (proxy, server), client_of(proxy) as (_, writer):
        far_reader, _ = await server.stream()
        proxy.delay(0.02)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(100):
            writer.write(b"%03d" % number)
            await asyncio.sleep(0)
        arrived = await got(far_reader, 300)
        took = loop.time() - start
        proxy.heal()
        writer.write(b"end")
        end = await got(far_reader, 3)

    assert (b"".join(b"%03d" % number for number in range(100)), b"end") == (arrived, end)
    assert proxy.delay_s == 0.0
    assert took >= 0.01


async def test_reset_cuts_both_sides_and_takes_new_connections() -> None:
    """With RST, as a firewall does."""
    async with proxied() as (proxy, server), client_of(proxy) as (reader, _):
        far_reader, _ = await server.stream()
        proxy.reset()
        await until_cut(reader)
        await until_cut(far_reader)
        async with client_of(proxy) as (_, writer):
            writer.write(b"again")
            assert await got((await server.stream(1))[0], 5) == b"again"


@pytest.mark.parametrize("way", Way)
async def test_half_open_swallows_one_way(way: Way) -> None:
    """The other way goes on; who lost bytes is cut when it heals, who did not is not."""
    async with AsyncExitStack() as stack:
        proxy, server = await stack.enter_async_context(proxied())
        near = await stack.enter_async_context(client_of(proxy))
        far = await server.stream()
        bystander = await stack.enter_async_context(client_of(proxy))
        far_bystander = await server.stream(1)
        proxy.half_open(way)
        (deaf, _), (_, mute) = (far, near) if way is Way.TO_SERVER else (near, far)
        (hears, _), (_, speaks) = (near, far) if way is Way.TO_SERVER else (far, near)
        mute.write(b"lost")
        speaks.write(b"heard")
        assert await got(hears, 5) == b"heard"
        async with asyncio.timeout(DEADLINE_S):
            while not any(pair.incomplete for pair in proxy._pairs):  # noqa: ASYNC110
                await asyncio.sleep(0)
        proxy.heal()
        await until_cut(deaf)
        bystander[1].write(b"alive")
        assert await got(far_bystander[0], 5) == b"alive"


async def test_a_black_hole_takes_connections_and_says_nothing() -> None:
    """Not even an end reaches the other side, until it heals."""
    async with proxied() as (proxy, server), client_of(proxy) as (_, old_writer):
        far_reader, _ = await server.stream()
        proxy.black_hole()
        async with client_of(proxy) as (reader, writer):
            writer.write(b"anybody?")
            old_writer.write(b"lost")
            old_writer.close()
            for silent in (reader, far_reader):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(silent.read(1), 0.2)
            assert len(server.streams) == 1
            proxy.heal()
        await until_cut(far_reader)


async def test_refuse_and_start_again() -> None:
    """Connections are refused, the open one is cut; then the same port is open again."""
    async with proxied() as (proxy, server), client_of(proxy) as (reader, _):
        await server.stream()
        port = proxy.port
        proxy.refuse()
        await until_cut(reader)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, port)
        await proxy.start()
        async with client_of(proxy) as (_, writer):
            writer.write(b"back")
            assert await got((await server.stream(1))[0], 4) == b"back"
        assert port == proxy.port


async def test_a_server_that_is_away_is_a_connection_that_is_cut() -> None:
    """And one that comes back is reached again."""
    async with proxied() as (proxy, server):
        await server.close()
        async with client_of(proxy) as (reader, _):
            await until_cut(reader)


async def test_translation_finds_a_word_that_comes_in_pieces() -> None:
    """Only in what comes from the server; nothing is kept back that cannot be the word."""
    async with proxied((b"127.0.0.1:111", b"127.0.0.1:222")) as (proxy, server), client_of(proxy) as (reader, writer):
        far_reader, far_writer = await server.stream()
        writer.write(b"to 127.0.0.1:111")
        assert await got(far_reader, 16) == b"to 127.0.0.1:111"
        for piece in (b"at 127.0", b".0.1:1", b"11 and 127.0.0.1:111, 127", b"!"):
            far_writer.write(piece)
            await far_writer.drain()
            await asyncio.sleep(0.01)
        assert await got(reader, 37) == b"at 127.0.0.1:222 and 127.0.0.1:222, 1"
        assert await got(reader, 3) == b"27!"
