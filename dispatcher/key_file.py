"""
The file of API keys: its form, what is wrong with one, how a key is minted and put in. Pure but for reading the file.

    {"keys":[{"name":"billing","sha256":"<hex of the key's SHA-256>","scopes":["send"],"rate":1000,"quota":1000000,
              "expires":"2027-06-30T00:00:00Z"}]}

`sha256` may be a list of up to four digests, so that a key can be replaced without a moment in which neither works:
put the new one in beside the old one, move the caller over, take the old one out.

Why SHA-256 and no slow hash: a slow hash makes guessing dear where what is guessed has few bits, as a password has. A
minted key has 256 random bits, which nobody guesses at any speed; a slow hash would add nothing but its cost to each
request. A key that a person made up has no such bits. As a digest it cannot be told from a good one; in plain (`key`,
for development) one under 32 characters is warned about, and one under 16 refused where others can reach the port.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

SCOPES = ("send", "broadcast", "read", "admin")
PREFIX = "pf_"
"""What a minted key begins with, so that scanners find it where it should not be."""
MOST_DIGESTS = 4
WEAK_UNDER = 32
REFUSED_UNDER = 16
_KEY_BYTES = 32
_MOST_FILE = 16 << 20
_NAME = re.compile(r"[A-Za-z0-9._\-:@]{1,64}\Z")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")


class KeysFault(Exception):
    """What is wrong with the file of API keys; never holds a key."""


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry as it stands in the file: `sha256`, or `key` in plain (development)."""

    name: str
    scopes: list[str]
    sha256: str | list[str] = ""
    key: str = ""
    rate: float | None = None
    quota: int | None = None
    expires: int | float | str | None = None

    def digests(self) -> list[bytes]:
        """SHA-256 of each key that is good."""
        if self.key:
            return [digest_of(self.key)]
        return [bytes.fromhex(digest) for digest in self._listed()]

    def expires_s(self) -> float:
        """Epoch seconds; 0: never. Raises ValueError."""
        if self.expires is None:
            return 0.0
        return _epoch_s(self.expires)

    def _listed(self) -> Sequence[str]:
        if isinstance(self.sha256, str):
            return (self.sha256,) if self.sha256 else ()
        return self.sha256


class _KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[KeyEntry]


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def mint_key() -> str:
    """A new key: the prefix and 256 random bits in base64url (43 characters)."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def load_keys(path: str, *, least_key: int = 1) -> list[KeyEntry]:
    """The entries of a file. `least_key`: characters of a key in plain. Raises KeysFault."""
    return read_keys(read_file(path), least_key=least_key)


def read_file(path: str) -> bytes:
    """Raises KeysFault."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_FILE + 1)
    except OSError as error:
        raise KeysFault(f"cannot be read ({error.strerror})") from None
    if len(text) > _MOST_FILE:
        raise KeysFault(f"more than {_MOST_FILE} bytes")
    return text


def read_keys(text: bytes, *, least_key: int = 1) -> list[KeyEntry]:
    """Raises KeysFault."""
    try:
        keys = msgspec.json.decode(text, type=_KeysFile).keys
    except msgspec.ValidationError as error:
        raise KeysFault(str(error)) from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise KeysFault("not JSON") from None
    if not keys:
        raise KeysFault("no keys")
    names: set[str] = set()
    known: set[bytes] = set()
    for place, entry in enumerate(keys):
        fault = _fault(entry, names, least_key)
        if not fault:
            digests = entry.digests()
            if len(set(digests)) < len(digests) or not known.isdisjoint(digests):
                fault = "the same key as another"
            known.update(digests)
        if fault:
            raise KeysFault(f"keys[{place}]: {fault}")
        names.add(entry.name)
    return keys


def plain_names(keys: Sequence[KeyEntry]) -> tuple[list[str], list[str]]:
    """Names of the entries whose key stands there in plain, and of those of them that are weak."""
    plain = [entry for entry in keys if entry.key]
    return [entry.name for entry in plain], [entry.name for entry in plain if len(entry.key) < WEAK_UNDER]


def name_fault(name: str) -> str:
    """What is wrong with a caller's name; "" if nothing."""
    return "" if _NAME.match(name) else "expected 1 to 64 of A-Z a-z 0-9 . _ - : @"


def _fault(entry: KeyEntry, names: set[str], least_key: int) -> str:
    fault = name_fault(entry.name)
    if fault:
        return f"name: {fault}"
    if entry.name in names:
        return f"name: {entry.name} is there twice"
    unknown = [scope for scope in entry.scopes if scope not in SCOPES]
    if unknown or not entry.scopes:
        return f"scopes: expected some of {', '.join(SCOPES)}"
    if entry.rate is not None and not 0 < entry.rate <= 1e9:
        return "rate: expected sends a second, over 0"
    if entry.quota is not None and entry.quota < 1:
        return "quota: expected sends a day, at least 1"
    try:
        entry.expires_s()
    except ValueError:
        return "expires: expected epoch seconds, or a date as 2027-06-30T00:00:00Z"
    return _secret_fault(entry, least_key)


def _secret_fault(entry: KeyEntry, least_key: int) -> str:
    if bool(entry.sha256) == bool(entry.key):
        return "expected either sha256 or key"
    if entry.key and len(entry.key) < least_key:
        return f"key: {len(entry.key)} characters can be guessed, at least {least_key}; see pushfleet key new"
    if isinstance(entry.sha256, list) and len(entry.sha256) > MOST_DIGESTS:
        return f"sha256: {len(entry.sha256)} digests, at most {MOST_DIGESTS}"
    listed = [entry.sha256] if isinstance(entry.sha256, str) else entry.sha256
    if not entry.key and not all(map(_SHA256.match, listed)):
        return "sha256: expected 64 hex digits"
    return ""


def _epoch_s(expires: int | float | str) -> float:
    """A date without a time is its beginning, one without a zone is UTC (RFC 3339 section 5.6). Raises ValueError."""
    if not isinstance(expires, str):
        if not 0 < expires < 1e11:
            raise ValueError("not epoch seconds")
        return float(expires)
    when = datetime.fromisoformat(expires)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
