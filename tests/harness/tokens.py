"""Keys, tokens and verifiers of connect tokens, without the files and URLs that keys come from."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from shared.jwks import KeySet
from shared.tokens import TokenVerifier

SECRET = "s" * 32


def verifier_of(secret: str) -> TokenVerifier:
    """Over one secret."""
    keys = KeySet(secret)
    return TokenVerifier(lambda: keys)


@dataclass(frozen=True)
class Signer:
    """An issuer's key: signs tokens, and has a JWK."""

    algorithm: str
    key: Any
    kid: str

    def sign(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token of alice, good for a minute, with the key's `kid`."""
        now = int(time.time())
        names = {"kid": self.kid} if self.kid else {}
        payload = {"sub": "alice", "iat": now, "exp": now + 60} | claims
        return jwt.encode(payload, self.key, algorithm=self.algorithm, headers=names | (headers or {}))

    def jwk(self, *, private: bool = False, **fields: Any) -> dict[str, Any]:
        """With `kid` and `alg`, unless `fields` say otherwise (None: without it)."""
        key = self.key if private or self.algorithm == "HS256" else self.key.public_key()
        found = json.loads(jwt.get_algorithm_by_name(self.algorithm).to_jwk(key))
        found.pop("key_ops", None)
        found |= {"kid": self.kid, "alg": self.algorithm} | fields
        return {name: value for name, value in found.items() if value is not None and value != ""}


@cache
def signer(algorithm: str, kid: str = "k", which: int = 0) -> Signer:
    """Always the same for the same arguments; `which` tells two of one kind apart."""
    key: Any
    if algorithm.startswith("RS"):
        key = rsa.generate_private_key(65537, 2048)
    elif algorithm.startswith("ES"):
        key = ec.generate_private_key(ec.SECP256R1() if algorithm == "ES256" else ec.SECP384R1())
    elif algorithm == "EdDSA":
        key = ed25519.Ed25519PrivateKey.generate()
    else:
        key = bytes([65 + which]) * 64
    return Signer(algorithm, key, kid)


def jwks(*entries: Any) -> bytes:
    return json.dumps({"keys": entries}).encode()


def by_hand(header: Any, payload: Any, signature: bytes = b"x" * 32) -> str:
    """A token of these parts; bytes are taken as they are, anything else is written as JSON."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature))
