"""
Connect tokens: JWTs (RFC 7519) that say which client a connection or a caller is. Pure; HS256 with one secret.

`exp` and `nbf` are checked with 5 s of leeway. The algorithm is fixed here and never taken from the token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jwt

from shared.errors import Unauthorized
from shared.ids import client_id_fault

LEEWAY_S = 5
MOST_GROUPS = 100
_ALGORITHM = "HS256"
_OPTIONS: jwt.types.Options = {"require": ["sub"], "verify_aud": False, "verify_iss": False}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says. `expires_s` in epoch seconds, 0: never. `groups` are joined for the session."""

    client_id: str
    expires_s: float
    device: str
    groups: tuple[str, ...] = ()


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
        return Claims(
            client_id,
            float(claims.get("exp", 0)),
            device if isinstance(device, str) else "",
            _groups(claims.get("groups", [])),
        )


def _groups(claim: object) -> tuple[str, ...]:
    """Raises Unauthorized."""
    if not isinstance(claim, list) or len(claim) > MOST_GROUPS:
        raise Unauthorized(f"groups: expected a list of at most {MOST_GROUPS} groupIds")
    for place, group in enumerate(claim):
        fault = client_id_fault(group) if isinstance(group, str) else "expected a string"
        if fault:
            raise Unauthorized(f"groups[{place}]: {fault.replace('a clientId', 'a groupId')}")
    return tuple(dict.fromkeys(claim))


def mint_token(secret: str, client_id: str, *, life_s: int, device: str = "", groups: Sequence[str] = ()) -> str:
    """A token for one client, good from now for `life_s` seconds."""
    now = int(time.time())
    claims: dict[str, object] = {"sub": client_id, "iat": now, "exp": now + life_s}
    if device:
        claims["device"] = device
    if groups:
        claims["groups"] = list(groups)
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)
