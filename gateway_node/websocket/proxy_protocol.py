"""
The header that a proxy puts before a connection's first byte to tell whose it is: PROXY protocol, v1 and v2. Pure.

Source: "The PROXY protocol, versions 1 & 2" (haproxy.org, doc/proxy-protocol.txt), sections 2.1 and 2.2. Version 1 is a
line of text of at most 107 bytes, version 2 a binary header. What a header says of the destination, and the extensions
(TLV) of version 2, are passed over.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

MOST_HEADER_BYTES: Final = 2048
"""Of version 2 with its extensions; the specification's own example for them takes 536."""

_LINE_START: Final = b"PROXY "
_MOST_LINE: Final = 107
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16
_LOCAL, _PROXY = 0x20, 0x21
_ADDRESSES: Final = {0x10: 12, 0x20: 36, 0x30: 216}
"""Bytes of both ends' addresses and ports by address family; family 0 has none."""


class BadHeader(Exception):
    """The connection does not begin with a PROXY header."""


def read_header(data: bytes) -> tuple[int, str] | None:
    """
    (size of the header, source address) at the start of `data`, or None while more has to come.

    The address is "" where there is none: the proxy's own connection (LOCAL), UNKNOWN, or a Unix socket. Raises
    BadHeader as soon as it can be none.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _read_binary(data)
    if data.startswith(_LINE_START[: len(data)]):
        return _read_line(data)
    raise BadHeader("neither version's start")


def _read_line(data: bytes) -> tuple[int, str] | None:
    end = data.find(b"\r\n", 0, _MOST_LINE)
    if b"\n" in (data if end < 0 else data[:end]) or (end < 0 and len(data) >= _MOST_LINE):
        raise BadHeader("a line without its end")
    if end < 0:
        return None
    try:
        words = data[:end].decode("ascii").split(" ")
        if words[1] == "UNKNOWN":
            return end + 2, ""
        _, protocol, source, destination, *ports = words
        kind = {"TCP4": IPv4Address, "TCP6": IPv6Address}[protocol]
        address = kind(source)
        kind(destination)
        good = len(ports) == 2 and all(_is_port(port) for port in ports)
    except (ValueError, LookupError):
        raise BadHeader("a line that is not: PROXY, protocol, addresses, ports") from None
    if not good:
        raise BadHeader("a line without two ports")
    return end + 2, str(address)


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5 and str(int(text)) == text and int(text) <= 65535


def _read_binary(data: bytes) -> tuple[int, str] | None:
    if len(data) < _FIXED:
        return None
    command, family = data[12], data[13] & 0xF0
    size = _FIXED + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise BadHeader("another version or command")
    if size > MOST_HEADER_BYTES:
        raise BadHeader("longer than a header is")
    if len(data) < size:
        return None
    if command == _LOCAL or family == 0:
        return size, ""
    if size - _FIXED < _ADDRESSES.get(family, 1 << 16):
        raise BadHeader("an unknown address family, or less than its addresses")
    if family == 0x10:
        return size, str(IPv4Address(data[16:20]))
    if family == 0x20:
        return size, str(IPv6Address(data[16:32]))
    return size, ""
