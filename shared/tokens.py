"""
Connect tokens: JWTs (RFC 7519) that say which client a connection or a caller is. Pure.

A token is checked with a key of the site's key set: the secret (HS256), or the one that its `kid` names in a JWKS (RFC
7517). The algorithm belongs to the key and is never taken from the token (RFC 8725 section 3.1): a token that names
another one is refused, so a public key can never serve as a secret. `exp` and `nbf` are checked with 5 s of leeway,
`aud` and `iss` where the site says what they have to be.

A token that was good is remembered by its digest until it expires, so a client that comes back costs no signature.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from shared.errors import Unauthorized
from shared.ids import client_id_fault

LEEWAY_S = 5
MOST_GROUPS = 100
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
_MOST_REMEMBERED = 50_000
_MOST_TOKEN = 16 << 10
_OPTIONS: jwt.types.Options = {"require": ["sub"], "verify_aud": False, "verify_iss": False}


class UnknownKey(Unauthorized):
    """No key of the set has the token's `kid`; a newer set may."""


@dataclass(frozen=True, slots=True)
class Claims:
    """
    What a good token says. `expires_s` and `issued_s` in epoch seconds, 0: not said.

    `groups` are joined for the session; `scopes` are for callers.
    """

    client_id: str
    expires_s: float
    device: str
    groups: tuple[str, ...] = ()
    issued_s: float = 0.0
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the one algorithm it is for."""

    algorithm: str
    key: Any


class KeySetFault(Exception):
    """What is wrong with a JWKS; never holds a key."""


class KeySet:
    """Keys by their `kid`; `secret` is for tokens that name none."""

    __slots__ = ("_by_id", "_secret")

    def __init__(self, secret: str = "", keys: Mapping[str, Key] | None = None) -> None:
        self._secret = Key("HS256", secret) if secret else None
        self._by_id = dict(keys or {})

    def __len__(self) -> int:
        return len(self._by_id) + (self._secret is not None)

    def find(self, key_id: str | None, algorithm: str) -> Key:
        """Raises Unauthorized, UnknownKey."""
        if key_id is not None and key_id in self._by_id:
            key = self._by_id[key_id]
        elif key_id is None or not self._by_id:
            key = self._only(algorithm)
        else:
            raise UnknownKey("the token's key (kid) is not known here")
        if key.algorithm != algorithm:
            raise Unauthorized(f"the token is not valid (its key is for {key.algorithm})")
        return key

    def _only(self, algorithm: str) -> Key:
        """For a token that names no key: the secret, or the set's only key."""
        if self._secret is not None and (algorithm == "HS256" or not self._by_id):
            return self._secret
        if len(self._by_id) == 1:
            return next(iter(self._by_id.values()))
        raise Unauthorized("the token names no key (kid)")


def read_jwks(text: bytes, secret: str = "") -> KeySet:
    """
    A JWKS (RFC 7517 section 5). Keys that are for something else (`use`, `alg`) or of no kind that is known are left
    out. Raises KeySetFault.
    """
    try:
        entries = list(_entries(text))
    except ValueError as error:
        raise KeySetFault(str(error)) from None
    keys: dict[str, Key] = {}
    for place, entry in enumerate(entries):
        if entry.get("use", "sig") != "sig" or entry.get("alg", "HS256") not in ALGORITHMS:
            continue
        try:
            key = jwt.PyJWK(entry)
        except jwt.PyJWKError as error:
            if entry.get("kty") in ("oct", "RSA", "EC", "OKP"):
                raise KeySetFault(f"keys[{place}]: {error}") from None
            continue
        if key.algorithm_name in ALGORITHMS:
            keys[str(entry.get("kid", place))] = Key(key.algorithm_name, key.key)
    if not keys:
        raise KeySetFault(f"no key for {', '.join(ALGORITHMS)}")
    return KeySet(secret, keys)


def _entries(text: bytes) -> Iterator[dict[str, Any]]:
    """Raises ValueError."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("not JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError('expected {"keys":[...]}')
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"keys[{place}]: expected an object")
        yield entry


class TokenVerifier:
    """Checks tokens against the set that `keys` gives. `audience`, `issuer`: "" is any."""

    __slots__ = ("_audience", "_issuer", "_keys", "_of", "_remembered", "hits")

    def __init__(self, keys: Callable[[], KeySet], *, audience: str = "", issuer: str = "") -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._of: KeySet | None = None
        self._remembered: dict[bytes, Claims] = {}
        self.hits = 0

    def verify(self, token: str) -> Claims:
        """Raises Unauthorized with the reason, never with the token; UnknownKey is one."""
        keys = self._keys()
        if keys is not self._of:
            self._of = keys
            self._remembered = {}
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        claims = self._remembered.get(digest)
        if claims is None:
            claims = self._check(keys, token)
            if len(self._remembered) >= _MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[digest] = claims
        elif claims.expires_s and claims.expires_s + LEEWAY_S <= time.time():
            del self._remembered[digest]
            raise Unauthorized("the token has expired; get a new one")
        else:
            self.hits += 1
        return claims

    def _check(self, keys: KeySet, token: str) -> Claims:
        if len(token) > _MOST_TOKEN:
            raise Unauthorized(f"the token is too long, at most {_MOST_TOKEN} bytes")
        try:
            header = jwt.get_unverified_header(token)
            key_id = header.get("kid")
            key = keys.find(key_id if isinstance(key_id, str) else None, str(header.get("alg")))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                leeway=LEEWAY_S,
                audience=self._audience or None,
                issuer=self._issuer or None,
                options=_OPTIONS | {"verify_aud": bool(self._audience), "verify_iss": bool(self._issuer)},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired; get a new one") from None
        except jwt.InvalidAudienceError:
            raise Unauthorized("aud: the token is for somebody else") from None
        except jwt.InvalidIssuerError:
            raise Unauthorized("iss: the token is somebody else's") from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthorized(f"{error.claim}: missing in the token") from None
        except (jwt.InvalidTokenError, jwt.PyJWKError, ValueError, TypeError) as error:
            raise Unauthorized(f"the token is not valid ({type(error).__name__})") from None
        return _read(claims)


def _read(claims: Mapping[str, Any]) -> Claims:
    """Raises Unauthorized."""
    client_id = claims["sub"]
    fault = client_id_fault(client_id)
    if fault:
        raise Unauthorized(f"sub: {fault}")
    device, scope = claims.get("device", ""), claims.get("scope", "")
    return Claims(
        client_id,
        float(claims.get("exp", 0)),
        device if isinstance(device, str) else "",
        _groups(claims.get("groups", [])),
        float(claims.get("iat", 0)),
        tuple(scope.split()) if isinstance(scope, str) else (),
    )


def _groups(claim: object) -> tuple[str, ...]:
    """Raises Unauthorized."""
    if not isinstance(claim, list) or len(claim) > MOST_GROUPS:
        raise Unauthorized(f"groups: expected a list of at most {MOST_GROUPS} groupIds")
    for place, group in enumerate(claim):
        fault = client_id_fault(group, "groupId") if isinstance(group, str) else "expected a string"
        if fault:
            raise Unauthorized(f"groups[{place}]: {fault}")
    return tuple(dict.fromkeys(claim))


def mint_token(secret: str, client_id: str, *, life_s: int, device: str = "", groups: Sequence[str] = ()) -> str:
    """A token for one client, good from now for `life_s` seconds."""
    now = int(time.time())
    claims: dict[str, object] = {"sub": client_id, "iat": now, "exp": now + life_s}
    if device:
        claims["device"] = device
    if groups:
        claims["groups"] = list(groups)
    return jwt.encode(claims, secret, algorithm="HS256")
