"""
The ports of a node: the WebSocket port with its gate and listener, and the admin port.

The WebSocket port is bound first of all, since its number is part of the node's identity; sockets are accepted on it
from `open` on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from gateway_node.admin import open_admin
from gateway_node.gateway import Gateway
from gateway_node.hub import Hub
from gateway_node.settings import GatewaySettings
from gateway_node.websocket.gate import Gate, Limits
from gateway_node.websocket.listener import Listener, listening_socket, serve
from shared.registry import DrainState
from shared.settings import cannot_listen
from shared.tls import open_port_tls


class Ports:
    """Binds the WebSocket port. `node_id`: what clients and ops see. Raises SettingsError: the port is taken."""

    __slots__ = ("_admin", "_gate", "_listener", "_settings", "_sock", "_tls", "admin_port", "node_id", "port")

    def __init__(self, settings: GatewaySettings) -> None:
        self._tls = open_port_tls(settings.tls_cert, settings.tls_key)
        try:
            self._sock = listening_socket(settings.bind_host, settings.port)
        except OSError as error:
            raise cannot_listen("PUSH_NODE_PORT", settings.port, error) from None
        self._settings = settings
        self.port: int = self._sock.getsockname()[1]
        self.admin_port = 0
        self.node_id = settings.advertise or _own_node_id(settings.bind_host, self.port)
        self._gate: Gate | None = None
        self._listener: Listener | None = None
        self._admin: web.AppRunner | None = None

    def make_gate(self, gateway: Gateway) -> Gate:
        """The gate behind the WebSocket port."""
        settings = self._settings
        limits = Limits(
            max_message=settings.max_frame,
            max_fragments=settings.max_fragments,
            byte_rate=settings.byte_rate,
            control_rate=settings.ping_rate,
            max_outbox_bytes=settings.max_outbox,
            handshake_timeout_s=settings.handshake_timeout_s,
            max_handshakes=settings.max_handshakes,
            max_head=settings.max_header_bytes,
            max_headers=settings.max_headers,
        )
        self._gate = Gate(
            gateway,
            asyncio.get_running_loop(),
            limits,
            addresses=gateway.addresses,
            tls=None if self._tls is None else self._tls.context,
            proxied=settings.proxy_protocol,
            trusted=settings.trusted_proxies,
        )
        return self._gate

    async def open(self, gateway: Gateway, hub: Hub, drain: Callable[[], DrainState | None]) -> None:
        """Accept sockets, and open the admin port. Behind `make_gate`. Raises SettingsError."""
        assert self._gate is not None
        settings = self._settings
        if self._tls is not None:
            self._tls.start()
        self._listener = await serve(self._gate, self._sock)
        try:
            self._admin, self.admin_port = await open_admin(
                settings.admin_host, settings.admin_port, self.node_id, gateway, hub, drain
            )
        except OSError as error:
            raise cannot_listen("PUSH_ADMIN_PORT", settings.admin_port, error) from None

    @property
    def scheme(self) -> str:
        """Of the WebSocket port's URL."""
        return "ws" if self._tls is None else "wss"

    def tick(self, now: float) -> None:
        """For the ticker."""
        if self._gate is not None:
            self._gate.tick(now)

    def stop_listening(self) -> None:
        """Accept no more, and cut what has not become a WebSocket."""
        if self._listener is not None:
            self._listener.close()
        if self._gate is not None:
            self._gate.abort_unopened()

    async def close(self) -> None:
        """The admin port too."""
        self.stop_listening()
        if self._tls is not None:
            await self._tls.close()
        if self._admin is not None:
            await self._admin.cleanup()


def _own_node_id(host: str, port: int) -> str:
    """The bound address; for `every address`, the one that this machine would reach others from."""
    if host in ("0.0.0.0", "::", ""):
        host = _outward_address()
    elif host == "localhost":
        host = "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _outward_address() -> str:
    """Connecting a UDP socket sends nothing; it only chooses a source address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737)
            address: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
        return address
