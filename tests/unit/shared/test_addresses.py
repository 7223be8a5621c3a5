"""Whose request it is behind proxies, and what counts as one address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.addresses import client_address, counted_as, is_in, networks

TRUSTED = networks("10.0.0.0/8, fd00::/8,192.0.2.7")
CLIENT = "203.0.113.9"


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        (CLIENT, "", CLIENT),
        (CLIENT, "198.51.100.1", CLIENT),  # not a proxy: what it says of itself is worth nothing
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", CLIENT, CLIENT),
        ("10.0.0.1", f"198.51.100.1, {CLIENT}", CLIENT),  # the left one was made up
        ("10.0.0.1", f"198.51.100.1,{CLIENT}, 10.0.0.2 ,192.0.2.7", CLIENT),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),  # proxies alone: the farthest
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", f"{CLIENT}, unknown, 10.0.0.2", "10.0.0.2"),  # nothing to the left of garbage is believed
        ("10.0.0.1", f"{CLIENT}:4711", CLIENT),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", f"::ffff:{CLIENT}", CLIENT),
        ("fd00::1%eth0", CLIENT, CLIENT),
    ],
)
def test_client_address(peer: str, forwarded: str, expected: str) -> None:
    """The rightmost address that is no trusted proxy, if the peer is one."""
    assert expected == client_address(peer, forwarded, TRUSTED)


def test_nobody_is_trusted_by_default() -> None:
    """X-Forwarded-For is passed over."""
    assert client_address("127.0.0.1", CLIENT, ()) == "127.0.0.1"
    assert networks("") == ()


def test_a_long_chain_is_not_followed_for_ever() -> None:
    """A header of thousands of proxies costs a bounded search."""
    assert client_address("10.0.0.1", ",".join([CLIENT, *["10.0.0.2"] * 5000]), TRUSTED) == "10.0.0.2"


@given(st.text() | st.lists(st.ip_addresses().map(str) | st.text(max_size=5)).map(",".join))
def test_any_header_gives_an_address(forwarded: str) -> None:
    """Whatever is in it."""
    assert ip_address(client_address("10.0.0.1", forwarded, TRUSTED))


@given(st.ip_addresses().filter(lambda address: not is_in(str(address), TRUSTED)), st.text())
def test_nothing_made_up_gets_by_the_last_proxy(client: IPv4Address | IPv6Address, made_up: str) -> None:
    """Whatever the client sends in the header, the address that the proxy appends is the one that counts."""
    expected = client_address("10.0.0.1", str(client), TRUSTED)
    assert expected == client_address("10.0.0.1", f"{made_up},{client}", TRUSTED)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_counted_as(address: str, expected: str) -> None:
    """IPv6 by its /64, which is what one customer has; IPv4 by itself, however it is written."""
    assert expected == counted_as(address)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "example.com", "10.0.0.1/8", "10.0.0.0-10.0.0.9"])
def test_bad_ranges(text: str) -> None:
    """A typing error is told, not passed over."""
    with pytest.raises(ValueError, match="expected address ranges"):
        networks(text)


def test_ranges() -> None:
    """Addresses and ranges of both families, in any order."""
    assert networks(" 127.0.0.1 ,, ::1/128") == (ip_network("127.0.0.1"), ip_network("::1"))
    assert not is_in("no address", TRUSTED)
