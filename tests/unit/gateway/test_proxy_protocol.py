"""PROXY headers, both versions: what they tell, and what is none."""

from __future__ import annotations

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.websocket.proxy_protocol import MOST_HEADER_BYTES, BadHeader, read_header

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def line(protocol: str = "TCP4", source: str = "203.0.113.9", destination: str = "10.0.0.1") -> bytes:
    return f"PROXY {protocol} {source} {destination} 56324 443\r\n".encode()


def binary(source: str = "203.0.113.9", command: int = 0x21, extensions: bytes = b"") -> bytes:
    address = ipaddress.ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    addresses = address.packed * 2 + struct.pack(">HH", 56324, 443) + extensions
    return SIGNATURE + struct.pack(">BBH", command, family, len(addresses)) + addresses


GOOD = [
    (line(), "203.0.113.9"),
    (line("TCP6", "2001:db8::1", "::1"), "2001:db8::1"),
    (b"PROXY UNKNOWN\r\n", ""),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", ""),
    (binary(), "203.0.113.9"),
    (binary("2001:db8::1"), "2001:db8::1"),
    (binary(extensions=b"\x04\x00\x03abc"), "203.0.113.9"),
    (binary(command=0x20), ""),
    (SIGNATURE + b"\x21\x00\x00\x00", ""),
    (SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), ""),
]


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_a_header_tells_the_source_and_where_it_ends(header: bytes, source: str) -> None:
    """Whatever follows; and every shorter part of it asks for more."""
    assert (len(header), source) == read_header(header + b"GET / HTTP/1.1\r\n")
    assert [None] * len(header) == [read_header(header[:end]) for end in range(len(header))]


@pytest.mark.parametrize(
    "data",
    [
        b"GET /websocket HTTP/1.1\r\n",
        b"\x16\x03\x01",  # a TLS handshake
        b"PROXY TCP4 203.0.113.9 10.0.0.1 56324\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 56324 443 1\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 056324 443\r\n",
        b"PROXY TCP4 203.0.113.9 10.0.0.1 65536 443\r\n",
        b"PROXY TCP4 203.0.113.999 10.0.0.1 1 443\r\n",
        b"PROXY TCP4 2001:db8::1 ::1 1 443\r\n",
        b"PROXY UDP4 203.0.113.9 10.0.0.1 1 443\r\n",
        b"PROXY  TCP4 203.0.113.9 10.0.0.1 1 443\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 203.0.113.9\n",
        b"PROXY TCP4 \xff\r\n",
        b"PROXY " + b"x" * 101,
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),  # version 1 in binary
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),  # no such command
        SIGNATURE + b"\x21\x41\x00\x0c" + bytes(12),  # no such family
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),  # shorter than its addresses
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_bad_headers(data: bytes) -> None:
    """What cannot become a header is refused as soon as it is seen."""
    with pytest.raises(BadHeader):
        read_header(data)


@given(st.binary() | st.binary().map(SIGNATURE.__add__) | st.binary().map(b"PROXY TCP4 ".__add__))
def test_any_bytes(data: bytes) -> None:
    """A header, more to come, or refused: nothing else, and no header is longer than its bound."""
    with contextlib.suppress(BadHeader):
        found = read_header(data)
        assert found is not None or len(data) < MOST_HEADER_BYTES
        assert found is None or found[0] <= len(data)


@given(st.ip_addresses(), st.binary(max_size=200), st.binary(max_size=20))
def test_every_address_comes_through(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address, more: bytes, rest: bytes
) -> None:
    """In both versions."""
    header = binary(str(source), extensions=more)
    assert (len(header), str(source)) == read_header(header + rest)
    text = line(f"TCP{source.version}", str(source), str(source))
    assert (len(text), str(source)) == read_header(text + rest)
