"""What comes before a request: floods, slow handshakes, PROXY headers, TLS."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from gateway_node.websocket.addresses import Addresses
from gateway_node.websocket.frames import text_frame
from gateway_node.websocket.gate import Limits
from shared.addresses import networks
from tests.harness.certificates import Authority
from tests.harness.connection import HEAD, LIMITS, TEXT, Node, Peer, TlsPeer, soon, until
from tests.unit.gateway.test_frames import client_frame

Start = Callable[..., Awaitable[Node]]
LINE = b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 443\r\n"
BINARY = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x09\x0a\x00\x00\x01" + struct.pack(">HH", 56324, 443)


def refused(limit: str) -> float:
    return REGISTRY.get_sample_value("push_node_refused_total", {"limit": limit}) or 0.0


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Starts nodes, and stops them at the end."""
    running: list[Node] = []

    async def start(authority: Authority | None = None, limits: Limits = LIMITS, **options: Any) -> Node:
        node = Node(authority, limits, **options)
        await node.start()
        running.append(node)
        return node

    yield start
    for node in running:
        await soon(node.stop())


async def until_cut(peer: Peer) -> bytes:
    """What came before the end, however the end came."""
    try:
        return await peer.all()
    except ConnectionError:
        return b""


class TestAddresses:
    async def test_connections_over_the_limit_are_cut_at_accept(self, start: Start) -> None:
        """Before a byte of theirs is read; who is in stays, and one that leaves makes room."""
        before = refused("address_connections")
        node = await start(addresses=Addresses(connections=2))
        first, second = await node.opened(), await node.opened()
        third = await node.peer()
        assert b"" == await until_cut(third)
        assert before + 1 == refused("address_connections")
        second.sock.close()
        await until(lambda: node.gate.alive == 1)
        assert await node.layer.hears() == ("closed", 1006, "", False)
        await node.opened()
        await first.send(client_frame(TEXT, b"here"))
        assert await node.layer.hears() == ("message", b"here")

    async def test_a_flood_is_cut_and_forgotten(self, start: Start) -> None:
        """Nothing of a connection that was cut stays behind, and the layer above never hears of it."""
        before = refused("address_rate")
        node = await start(addresses=Addresses(rate=10.0))
        peers = [await node.peer() for _ in range(300)]
        await asyncio.gather(*(until_cut(peer) for peer in peers[22:]))
        await until(lambda: node.gate.alive == 22)
        assert before + 280 == refused("address_rate")
        assert 22 == len(node.gate.opening)
        assert node.layer.told.empty()

    async def test_another_address_is_not_held_up(self, start: Start) -> None:
        """While one is over its limit."""
        node = await start(addresses=Addresses(connections=1))
        await node.opened()
        assert b"" == await until_cut(await node.peer())
        await node.opened(source="127.0.0.2")


class TestSlowHandshakes:
    async def test_hundreds_that_drip_do_not_keep_anybody_out(self, node: Node) -> None:
        """A good client is served beside them; each is cut at its deadline, whenever its last byte came."""
        before = refused("handshake_time")
        slow = [await node.peer() for _ in range(300)]
        for byte in (b"G", b"E", b"T", b" "):
            for peer in slow:
                await peer.send(byte)
            node.layer.now += 2.0
            node.gate.tick(node.layer.now)
        await until(
            lambda: all(each._opening and each._opening.received == b"GET " for each in node.gate.opening.all())
        )
        good = await node.opened()
        await good.send(client_frame(TEXT, b"here"))
        assert await node.layer.hears() == ("message", b"here")
        node.gate.tick(100.0 + LIMITS.handshake_timeout_s)
        assert [b"408"] * 300 == [(await peer.all())[9:12] for peer in slow]
        assert before + 300 == refused("handshake_time")
        assert good.sock.fileno() > 0
        assert node.layer.connection.open

    async def test_beyond_the_limit_the_oldest_is_cut(self, start: Start) -> None:
        """So nobody holds the door shut; those that are open do not count."""
        before = refused("handshakes")
        node = await start(limits=replace(LIMITS, max_handshakes=3))
        for _ in range(5):
            await node.opened()
        slow: list[Peer] = []
        while len(slow) < 3:
            slow.append(await node.peer())
            await until(lambda: len(node.gate.opening) == len(slow))
        await node.opened()
        assert b"" == await until_cut(slow[0])
        await slow[1].send(HEAD)
        assert (await slow[1].head()).startswith(b"HTTP/1.1 101 ")
        assert before + 1 == refused("handshakes")

    async def test_the_oldest_with_a_request_is_told(self, start: Start) -> None:
        """503, and the layer above hears that it is gone."""
        node = await start(limits=replace(LIMITS, max_handshakes=1))
        node.layer.on_request = lambda connection: None
        peer = await node.peer()
        await peer.send(HEAD)
        assert await node.layer.hears() == ("request", "/websocket")
        await node.peer()
        assert b"503" == (await peer.all())[9:12]
        peer.sock.close()
        assert await node.layer.hears() == ("closed", 1006, "", False)

    @pytest.mark.parametrize(
        ("limit", "lines"), [("header_count", b"a: b\r\n" * 8), ("header_size", b"a: " + b"b" * 1000 + b"\r\n")]
    )
    async def test_head_limits(self, start: Start, limit: str, lines: bytes) -> None:
        """431 for a header line or a byte too many, counted by which it is."""
        before = refused(limit)
        node = await start(limits=replace(LIMITS, max_head=1000, max_headers=8))
        peer = await node.peer()
        await peer.send(HEAD[:-2] + lines + b"\r\n")
        assert b"431" == (await peer.all())[9:12]
        assert before + 1 == refused(limit)


class TestProxyHeaders:
    @pytest_asyncio.fixture(params=[False, True], ids=["plain", "tls"])
    async def proxied(self, request: pytest.FixtureRequest, start: Start, authority: Authority) -> Node:
        """Behind a proxy at 127.0.0.1; one connection an address."""
        options = {"proxied": True, "trusted": networks("127.0.0.1"), "addresses": Addresses(connections=1)}
        return await start(authority if request.param else None, **options)

    @pytest.mark.parametrize("header", [LINE, BINARY], ids=["v1", "v2"])
    async def test_the_address_is_the_headers(self, proxied: Node, header: bytes) -> None:
        """It is what the connection is counted under, and what follows the header is the connection's."""
        peer = await proxied.opened(header=header)
        address = proxied.layer.connection.address
        assert address is not None
        assert "203.0.113.9" == address.name
        await peer.send(client_frame(TEXT, b"x" * 90_000))
        assert await proxied.layer.hears() == ("message", b"x" * 90_000)
        second = await proxied.bare_peer()
        await second.send(header)
        assert b"" == await until_cut(second)

    async def test_the_proxys_own_connections_are_not_limited(self, proxied: Node) -> None:
        """LOCAL and UNKNOWN."""
        for header in (b"PROXY UNKNOWN\r\n", BINARY[:12] + b"\x20\x00\x00\x00", b"PROXY UNKNOWN\r\n"):
            await proxied.opened(header=header)
            assert proxied.layer.connection.address is None

    async def test_a_header_in_single_bytes(self, proxied: Node) -> None:
        """However it is cut up, and with the first bytes behind it in the same segment."""
        peer = await proxied.bare_peer()
        for byte in BINARY:
            await peer.send(bytes([byte]))
            await proxied.turn()
        peer = await proxied.begin(peer)
        await peer.send(HEAD)
        assert (await peer.head()).startswith(b"HTTP/1.1 101 ")

    @pytest.mark.parametrize("data", [HEAD, b"\x16\x03\x01\x02\x00", b"PROXY TCP4 nobody\r\n"])
    async def test_no_header_no_connection(self, proxied: Node, data: bytes) -> None:
        """It is cut at once."""
        before = refused("proxy_header")
        peer = await proxied.bare_peer()
        await peer.send(data)
        assert b"" == await until_cut(peer)
        assert before + 1 == refused("proxy_header")
        assert proxied.layer.told.empty()

    async def test_a_header_that_never_comes(self, proxied: Node) -> None:
        """Stands under the deadline of the handshake."""
        peer = await proxied.bare_peer()
        await peer.send(LINE[:10])
        await until(lambda: len(proxied.gate.opening) == 1)
        proxied.gate.tick(100.0 + LIMITS.handshake_timeout_s)
        assert b"" == await until_cut(peer)

    async def test_only_trusted_proxies(self, start: Start) -> None:
        """From others not even a good header is taken."""
        node = await start(proxied=True, trusted=networks("192.0.2.1"))
        before = refused("proxy_header")
        assert b"" == await until_cut(await node.bare_peer())
        assert before + 1 == refused("proxy_header")


class TestTls:
    @pytest_asyncio.fixture
    async def secure(self, start: Start, authority: Authority) -> Node:
        return await start(authority)

    async def test_what_is_spoken(self, secure: Node) -> None:
        """TLS 1.3 and http/1.1 with a client that knows both."""
        peer = await secure.opened()
        assert isinstance(peer, TlsPeer)
        assert ("TLSv1.3", "http/1.1") == (peer.tls.version(), peer.tls.selected_alpn_protocol())

    async def test_plain_bytes_get_no_plain_answer(self, secure: Node) -> None:
        """A request without TLS is closed; nothing of the node is said in plain but a TLS alert."""
        before = REGISTRY.get_sample_value("push_node_connections_total", {"outcome": "tls_failed"}) or 0.0
        peer = await secure.bare_peer()
        await peer.send(HEAD)
        answer = await until_cut(peer)
        assert answer == b"" or answer.startswith(b"\x15\x03")
        assert before + 1 == REGISTRY.get_sample_value("push_node_connections_total", {"outcome": "tls_failed"})
        await until(lambda: secure.gate.alive == 0)

    async def test_a_handshake_that_stalls_is_cut(self, secure: Node) -> None:
        """At the deadline of the handshake as a whole."""
        peer = await secure.bare_peer()
        await peer.send(b"\x16\x03\x01\x02\x00\x01")
        await until(lambda: len(secure.gate.opening) == 1)
        secure.gate.tick(100.0 + LIMITS.handshake_timeout_s)
        assert b"" == await until_cut(peer)

    async def test_old_versions_are_refused(self, secure: Node) -> None:
        """TLS 1.1 and older."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            await TlsPeer((await secure.bare_peer()).sock, context).shake()

    async def test_a_client_that_does_not_know_the_authority(self, secure: Node, tmp_path: Any) -> None:
        """Does not connect; the node goes on."""
        with pytest.raises(ssl.SSLCertVerificationError):
            await TlsPeer((await secure.bare_peer()).sock, Authority(tmp_path).client_context()).shake()
        await secure.opened()

    async def test_the_end_of_tls_is_the_end(self, secure: Node) -> None:
        """A peer that closes TLS and keeps TCP is gone; so is one that breaks it."""
        for end in (
            lambda peer: peer.say_all(),
            lambda peer: Peer(peer.sock).send(b"\x17\x03\x03\x00\x20" + bytes(32)),
        ):
            peer = await secure.opened()
            await end(peer)
            assert await secure.layer.hears() == ("closed", 1006, "", False)

    async def test_the_node_says_that_it_has_ended(self, secure: Node) -> None:
        """The peer can tell the end of a close from a cut."""
        peer = await secure.opened()
        assert isinstance(peer, TlsPeer)
        secure.layer.connection.close(1000)
        await peer.frame()
        await peer.send(client_frame(0x8, struct.pack(">H", 1000)))
        assert b"" == await peer.more()
        assert peer.ended

    async def test_large_messages_both_ways(self, secure: Node) -> None:
        """Of many records."""
        peer = await secure.opened()
        await peer.send(client_frame(TEXT, b"a" * 99_000))
        assert await secure.layer.hears() == ("message", b"a" * 99_000)
        secure.layer.connection.send(text_frame(b"b" * 150_000))
        assert (TEXT, b"b" * 150_000) == await peer.frame()
