"""
A connection that does not begin with its request: a PROXY header comes first, or TLS, or one and then the other.

Both belong to the opening of the connection: they stand under the deadline of its handshake, and count as half open.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, cast

from gateway_node.metrics import CONNECTIONS, REFUSED
from gateway_node.websocket.connection import Connection
from gateway_node.websocket.proxy_protocol import BadHeader, read_header
from gateway_node.websocket.tls import TlsTransport

if TYPE_CHECKING:
    from gateway_node.websocket.gate import Gate

_TLS_FAILED = CONNECTIONS.labels("tls_failed")
_BAD_HEADER = REFUSED.labels("proxy_header")


class EdgeConnection(Connection):
    """See the module."""

    __slots__ = ("_header", "_tls")

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate)
        self._header: bytes | None = b"" if gate.proxied else None
        self._tls: TlsTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._gate.tls is not None:
            transport = self._tls = TlsTransport(cast(asyncio.Transport, transport), self._gate.tls)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._header is not None:
            data = self._header_received(self._header + data)
            if not data:
                return
        if self._tls is None or self._tls.finished:  # what comes behind our end is thrown away as it is
            super().data_received(data)
        else:
            self._records_received(self._tls, data)

    def _header_received(self, data: bytes) -> bytes:
        """What comes behind the header, once that is whole."""
        try:
            found = read_header(data)
        except BadHeader:
            _BAD_HEADER.inc()
            self.abort()
            return b""
        if found is None:
            self._header = data
            return b""
        self._header = None
        size, source = found
        if not self._gate.was_told(self, source):
            self.abort()
            return b""
        return data[size:]

    def _records_received(self, tls: TlsTransport, data: bytes) -> None:
        try:
            plain = tls.received(data)
        except ssl.SSLError:
            if tls.shaken:
                self.abort()
            else:
                _TLS_FAILED.inc()
                tls.close()
            return
        if plain:
            super().data_received(plain)
        if tls.ended and not tls.is_closing():
            self.eof_received()
            tls.close()
