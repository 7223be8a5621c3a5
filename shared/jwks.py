"""
The keys that connect tokens are checked with: a secret, and the keys of a JWKS (RFC 7517). Pure.

A key is for one algorithm, which its JWK names or its type implies; a token can only ask for it, never choose it (RFC
8725 section 3.1). So a public key never serves as a secret, and no key of the set answers for an algorithm that is not
its own.

A JWKS that holds something wrong is refused as a whole, so that a set is used as it was meant or not at all: a key
that is too weak, cannot be read, or shares its `kid` with another of the same algorithm. Keys for something else are
left out. Of a private key, which no verifier should have, the public part alone is kept.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import get_default_algorithms

from shared.errors import Unauthorized

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
LEAST_SECRET = 32
"""Bytes of a secret (RFC 7518 section 3.2)."""

_LEAST_RSA_BITS = 2048
_MOST_RSA_BITS = 8192  # checking a signature costs its square
_MOST_KEYS = 1_000
_KIND = {"HS256": "oct", "RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_IMPLIED = {("oct", ""): "HS256", ("RSA", ""): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_CHECKS = get_default_algorithms()


class UnknownKey(Unauthorized):
    """No key of the set has the token's `kid`; a newer set may."""


class KeySetFault(Exception):
    """What is wrong with a JWKS; never holds a key."""


@dataclass(frozen=True, slots=True)
class Key:
    """
    A key and the one algorithm it is for.

    `key`: bytes, or a public key of the library `cryptography`. `id`: its `kid`, "" without one.
    """

    algorithm: str
    key: Any
    id: str = ""
    was_private: bool = False

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Compares in constant time."""
        if self.algorithm == "HS256":
            return hmac.compare_digest(hmac.digest(self.key, message, hashlib.sha256), signature)
        return _CHECKS[self.algorithm].verify(message, self.key, signature)


class KeySet:
    """Keys by their `kid` and algorithm; `secret` is for tokens that name none."""

    __slots__ = ("_by_id", "_ids", "_keys", "was_private")

    def __init__(self, secret: str = "", keys: Iterable[Key] = ()) -> None:
        named = [key for key in keys if key.id]
        unnamed = [key for key in keys if not key.id]
        self._by_id = {(key.id, key.algorithm): key for key in named}
        self._ids = {key.id: key.algorithm for key in named}
        self._keys: list[Key] = [*([Key("HS256", secret.encode())] if secret else ()), *named, *unnamed]
        self.was_private = sum(key.was_private for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key_id: str | None, algorithm: str) -> Key:
        """The key for a token whose header names these. Raises Unauthorized, UnknownKey."""
        if algorithm not in _KIND:
            raise Unauthorized(f"alg: the token has to be signed with {', '.join(ALGORITHMS)}")
        if key_id is None or not self._ids:
            return self._only(algorithm)
        key = self._by_id.get((key_id, algorithm))
        if key is not None:
            return key
        if key_id in self._ids:
            raise Unauthorized(f"alg: the token's key is for {self._ids[key_id]}")
        raise UnknownKey("kid: the token's key is not known here")

    def _only(self, algorithm: str) -> Key:
        """For a token that names no key, or where no key has a name: the only one for the algorithm."""
        fitting = [key for key in self._keys if key.algorithm == algorithm]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise Unauthorized("kid: the token names no key, and there are several")
        raise Unauthorized(f"alg: there is no key for {algorithm} here")


def read_jwks(text: bytes, secret: str = "") -> KeySet:
    """
    A JWKS (RFC 7517 section 5). Keys for something else (`use`, `key_ops`, `alg`, or of another kind) are left out.

    Raises KeySetFault.
    """
    keys: list[Key] = []
    for place, entry in enumerate(_entries(text)):
        try:
            key = _read_key(entry)
        except KeySetFault as fault:
            raise KeySetFault(f"keys[{place}]: {fault}") from None
        if key is None:
            continue
        if key.id and any((key.id, key.algorithm) == (other.id, other.algorithm) for other in keys):
            raise KeySetFault(f"keys[{place}]: another {key.algorithm} key has this kid")
        keys.append(key)
    if not keys:
        raise KeySetFault(f"no key for {', '.join(ALGORITHMS)}")
    return KeySet(secret, keys)


def _entries(text: bytes) -> Iterator[dict[str, Any]]:
    """Raises KeySetFault."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise KeySetFault("not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise KeySetFault('expected {"keys":[...]}')
    if len(entries) > _MOST_KEYS:
        raise KeySetFault(f"{len(entries)} keys, at most {_MOST_KEYS}")
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise KeySetFault(f"keys[{place}]: expected an object")
        yield entry


def _read_key(entry: dict[str, Any]) -> Key | None:
    """None: it is for something else. Raises KeySetFault."""
    kind, curve, key_id = entry.get("kty"), entry.get("crv", ""), entry.get("kid", "")
    if not isinstance(kind, str) or not isinstance(curve, str) or not isinstance(key_id, str):
        raise KeySetFault("kty, crv, kid: expected strings")
    operations = entry.get("key_ops", ["verify"])
    algorithm = entry.get("alg") or _IMPLIED.get((kind, curve))
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or algorithm not in ALGORITHMS:
        return None
    if "verify" not in operations and "sign" not in operations:
        return None
    if kind != _KIND[algorithm]:
        raise KeySetFault(f"kty {kind[:16]!r} is none for {algorithm}")
    try:
        key = jwt.PyJWK(entry, algorithm).key
    except Exception:  # whatever it is, its text may hold the key
        raise KeySetFault(f"cannot be read as a key for {algorithm}") from None
    was_private = kind != "oct" and hasattr(key, "public_key")
    if was_private:
        key = key.public_key()
    _check_strength(key)
    return Key(algorithm, key, key_id, was_private)


def _check_strength(key: object) -> None:
    """Raises KeySetFault."""
    if isinstance(key, bytes):
        if len(key) < LEAST_SECRET:
            raise KeySetFault(f"a secret of {len(key)} bytes, expected {LEAST_SECRET} or more")
    elif isinstance(key, RSAPublicKey):
        if not _LEAST_RSA_BITS <= key.key_size <= _MOST_RSA_BITS:
            raise KeySetFault(f"{key.key_size} bits, expected {_LEAST_RSA_BITS} to {_MOST_RSA_BITS}")
    elif isinstance(key, EllipticCurvePublicKey):
        if not isinstance(key.curve, SECP256R1):
            raise KeySetFault(f"curve {key.curve.name}, expected P-256")
    elif not isinstance(key, Ed25519PublicKey):
        raise KeySetFault("expected an Ed25519 key")
