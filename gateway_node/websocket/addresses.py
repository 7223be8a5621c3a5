"""
What each client address may take of a node: connections, connects a second, refused tokens and floods. Pure.

Theory of operation. Each connection points to the `Address` it is counted under: an IPv4 address, or the /64 of an IPv6
one. It is counted when it is accepted, or, behind trusted proxies, when its request tells the client's address, and
given back when it is gone. An address has a token bucket of connects. Beyond it a few connections a second are told so,
with 429; the rest, and what is over the number of connections, is cut off at accept, before anything is made for it: 10
us of the node, most of them the kernel's. So a flood from one address costs a tenth of a core at 10,000 connects/s.

Time is the coarse clock of the layer above, so buckets are filled once a tick. An entry lives while it has connections,
and `_KEPT_S` longer, by when its buckets are full again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from gateway_node.arrivals import BURST_S, come_again_s
from gateway_node.metrics import REFUSED
from shared.addresses import Network, client_address, counted_as, is_in
from shared.errors import Overloaded

if TYPE_CHECKING:
    from gateway_node.websocket.connection import Connection

_TOLD_SHARE: Final = 0.1
"""Of the rate: so many a second beyond it are answered 429 rather than cut."""
FLOOD_WEIGHT: Final = 25.0
"""A flood is cut after five seconds' worth of messages: some 30 ms. Who has many tokens could go on with the next."""
_KEPT_S: Final = 2 * BURST_S + 1.0

_CONNECTIONS = REFUSED.labels("address_connections")
_RATE = REFUSED.labels("address_rate")
_AUTH_FAILURES = REFUSED.labels("auth_failures")


class Address:
    """One client address, or a trusted proxy, which is not limited. `name` is as `counted_as` gives it."""

    __slots__ = ("at", "auth_at", "auth_left", "left", "name", "open", "proxy", "told_left")

    def __init__(self, name: str, proxy: bool, now: float, rate: float, auth_failures: float) -> None:
        self.name = name
        self.proxy = proxy
        self.open = 0
        self.at = self.auth_at = now
        self.left = rate * BURST_S
        self.told_left = rate * _TOLD_SHARE + 1.0
        self.auth_left = auth_failures * BURST_S


class Addresses:
    """
    All addresses of a node. 0 for a limit is none.

    `connections` at once, `rate` and `auth_failures` a second with two seconds' worth at once, `trusted`: the proxies.
    """

    __slots__ = ("_auth_failures", "_idle", "_known", "_late", "_most", "_rate", "_trusted")

    def __init__(
        self,
        connections: int = 0,
        rate: float = 0.0,
        auth_failures: float = 0.0,
        trusted: Sequence[Network] = (),
    ) -> None:
        self._most = connections
        self._rate = rate
        self._auth_failures = auth_failures
        self._trusted = tuple(trusted)
        self._known: dict[str, Address] = {}
        self._idle: dict[str, float] = {}
        self._late: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._known)

    def enter(self, connection: Connection, peer: str, now: float) -> bool:
        """Count a connection from `peer`, a client or a proxy. False: cut it, it is one too many."""
        proxy = is_in(peer, self._trusted)
        name = peer if proxy else counted_as(peer)
        address = self._known.get(name)
        if address is None:
            address = self._known[name] = Address(name, proxy, now, self._rate, self._auth_failures)
        elif not proxy and self._most and address.open >= self._most:
            _CONNECTIONS.inc()
            return False
        if self._rate and not proxy and not self._take(address, connection, now):
            return False
        address.open += 1
        connection.address = address
        return True

    def _take(self, address: Address, connection: Connection, now: float) -> bool:
        """One connect of the address's bucket; behind that one of those that are told so."""
        if now > address.at:
            passed_s = now - address.at
            address.left = min(self._rate * BURST_S, address.left + passed_s * self._rate)
            address.told_left = min(
                self._rate * _TOLD_SHARE + 1.0, address.told_left + passed_s * self._rate * _TOLD_SHARE
            )
            address.at = now
        if address.left >= 1.0:
            address.left -= 1.0
            return True
        _RATE.inc()
        if address.told_left < 1.0:
            return False
        address.told_left -= 1.0
        self._late.add(connection)
        return True

    def check(self, connection: Connection, headers: Mapping[str, str], now: float) -> None:
        """At its request, whose headers may name the client. Raises Overloaded."""
        address = connection.address
        if address is None:
            return
        forwarded = headers.get("x-forwarded-for") if address.proxy else None
        if forwarded:
            client = client_address(address.name, forwarded, self._trusted)
            if client != address.name:
                self.leave(connection, now)
                if not self.enter(connection, client, now):
                    raise Overloaded("too many connections from this address", retry_after_s=come_again_s())
                address = connection.address
                assert address is not None
        if self._late and connection in self._late:
            self._late.discard(connection)
            raise Overloaded("too many connections a second from this address", retry_after_s=come_again_s())
        if self._auth_failures and not address.proxy and self._auth_bucket(address, now) < 1.0:
            _AUTH_FAILURES.inc()
            raise Overloaded("too many refused tokens or floods from this address", retry_after_s=come_again_s())

    def offended(self, connection: Connection, now: float, weight: float = 1.0) -> None:
        """Its token was refused; or it flooded, which cost the node as much as `FLOOD_WEIGHT` of those."""
        address = connection.address
        if address is not None and self._auth_failures:
            address.auth_left = self._auth_bucket(address, now) - weight

    def _auth_bucket(self, address: Address, now: float) -> float:
        if now > address.auth_at:
            refill = (now - address.auth_at) * self._auth_failures
            address.auth_left = min(self._auth_failures * BURST_S, address.auth_left + refill)
            address.auth_at = now
        return address.auth_left

    def leave(self, connection: Connection, now: float) -> None:
        """It is gone. Nothing if it was not counted."""
        address = connection.address
        if address is None:
            return
        connection.address = None
        if self._late:
            self._late.discard(connection)
        address.open -= 1
        if not address.open:
            self._idle.pop(address.name, None)
            self._idle[address.name] = now

    def sweep(self, now: float) -> None:
        """Forget those that have had no connection for a while."""
        over: list[str] = []
        for name, left_at in self._idle.items():
            if left_at > now - _KEPT_S:
                break
            over.append(name)
        for name in over:
            del self._idle[name]
            if not self._known[name].open:
                del self._known[name]
