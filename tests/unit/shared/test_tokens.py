"""Connect tokens: who a connection is, and nothing else will do."""

from __future__ import annotations

import time

import jwt
import pytest

from shared.errors import Unauthorized
from shared.tokens import Claims, mint_token
from tests.harness.tokens import verifier_of

SECRET = "s" * 32


def make(**claims: object) -> str:
    return jwt.encode({"sub": "alice", "exp": int(time.time()) + 60} | claims, SECRET, algorithm="HS256")


def test_a_minted_token_is_good() -> None:
    """Its claims come back."""
    claims = verifier_of(SECRET).verify(mint_token(SECRET, "alice", life_s=60, device="phone"))

    assert Claims("alice", claims.expires_s, "phone", issued_s=claims.issued_s) == claims
    assert 0 < claims.expires_s - time.time() <= 60


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        make(exp=int(time.time()) - 6),
        make(nbf=int(time.time()) + 3600),
        make(sub=""),
        make(sub="not a client"),
        make(sub=None),
        make(sub=7),
        jwt.encode({"sub": "alice"}, "t" * 32, algorithm="HS256"),
        jwt.encode({"sub": "alice"}, "", algorithm="none"),
        jwt.encode({"sub": "alice"}, SECRET * 2, algorithm="HS512"),
        jwt.encode({"exp": int(time.time()) + 60}, SECRET, algorithm="HS256"),
    ],
)
def test_any_other_token_is_refused_without_being_shown(token: str) -> None:
    """Expired, not yet good, another key, another algorithm, no or a bad sub."""
    with pytest.raises(Unauthorized) as error:
        verifier_of(SECRET).verify(token)

    assert token not in str(error.value) or len(token) < 2


def test_leeway_is_five_seconds() -> None:
    """Clocks differ a little."""
    verifier = verifier_of(SECRET)
    assert verifier.verify(make(exp=int(time.time()) - 3)).client_id == "alice"
    assert verifier.verify(make(nbf=int(time.time()) + 3)).client_id == "alice"


def test_a_token_without_exp_does_not_end() -> None:
    """expires_s is 0."""
    assert verifier_of(SECRET).verify(jwt.encode({"sub": "a"}, SECRET, algorithm="HS256")).expires_s == 0
