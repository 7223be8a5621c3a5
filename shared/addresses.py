"""
Addresses of clients as text: whose request it is behind proxies, and what is counted as one address. Pure.

A proxy appends the address it was connected from to X-Forwarded-For; what is left of that the client may have made up.
So the entries are believed from the right, each because a trusted proxy wrote it, up to the first that is no proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

_MOST_HOPS = 32
_MAPPED = "::ffff:"


def networks(text: str) -> tuple[Network, ...]:
    """Comma separated ranges, `10.0.0.0/8,fd00::/8,192.0.2.7`. Raises ValueError with what is expected."""
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"expected address ranges like 10.0.0.0/8,fd00::/8 ({error})") from None


def is_in(address: str, ranges: Sequence[Network]) -> bool:
    """Whether an address lies in one of the ranges. What is no address lies in none."""
    if not ranges:
        return False
    parsed = _parsed(address)
    return parsed is not None and any(parsed.version == each.version and parsed in each for each in ranges)


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """
    Where a request comes from. `peer` is the other end of its connection, `forwarded` its X-Forwarded-For, "" for none.

    The rightmost address of `forwarded` that is no trusted proxy, as long as `peer` is one; if all are, the leftmost.
    An entry that is no address ends the search: the one to the right of it is given.
    """
    if not forwarded or not is_in(peer, trusted):
        return peer
    address = peer
    for entry in reversed(forwarded.rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]):
        hop = _parsed(_without_port(entry.strip()))
        if hop is None:
            break
        address = str(hop)
        if not any(hop.version == each.version and hop in each for each in trusted):
            break
    return address


def counted_as(address: str) -> str:
    """What limits an address together with others: an IPv4 address by itself, an IPv6 address with its /64."""
    if ":" not in address:
        return address
    if address.startswith(_MAPPED) and "." in address:
        return address[len(_MAPPED) :]
    parsed = _parsed(address)
    if not isinstance(parsed, IPv6Address):
        return address if parsed is None else str(parsed)
    return str(IPv6Network((int(parsed) >> 64 << 64, 64)))


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An IPv4 address that was mapped to IPv6 is one of IPv4 again; a zone (`%eth0`) is left out."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(entry: str) -> str:
    """Some proxies write `192.0.2.7:4711` and `[2001:db8::1]:4711`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    host, colon, port = entry.partition(":")
    return host if colon and port.isdecimal() and "." in host else entry
