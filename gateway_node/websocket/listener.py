"""
The listening socket of a node and the server on it.

TCP options are set on the listening socket, since Linux hands them on to what it accepts: that is no system call
a connection. TCP_NODELAY, because the flusher joins what belongs together already. TCP_NOTSENT_LOWAT, so that
the kernel takes at most about 16 KiB that it has not sent: with its default a consumer that has stopped reading
swallows megabytes before it is seen to be slow. The backlog is what a reconnect storm needs; the kernel clips it
to net.core.somaxconn.

Accepting is in bounded batches. libuv accepts one connection of a listening socket in each turn of the loop: that
keeps those served who are in, but a node whose turns take 2 ms, since it is delivering, would take in 240 connections
a second. So the loop watches several descriptors of the one socket, and accepts at most as many in a turn (1,960 a
second then).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from gateway_node.websocket.gate import Gate

BACKLOG: Final = 4096
ACCEPTS_PER_TURN: Final = 8
NOTSENT_LOWAT_BYTES: Final = 16384
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)  # absent from the module where not compiled in


def listening_socket(host: str, port: int) -> socket.socket:
    """
    A bound TCP socket for `loop.create_server`. `host` is an IPv4 or IPv6 address or a name; port 0 is a free one.

    `::` takes IPv4 connections too. Raises OSError: the address is taken or not this machine's.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """Accepts connections until `close`, which leaves those that are there be."""

    __slots__ = ("_servers",)

    def __init__(self, servers: list[asyncio.Server]) -> None:
        self._servers = servers

    def close(self) -> None:
        """Stop listening; the port is free."""
        for server in self._servers:
            server.close()


async def serve(gate: Gate, sock: socket.socket) -> Listener:
    """Accept connections on `sock` from now on; the listener owns the socket."""
    loop = asyncio.get_running_loop()
    descriptors = [sock, *(sock.dup() for _ in range(ACCEPTS_PER_TURN - 1))]
    return Listener([await loop.create_server(gate.connection, sock=each, backlog=BACKLOG) for each in descriptors])
