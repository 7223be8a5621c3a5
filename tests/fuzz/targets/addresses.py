"""
Whose a connection is, behind proxies: PROXY headers and X-Forwarded-For.

A PROXY header is read in pieces and whole with the same outcome, and never past its end; an address is a real one, and
never what a client made up when it came over no trusted proxy.
"""

from __future__ import annotations

import ipaddress

from gateway_node.websocket.proxy_protocol import MOST_HEADER_BYTES, BadHeader, read_header
from shared.addresses import client_address, counted_as, networks
from tests.fuzz.target import Chooser, Target

_TRUSTED = networks("10.0.0.0/8,fd00::/8,192.0.2.7")
_PEERS = ("10.1.2.3", "203.0.113.9", "fd00::1", "2001:db8::1", "::ffff:10.1.2.3", "")
_BAD = (-1, "")


def run(data: bytes) -> None:
    chooser = Chooser(data)
    (_proxy_header, _forwarded, _ranges)[chooser.below(3)](chooser)


def _proxy_header(chooser: Chooser) -> None:
    size = 1 + chooser.below(40)
    stream = chooser.rest()
    whole = _read(stream)
    assert whole == _read_in_pieces(stream, size), "the cuts change what comes out"
    if whole in (None, _BAD):
        return
    assert whole is not None
    end, address = whole
    assert 0 < end <= min(len(stream), MOST_HEADER_BYTES)
    assert whole == _read(stream[:end]), "what is behind the header counts"
    if address:
        ipaddress.ip_address(address)


def _read(stream: bytes) -> tuple[int, str] | None:
    try:
        return read_header(stream)
    except BadHeader:
        return _BAD


def _read_in_pieces(stream: bytes, size: int) -> tuple[int, str] | None:
    for end in range(size, len(stream) + size, size):
        read = _read(stream[:end])
        if read is not None:
            return read
    return _read(b"") if not stream else None


def _forwarded(chooser: Chooser) -> None:
    peer = _PEERS[chooser.below(len(_PEERS))]
    text = chooser.rest().decode("latin-1")
    address = client_address(peer, text, _TRUSTED)
    if address != peer:
        assert peer not in ("203.0.113.9", "2001:db8::1", ""), "a stranger's word was believed"
        ipaddress.ip_address(address)
    if address:
        counted = counted_as(address)
        assert counted == counted_as(counted.partition("/")[0])
        ipaddress.ip_network(counted)
    # Whatever a client puts before it, what the last proxy wrote wins.
    assert client_address("10.1.2.3", text + ", 203.0.113.9", _TRUSTED) == "203.0.113.9"


def _ranges(chooser: Chooser) -> None:
    text = chooser.rest().decode("utf-8", "replace")
    try:
        ranges = networks(text)
    except ValueError:
        return
    assert len(ranges) <= text.count(",") + 1
    assert networks(",".join(map(str, ranges))) == ranges


_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_SEEDS = (
    b"\0\x05PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n\r\n",
    b"\0\x05PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
    b"\0\x05PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
    b"\0\x05" + _SIGNATURE + b"\x21\x11\0\x0c\xc0\0\2\1\xc6\x33\x64\1\x12\x34\1\xbbGET",
    b"\0\x05" + _SIGNATURE + b"\x21\x21\0\x24" + bytes(36),
    b"\0\x05" + _SIGNATURE + b"\x20\0\0\3abc",
    b"\1\0198.51.100.1, 10.0.0.1",
    b"\1\2[2001:db8::7]:443, fd00::2, 192.0.2.7:80",
    b"\1\0203.0.113.5%eth0, ::ffff:10.0.0.9",
    b"\x0210.0.0.0/8, fd00::/8,192.0.2.7",
)

TARGET = Target("addresses", run, _SEEDS, most=512)
