"""
Connect tokens: JWTs (RFC 7519) that say which client a connection or a caller is. Pure; HS256 with one secret.

`exp` and `nbf` are checked with 5 s of leeway. The algorithm is fixed here and never taken from the token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import jwt

from shared.errors import Unauthorized
from shared.ids import client_id_fault

LEEWAY_S = 5
_ALGORITHM = "HS256"
_OPTIONS: jwt.types.Options = {"require": ["sub"], "verify_aud": False, "verify_iss": False}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says. `expires_s` in epoch seconds, 0: never."""

    client_id: str
    expires_s: float
    device: str


class TokenVerifier:
    """Checks tokens against the secret."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def verify(self, token: str) -> Claims:
        """Raises Unauthorized with the reason, never with the token."""
        try:
            claims = jwt.decode(token, self._secret, algorithms=[_ALGORITHM], leeway=LEEWAY_S, options=_OPTIONS)
        except jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired; get a new one") from None
        except jwt.InvalidTokenError as error:
            raise Unauthorized(f"the token is not valid ({type(error).__name__})") from None
        client_id = claims["sub"]
        fault = client_id_fault(client_id)
        if fault:
            raise Unauthorized(f"sub: {fault}")
        device = claims.get("device", "")
        return Claims(client_id, float(claims.get("exp", 0)), device if isinstance(device, str) else "")


def mint_token(secret: str, client_id: str, *, life_s: int, device: str = "") -> str:
    """A token for one client, good from now for `life_s` seconds."""
    now = int(time.time())
    claims: dict[str, object] = {"sub": client_id, "iat": now, "exp": now + life_s}
    if device:
        claims["device"] = device
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)
