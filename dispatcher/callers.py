"""
Callers: who sends, what it may, and how fast.

PUSH_API_KEYS names a JSON file:

    {"keys":[{"name":"billing","sha256":"<hex of the key's SHA-256>","scopes":["send"],"rate":1000,"quota":1000000}]}

A request presents its key in `Authorization: Bearer` or `X-API-Key`. `rate` (sends/s) is a token bucket of one second
in this process; `quota` (sends a UTC day) is counted in Redis, over all dispatchers.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from shared.errors import Forbidden, Overloaded, Unauthorized

SCOPES = ("send", "broadcast", "read", "admin")
_NAME = re.compile(r"[A-Za-z0-9._\-:@]{1,64}\Z")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")


class KeysFault(Exception):
    """What is wrong with the file of API keys; never holds a key."""


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key as it stands in the file: `sha256`, or `key` in plain (development)."""

    name: str
    scopes: list[str]
    sha256: str = ""
    key: str = ""
    rate: float | None = None
    quota: int | None = None


class _KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[KeyEntry]


class Caller:
    """A business system: its name, what it may, and how much it may send now. `id` is never another caller's."""

    __slots__ = ("_bucket", "_filled_at", "_now", "_rate", "id", "may_send", "name", "quota", "scopes")

    def __init__(
        self,
        name: str,
        scopes: frozenset[str],
        *,
        rate: float | None = None,
        quota: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = f"key:{name}"
        self.name = name
        self.scopes = scopes
        self.may_send = not scopes.isdisjoint(("send", "broadcast"))
        self.quota = quota
        self._rate = rate
        self._now = now
        self._filled_at = now()
        self._bucket = max(rate or 0.0, 1.0)

    def require(self, scope: str) -> None:
        """Raises Forbidden."""
        if scope not in self.scopes:
            raise Forbidden(f"the API key {self.name} has no scope {scope!r}")

    def take(self) -> None:
        """Count one send. Raises Overloaded with when the next has room."""
        rate = self._rate
        if rate is None:
            return
        now = self._now()
        self._bucket = min(max(rate, 1.0), self._bucket + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._bucket < 1.0:
            wait_s = math.ceil((1.0 - self._bucket) / rate)
            raise Overloaded(f"{self.name}: over {rate:g} sends a second", retry_after_s=wait_s)
        self._bucket -= 1.0


class Callers:
    """Who presents which key. With no keys (PUSH_AUTH=off) everybody is `system` and may do everything."""

    __slots__ = ("_anybody", "_by_digest")

    def __init__(self, keys: list[KeyEntry] | None) -> None:
        self._anybody = Caller("system", frozenset(SCOPES)) if keys is None else None
        self._by_digest: dict[bytes, tuple[bytes, Caller]] = {}
        for entry in keys or ():
            digest = bytes.fromhex(entry.sha256) if entry.sha256 else _digest(entry.key)
            caller = Caller(entry.name, frozenset(entry.scopes), rate=entry.rate, quota=entry.quota)
            self._by_digest[digest] = (digest, caller)

    def identify(self, authorization: str | None, api_key: str | None) -> Caller:
        """The caller of a request with these headers. Raises Unauthorized."""
        if self._anybody is not None:
            return self._anybody
        presented = presented_key(authorization, api_key)
        if not presented:
            raise Unauthorized("present an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`")
        digest = _digest(presented)
        known = self._by_digest.get(digest)
        if known is None or not hmac.compare_digest(known[0], digest):
            raise Unauthorized("unknown API key")
        return known[1]


def presented_key(authorization: str | None, api_key: str | None) -> str:
    """The key or token in a request's headers; "" when there is none."""
    if authorization is not None and authorization[:7].lower() == "bearer ":
        return authorization[7:].strip()
    return api_key or ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def load_keys(path: str) -> list[KeyEntry]:
    """The keys of a file. Raises KeysFault."""
    try:
        keys = msgspec.json.decode(Path(path).read_bytes(), type=_KeysFile).keys
    except OSError as error:
        raise KeysFault(f"cannot be read ({error.strerror})") from None
    except msgspec.ValidationError as error:
        raise KeysFault(str(error)) from None
    except (msgspec.DecodeError, ValueError):
        raise KeysFault("not JSON") from None
    if not keys:
        raise KeysFault("no keys")
    names: set[str] = set()
    secrets: set[str] = set()
    for place, entry in enumerate(keys):
        secret = entry.sha256.lower() or (_digest(entry.key).hex() if entry.key else "")
        fault = _entry_fault(entry, names) or ("the same key as another" if secret in secrets else "")
        if fault:
            raise KeysFault(f"keys[{place}]: {fault}")
        names.add(entry.name)
        secrets.add(secret)
    return keys


def _entry_fault(entry: KeyEntry, names: set[str]) -> str:
    if not _NAME.match(entry.name):
        return "name: expected 1 to 64 of A-Z a-z 0-9 . _ - : @"
    if entry.name in names:
        return f"name: {entry.name} is there twice"
    if bool(entry.sha256) == bool(entry.key):
        return "expected either sha256 or key"
    if entry.sha256 and not _SHA256.match(entry.sha256):
        return "sha256: expected 64 hex digits"
    unknown = [scope for scope in entry.scopes if scope not in SCOPES]
    if unknown or not entry.scopes:
        return f"scopes: expected some of {', '.join(SCOPES)}"
    if entry.rate is not None and not 0 < entry.rate <= 1e9:
        return "rate: expected sends a second, over 0"
    if entry.quota is not None and entry.quota < 1:
        return "quota: expected sends a day, at least 1"
    return ""
