"""The limits of an address: connections, connects a second, refused tokens."""

from __future__ import annotations

from typing import cast

import pytest

from gateway_node.websocket.addresses import FLOOD_WEIGHT, Address, Addresses
from gateway_node.websocket.connection import Connection
from shared.addresses import networks
from shared.errors import Overloaded

NO_HEADERS: dict[str, str] = {}


class Arrived:
    """As much of a connection as is counted."""

    def __init__(self) -> None:
        self.address: Address | None = None


def arrived() -> Connection:
    return cast(Connection, Arrived())


def test_connections_of_an_address() -> None:
    """So many at once, each address by itself; one that leaves makes room."""
    addresses = Addresses(connections=2)
    first = arrived()
    assert addresses.enter(first, "192.0.2.1", 0.0)
    assert addresses.enter(arrived(), "::ffff:192.0.2.1", 0.0)
    assert not addresses.enter(arrived(), "192.0.2.1", 0.0)
    assert addresses.enter(arrived(), "192.0.2.2", 0.0)
    addresses.leave(first, 0.0)
    assert addresses.enter(arrived(), "192.0.2.1", 0.0)
    assert not addresses.enter(arrived(), "192.0.2.1", 0.0)


def test_a_64_is_one_address() -> None:
    """Who has 2^64 addresses has no more connections."""
    addresses = Addresses(connections=1)
    assert addresses.enter(arrived(), "2001:db8::1", 0.0)
    assert not addresses.enter(arrived(), "2001:db8::2", 0.0)
    assert addresses.enter(arrived(), "2001:db8:0:1::1", 0.0)


def test_connects_a_second() -> None:
    """Two seconds' worth at once; then a few are told 429 at their request, the rest is cut; a second brings more."""
    addresses = Addresses(rate=10.0)
    came = [arrived() for _ in range(40)]
    entered = [each for each in came if addresses.enter(each, "192.0.2.1", 100.0)]
    told = [each for each in entered if is_refused(addresses, each, 100.0)]
    assert (20, 22) == (len(entered) - len(told), len(entered))
    assert addresses.enter(arrived(), "192.0.2.2", 100.0)
    assert 11 == sum(addresses.enter(arrived(), "192.0.2.1", 101.0) for _ in range(40))


def is_refused(addresses: Addresses, connection: Connection, now: float) -> bool:
    try:
        addresses.check(connection, NO_HEADERS, now)
    except Overloaded as error:
        return 1 <= error.retry_after_s <= 5
    return False


def test_refused_tokens() -> None:
    """Beyond two seconds' worth its requests are refused before their tokens are looked at, until time has passed."""
    addresses = Addresses(auth_failures=5.0)
    guesser, other = arrived(), arrived()
    addresses.enter(guesser, "192.0.2.1", 0.0)
    addresses.enter(other, "192.0.2.2", 0.0)
    for _ in range(10):
        assert not is_refused(addresses, guesser, 0.0)
        addresses.offended(guesser, 0.0)
    assert is_refused(addresses, guesser, 0.0)
    assert not is_refused(addresses, other, 0.0)
    assert not is_refused(addresses, guesser, 1.0)


def test_floods_weigh_more_than_refused_tokens() -> None:
    """One flood is as bad as many refused tokens; time heals it as them."""
    addresses = Addresses(auth_failures=FLOOD_WEIGHT / 2)
    flooder = arrived()
    addresses.enter(flooder, "192.0.2.1", 0.0)
    addresses.offended(flooder, 0.0, FLOOD_WEIGHT)
    assert is_refused(addresses, flooder, 0.0)
    assert not is_refused(addresses, flooder, 1.0)


def test_no_limits() -> None:
    """0 is none."""
    addresses = Addresses()
    for _ in range(10_000):
        guesser = arrived()
        assert addresses.enter(guesser, "192.0.2.1", 0.0)
        addresses.offended(guesser, 0.0)
        addresses.check(guesser, NO_HEADERS, 0.0)


def test_behind_a_proxy_the_client_is_counted() -> None:
    """The proxy itself has no limits; its clients have theirs, from their requests on."""
    addresses = Addresses(connections=1, trusted=networks("10.0.0.0/8"))
    alice, again, bob, silent = (arrived() for _ in range(4))
    assert all(addresses.enter(each, "10.0.0.1", 0.0) for each in (alice, again, bob, silent))
    addresses.check(alice, {"x-forwarded-for": "192.0.2.1"}, 0.0)
    with pytest.raises(Overloaded):
        addresses.check(again, {"x-forwarded-for": "1.1.1.1, 192.0.2.1"}, 0.0)
    addresses.check(bob, {"x-forwarded-for": "192.0.2.2"}, 0.0)
    addresses.check(silent, NO_HEADERS, 0.0)
    addresses.leave(alice, 0.0)
    more = arrived()
    addresses.enter(more, "10.0.0.1", 0.0)
    addresses.check(more, {"x-forwarded-for": "192.0.2.1"}, 0.0)


def test_who_is_no_proxy_cannot_say_that_it_is_another() -> None:
    """X-Forwarded-For of an untrusted peer is passed over."""
    addresses = Addresses(connections=1, trusted=networks("10.0.0.0/8"))
    first = arrived()
    assert addresses.enter(first, "192.0.2.1", 0.0)
    addresses.check(first, {"x-forwarded-for": "192.0.2.99"}, 0.0)
    assert not addresses.enter(arrived(), "192.0.2.1", 0.0)


def test_the_table_is_bounded() -> None:
    """An address that has had no connection for a while is forgotten; one that has some, or has just left, is not."""
    addresses = Addresses(connections=5, rate=10.0)
    stays = arrived()
    addresses.enter(stays, "192.0.2.1", 0.0)
    for number in range(1000):
        gone = arrived()
        addresses.enter(gone, f"10.1.{number // 256}.{number % 256}", 0.0)
        addresses.leave(gone, 0.0)
    addresses.sweep(1.0)
    assert 1001 == len(addresses)
    addresses.sweep(6.0)
    assert 1 == len(addresses)
    addresses.leave(stays, 6.0)
    addresses.sweep(60.0)
    assert 0 == len(addresses)


def test_an_address_that_comes_and_goes_is_counted_right() -> None:
    """Whatever the order of leaving and sweeping."""
    addresses = Addresses(connections=2)
    for now in range(50):
        one, two = arrived(), arrived()
        assert addresses.enter(one, "192.0.2.1", float(now))
        assert addresses.enter(two, "192.0.2.1", float(now))
        assert not addresses.enter(arrived(), "192.0.2.1", float(now))
        addresses.sweep(float(now))
        addresses.leave(one, float(now))
        addresses.leave(one, float(now))
        addresses.leave(two, float(now))
    addresses.sweep(1000.0)
    assert 0 == len(addresses)
