"""
TLS over a connection's transport, with the transport's own account of what the kernel has taken.

The event loop's TLS transport holds what it has encrypted in a buffer of its own and that of the socket below, and
tells of the first alone; `blocked` and `outbox_bytes` of a connection have to tell of the second. So records are made
and read here, by OpenSSL in memory, and everything else is the plain transport's: its buffer is the only one, its
`pause_writing` goes to the connection directly, and a connection is one from its first byte on, with one deadline for
the TLS handshake and the request together.

Both directions go in pieces of a record, since OpenSSL's memory buffers never shrink.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any, Final

_PIECE: Final = 16384
"""A record's plain text at most (RFC 8446 section 5.1)."""

_MOST_ANSWERS: Final = 65536
"""Bytes that TLS itself may have waiting, such as answers to key updates of a peer that reads nothing."""


class TlsTransport(asyncio.Transport):
    """
    Encrypts over `wire`. Its owner hands what comes to `received`.

    `shaken`: the handshake is done; `ended`: the peer has closed TLS; `finished`: we have.
    """

    __slots__ = ("_answered", "_context", "_incoming", "_outgoing", "_tls", "_wire", "ended", "finished", "shaken")

    def __init__(self, wire: asyncio.Transport, context: ssl.SSLContext) -> None:
        super().__init__()
        self._wire = wire
        self._context = context
        self._tls: ssl.SSLObject | None = None  # made at the first byte
        self._answered = 0  # bytes, since the kernel last had taken all
        self.shaken = False
        self.ended = False
        self.finished = False

    def received(self, data: bytes) -> bytes:
        """What there is in plain now. Raises ssl.SSLError: the peer speaks no TLS, or broke it; it was told."""
        tls = self._tls
        if tls is None:
            tls = self._start()
        incoming, outgoing = self._incoming, self._outgoing
        plain: list[bytes] = []
        view = memoryview(data)
        try:
            for at in range(0, len(data), _PIECE):
                incoming.write(view[at : at + _PIECE])
                if self.shaken or self._shake(tls):
                    self._read(tls, plain)
        finally:
            if outgoing.pending:
                self._answer(outgoing.read())
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def _answer(self, records: bytes) -> None:
        """What TLS itself has to say."""
        if not self._wire.get_write_buffer_size():
            self._answered = 0
        self._answered += len(records)
        self._wire.write(records)
        if self._answered > _MOST_ANSWERS:
            self._wire.abort()

    def _start(self) -> ssl.SSLObject:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        return self._tls

    def _shake(self, tls: ssl.SSLObject) -> bool:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.shaken = True
        return True

    def _read(self, tls: ssl.SSLObject, plain: list[bytes]) -> None:
        while not self.ended and (self._incoming.pending or tls.pending()):
            try:
                piece = tls.read(_PIECE)
            except ssl.SSLWantReadError:
                return
            if piece:
                plain.append(piece)
            else:
                self.ended = True

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        tls = self._tls
        if tls is None or self._wire.is_closing():
            return
        outgoing = self._outgoing
        try:
            if len(data) <= _PIECE:
                tls.write(data)
                self._wire.write(outgoing.read())
                return
            view, records = memoryview(data), []
            for at in range(0, len(data), _PIECE):
                tls.write(view[at : at + _PIECE])
                records.append(outgoing.read())
        except ssl.SSLError:
            self._wire.abort()
            return
        self._wire.write(b"".join(records))

    def close(self) -> None:
        """Behind what was written, and the word that this is all (RFC 8446 section 6.1)."""
        self._say_all()
        self._wire.close()

    def write_eof(self) -> None:
        """Close our half of both TLS and TCP."""
        self._say_all()
        self._wire.write_eof()

    def _say_all(self) -> None:
        self.finished = True
        tls = self._tls
        if tls is None or not self.shaken or self._wire.is_closing():
            return
        with suppress(ssl.SSLError):  # it wants the peer's own word, which nobody waits for
            tls.unwrap()
        if self._outgoing.pending:
            self._wire.write(self._outgoing.read())

    def abort(self) -> None:
        self._wire.abort()

    def is_closing(self) -> bool:
        return self._wire.is_closing()

    def can_write_eof(self) -> bool:
        return self._wire.can_write_eof()

    def get_write_buffer_size(self) -> int:
        return self._wire.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._wire.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, or what the plain transport has."""
        return self._tls if name == "ssl_object" else self._wire.get_extra_info(name, default)
