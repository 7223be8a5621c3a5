"""
Connect tokens: JWTs (RFC 7519) that say which client a connection or a caller is. Pure.

    length -> header -> key by kid and algorithm -> claims, exp, nbf, iat, sub -> signature -> aud, iss, groups

What is cheap comes before the signature, so that most garbage costs microseconds. The key and its algorithm come from
the site's key set (jwks.py). `exp`, `nbf` and `iat` are checked with 5 s of leeway, `aud` and `iss` where the site says
what they have to be. A header with `crit` is refused (RFC 7515 section 4.1.11: no extension is understood here), and so
is whatever is not exactly a JWS in compact form.

A token that was good is remembered by its digest until it expires, so a client that comes back costs no signature. Only
good ones are, so nobody who has none can push them out.
"""

from __future__ import annotations

import hashlib
import time
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jwt
import msgspec
from msgspec import UNSET, Raw, UnsetType

from shared.errors import Unauthorized
from shared.ids import client_id_fault
from shared.jwks import Key, KeySet

LEEWAY_S = 5
MOST_GROUPS = 100
MOST_TOKEN = 16 << 10
MOST_REMEMBERED = 50_000
_MOST_TIME = 253_402_300_800  # the year 10000
_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/!!!")


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


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    crit: Raw | UnsetType = UNSET


class _Payload(msgspec.Struct):
    """`exp`, `nbf` and `iat` have to be numbers; null would be none."""

    sub: str | UnsetType = UNSET
    exp: int | float | UnsetType = UNSET
    nbf: int | float | UnsetType = UNSET
    iat: int | float | UnsetType = UNSET
    aud: Any = None
    iss: Any = None
    device: Any = ""
    groups: Any = ()
    scope: Any = ""


_decode_header = msgspec.json.Decoder(_Header).decode
_decode_payload = msgspec.json.Decoder(_Payload).decode


class TokenVerifier:
    """
    Checks tokens against the set that `keys` gives. `audience`, `issuer`: "" is any. `now` gives epoch seconds.

    Of good tokens it remembers `most` to twice as many, those that were seen last.
    """

    __slots__ = ("_audience", "_issuer", "_keys", "_most", "_now", "_of", "_older", "_remembered", "hits")

    def __init__(
        self,
        keys: Callable[[], KeySet],
        *,
        audience: str = "",
        issuer: str = "",
        most: int = MOST_REMEMBERED // 2,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._most = most
        self._now = now
        self._of: KeySet | None = None
        self._remembered: dict[bytes, Claims] = {}
        self._older: dict[bytes, Claims] = {}
        self.hits = 0

    @property
    def remembered(self) -> int:
        """How many tokens are, at most."""
        return len(self._remembered) + len(self._older)

    def verify(self, token: str) -> Claims:
        """Raises Unauthorized with the reason, never with the token; UnknownKey is one."""
        keys = self._keys()
        if keys is not self._of:
            self._of = keys
            self._remembered, self._older = {}, {}
        if len(token) > MOST_TOKEN:
            raise Unauthorized(f"the token is too long, at most {MOST_TOKEN} bytes")
        if not token.isascii():
            _malformed()
        data = token.encode()
        digest = hashlib.sha256(data).digest()
        claims = self._remembered.get(digest)
        if claims is None:
            claims = self._older.get(digest)
            if claims is None:
                claims = self._check(keys, data)
                self._remember(digest, claims)
                return claims
            self._remember(digest, claims)
        if claims.expires_s and claims.expires_s + LEEWAY_S <= self._now():
            _expired()
        self.hits += 1
        return claims

    def _remember(self, digest: bytes, claims: Claims) -> None:
        if len(self._remembered) >= self._most:
            self._remembered, self._older = {}, self._remembered
        self._remembered[digest] = claims

    def _check(self, keys: KeySet, data: bytes) -> Claims:
        signed, _, signature = data.rpartition(b".")
        head, dot, body = signed.partition(b".")
        if not dot or b"." in body:
            _malformed()
        key = _key_of(keys, head)
        try:
            payload = _decode_payload(_base64url(body))
            signed_with = _base64url(signature)
        except msgspec.ValidationError as error:
            raise Unauthorized(f"the token's claims: {str(error)[:100]}") from None
        except (msgspec.MsgspecError, ValueError, RecursionError):
            _malformed()
        expires_s, issued_s = self._check_times(payload)
        client_id = _client_id(payload.sub)
        if not key.has_signed(signed, signed_with):
            raise Unauthorized("the token's signature is not good")
        self._check_parties(payload)
        device, scope = payload.device, payload.scope
        return Claims(
            client_id,
            expires_s,
            device if isinstance(device, str) else "",
            _groups(payload.groups),
            issued_s,
            tuple(scope.split()) if isinstance(scope, str) else (),
        )

    def _check_times(self, payload: _Payload) -> tuple[float, float]:
        """`exp` and `iat`. Raises Unauthorized."""
        now = self._now()
        expires_s, issued_s = _seconds(payload.exp, "exp"), _seconds(payload.iat, "iat")
        if payload.exp is not UNSET and expires_s + LEEWAY_S <= now:
            _expired()
        if _seconds(payload.nbf, "nbf") - LEEWAY_S > now:
            raise Unauthorized("nbf: the token is not good yet")
        if issued_s - LEEWAY_S > now:
            raise Unauthorized("iat: the token was issued in the future")
        return expires_s, issued_s

    def _check_parties(self, payload: _Payload) -> None:
        """Raises Unauthorized."""
        if self._audience and self._audience != payload.aud:
            if payload.aud is None:
                raise Unauthorized("aud: missing in the token")
            if not isinstance(payload.aud, list) or self._audience not in payload.aud:
                raise Unauthorized("aud: the token is for somebody else")
        if self._issuer and self._issuer != payload.iss:
            if payload.iss is None:
                raise Unauthorized("iss: missing in the token")
            raise Unauthorized("iss: the token is somebody else's")


def _key_of(keys: KeySet, head: bytes) -> Key:
    """Raises Unauthorized, UnknownKey."""
    try:
        header = _decode_header(_base64url(head))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        _malformed()
    if header.crit is not UNSET:
        raise Unauthorized("crit: the token asks for what is not understood here")
    return keys.find(header.kid, header.alg)


def _base64url(text: bytes) -> bytes:
    """RFC 7515 section 2: without padding. Raises ValueError."""
    return a2b_base64(text.translate(_TO_BASE64) + b"=" * (-len(text) % 4), strict_mode=True)


def _seconds(value: float | UnsetType, name: str) -> float:
    """A NumericDate (RFC 7519 section 2), 0 for none. Raises Unauthorized."""
    if value is UNSET:
        return 0.0
    if not 0 <= value <= _MOST_TIME:
        raise Unauthorized(f"{name}: expected a time in epoch seconds")
    return float(value)


def _client_id(claim: str | UnsetType) -> str:
    """Raises Unauthorized."""
    if claim is UNSET:
        raise Unauthorized("sub: missing in the token")
    fault = client_id_fault(claim)
    if fault:
        raise Unauthorized(f"sub: {fault}")
    return claim


def _groups(claim: object) -> tuple[str, ...]:
    """Raises Unauthorized."""
    if claim == ():
        return ()
    if not isinstance(claim, list) or len(claim) > MOST_GROUPS:
        raise Unauthorized(f"groups: expected a list of at most {MOST_GROUPS} groupIds")
    for place, group in enumerate(claim):
        fault = client_id_fault(group, "groupId") if isinstance(group, str) else "expected a string"
        if fault:
            raise Unauthorized(f"groups[{place}]: {fault}")
    return tuple(dict.fromkeys(claim))


def _malformed() -> NoReturn:
    raise Unauthorized("the token is not a JWT")


def _expired() -> NoReturn:
    raise Unauthorized("the token has expired; get a new one")


def mint_token(secret: str, client_id: str, *, life_s: int, device: str = "", groups: Sequence[str] = ()) -> str:
    """A token for one client, good from now for `life_s` seconds."""
    now = int(time.time())
    claims: dict[str, object] = {"sub": client_id, "iat": now, "exp": now + life_s}
    if device:
        claims["device"] = device
    if groups:
        claims["groups"] = list(groups)
    return jwt.encode(claims, secret, algorithm="HS256")
