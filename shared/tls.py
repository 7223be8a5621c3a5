"""
TLS of a role's own ports, and of what it connects to.

A port's certificate is read again when one of its two files changes: looked at every two seconds, tried on a context of
its own first, then put into the one that the port uses, so that connections made from then on get the new one. A pair
that does not fit (one file is replaced before the other) leaves the old one in use.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509

from shared.logs import get_log
from shared.metrics import TLS_EXPIRES
from shared.settings import wrong_setting

_LOOK_S: Final = 2.0
_log = get_log("tls")

_Stamp = tuple[tuple[int, int, int], ...]


class TlsFault(Exception):
    """What is wrong with a certificate or its key; `variable` says which file."""

    def __init__(self, variable: str, path: str, reason: str) -> None:
        super().__init__(reason)
        self.variable = variable
        self.path = path


def open_port_tls(cert: str, key: str) -> ServerTls | None:
    """Of PUSH_TLS_CERT and PUSH_TLS_KEY; None when there is none. Raises SettingsError."""
    if not cert:
        return None
    try:
        return ServerTls(cert, key)
    except TlsFault as fault:
        raise wrong_setting(fault.variable, fault.path, str(fault)) from None


class ServerTls:
    """
    The certificate of a port. `context` stays the same; `watch` keeps it up to date.

    TLS 1.2 or 1.3, with the standard library's ciphers; ALPN http/1.1; no renegotiation. Raises TlsFault.
    """

    __slots__ = ("_cert", "_complaint", "_key", "_seen", "_task", "context")

    def __init__(self, cert: str, key: str) -> None:
        self._cert = cert
        self._key = key
        self._task: asyncio.Task[None] | None = None
        self._complaint = ""
        self._seen = self._stamp()
        self.context = _server_context()
        self._load()

    def start(self) -> None:
        """Look after the files until `close`."""
        self._task = asyncio.create_task(self._watch(), name="tls")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def refresh(self) -> bool:
        """Read the files if they have changed; whether there is a new certificate. Never raises."""
        seen = self._stamp()
        if seen == self._seen:
            return False
        try:
            self._load()
        except TlsFault as fault:
            complaint = f"{fault.variable}={fault.path!r}: {fault}"
            if complaint != self._complaint:
                self._complaint = complaint
                _log.error("tls_certificate_not_taken", reason=complaint, effect="the old one stays in use")
            return False
        self._seen = seen
        self._complaint = ""
        _log.info("tls_certificate_taken", expires=int(_expires_s(self._cert)))
        return True

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.refresh()

    def _load(self) -> None:
        """Raises TlsFault."""
        expires_s = _expires_s(self._cert)
        for context in (_server_context(), self.context):
            _load_pair(context, self._cert, self._key)
        TLS_EXPIRES.set(expires_s)

    def _stamp(self) -> _Stamp:
        return tuple(_stamp_of(path) for path in (self._cert, self._key))


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load_pair(context: ssl.SSLContext, cert: str, key: str) -> None:
    try:
        # A key that wants a password would have OpenSSL ask for it on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except OSError as error:  # ssl.SSLError, too
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise TlsFault(
            "PUSH_TLS_KEY", key, f"expected the PEM key of PUSH_TLS_CERT, not encrypted ({reason})"
        ) from None


def _expires_s(cert: str) -> float:
    """When the certificate ends, epoch seconds."""
    try:
        certificate = x509.load_pem_x509_certificate(Path(cert).read_bytes())
    except OSError as error:
        raise TlsFault("PUSH_TLS_CERT", cert, f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise TlsFault(
            "PUSH_TLS_CERT", cert, "expected a PEM file, the certificate first, its chain behind it"
        ) from None
    return certificate.not_valid_after_utc.timestamp()


def _stamp_of(path: str) -> tuple[int, int, int]:
    try:
        status = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
