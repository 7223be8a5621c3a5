"""JWKS: which keys are taken, and what makes a set no good."""

from __future__ import annotations

from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Unauthorized
from shared.jwks import ALGORITHMS, KeySetFault, read_jwks
from shared.tokens import TokenVerifier
from tests.harness.tokens import SECRET, Signer, jwks, signer


def verifies(text: bytes, token: str) -> bool:
    keys = read_jwks(text)
    try:
        return TokenVerifier(lambda: keys).verify(token).client_id == "alice"
    except Unauthorized:
        return False


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_without_alg_is_for_what_its_kind_implies(algorithm: str) -> None:
    """And for nothing else."""
    ours = signer(algorithm)
    text = jwks(ours.jwk(alg=None))
    assert verifies(text, ours.sign())
    other = {"HS256": "HS512", "RS256": "RS512", "ES256": "ES256", "EdDSA": "EdDSA"}[algorithm]
    assert verifies(text, Signer(other, ours.key, "k").sign()) is (other == algorithm)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_of_a_private_key_the_public_part_is_kept(algorithm: str) -> None:
    """Tokens are checked all the same, and the set says that there was one."""
    ours = signer(algorithm)
    keys = read_jwks(jwks(ours.jwk(private=True)))
    assert 1 == keys.was_private
    assert not hasattr(keys.find("k", algorithm).key, "sign")
    assert not hasattr(keys.find("k", algorithm).key, "private_numbers")
    assert "alice" == TokenVerifier(lambda: keys).verify(ours.sign()).client_id
    assert 0 == read_jwks(jwks(ours.jwk())).was_private


@pytest.mark.parametrize(
    "left_out",
    [
        signer("RS256").jwk(use="enc"),
        signer("RS256").jwk(alg="RSA-OAEP"),
        signer("RS256").jwk(alg="RS512"),
        signer("RS256").jwk(key_ops=["encrypt"]),
        signer("ES384").jwk(alg=None),
        signer("ES384").jwk(),
        {"kty": "quantum", "kid": "q"},
        {"kty": "EC", "crv": "secp256k1", "kid": "q"},
    ],
)
def test_keys_for_something_else_are_left_out(left_out: dict[str, Any]) -> None:
    """The others are used; a set of such keys alone is no set."""
    ours = signer("EdDSA", "d")
    assert verifies(jwks(left_out, ours.jwk()), ours.sign())
    assert 1 == len(read_jwks(jwks(left_out, ours.jwk())))
    with pytest.raises(KeySetFault, match="no key for"):
        read_jwks(jwks(left_out))


weak_rsa = Signer("RS256", rsa.generate_private_key(65537, 1024), "weak")
wrong_curve = Signer("ES384", ec.generate_private_key(ec.SECP384R1()), "curve")
okp448 = jwt.get_algorithm_by_name("EdDSA").to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True)


@pytest.mark.parametrize(
    "bad",
    [
        weak_rsa.jwk(),
        wrong_curve.jwk(alg="ES256"),
        okp448 | {"alg": "EdDSA"},
        Signer("HS256", b"short", "s").jwk(),
        signer("RS256").jwk(alg="HS256"),
        signer("RS256").jwk(alg="EdDSA"),
        signer("HS256").jwk(alg="RS256"),
        signer("ES256").jwk(x="AAAA"),
        signer("ES256").jwk(y=None),
        signer("RS256").jwk(n=None),
        signer("RS256").jwk(n="*"),
        signer("RS256").jwk(n=7),
        signer("RS256").jwk(e="AA"),
        signer("EdDSA").jwk(x="AAAA"),
        signer("HS256").jwk(k=None),
        signer("HS256").jwk(k=["a"]),
        signer("RS256").jwk(kid=7),
        signer("RS256").jwk(kty=["RSA"]),
        {},
        "a key",
        None,
        7,
    ],
)
def test_a_set_with_a_bad_key_is_no_set(bad: Any) -> None:
    """Too weak, of another curve or kind than its alg, or not readable; the fault names the place and no key."""
    with pytest.raises(KeySetFault) as fault:
        read_jwks(jwks(signer("RS256", "good").jwk(), bad))
    assert str(fault.value).startswith("keys[1]: ")
    assert len(str(fault.value)) < 100
    for name in ("k", "n", "x", "d"):
        secret = bad.get(name) if isinstance(bad, dict) else None
        assert not isinstance(secret, str) or len(secret) < 5 or secret not in str(fault.value)


def test_two_keys_of_one_kid() -> None:
    """Of different algorithms each is used (RFC 7517 section 4.5); of one algorithm nobody can tell which is meant."""
    first, second = signer("RS256"), signer("ES256")
    text = jwks(first.jwk(), second.jwk())
    assert verifies(text, first.sign())
    assert verifies(text, second.sign())
    with pytest.raises(KeySetFault, match=r"keys\[1\]: another RS256 key has this kid"):
        read_jwks(jwks(first.jwk(), signer("RS256", which=1).jwk()))


def test_keys_without_kid() -> None:
    """One is found by its algorithm alone, among two nobody is; its place in the set is no name."""
    ours, other = Signer("RS256", signer("RS256").key, ""), Signer("RS256", signer("RS256", which=1).key, "")
    assert verifies(jwks(ours.jwk()), ours.sign())
    assert verifies(jwks(ours.jwk(), signer("ES256").jwk()), ours.sign())
    assert not verifies(jwks(ours.jwk(), other.jwk()), ours.sign())
    assert not verifies(jwks(ours.jwk(), signer("ES256").jwk()), ours.sign(headers={"kid": "0"}))


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"x", b"{}", b"[]", b"null", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":null}', b"\xff", b'{"keys":['),
        *(b"[" * 100_000, b'{"keys":[' + b"[" * 100_000, b'{"keys":[{"kty":' + b"{" * 5000),
        orjson.dumps({"keys": [signer("EdDSA").jwk()] * 1001}),
    ],
)
def test_what_is_no_jwks(text: bytes) -> None:
    """Said, and nothing raised but that."""
    with pytest.raises(KeySetFault):
        read_jwks(text)


values = st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.lists(st.text(max_size=3), max_size=2)
fields = st.sampled_from(["kty", "crv", "alg", "use", "key_ops", "kid", "n", "e", "d", "x", "y", "k", "p", "q"])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ALGORITHMS), st.booleans(), st.dictionaries(fields, values, max_size=4))
def test_a_key_that_was_changed(algorithm: str, private: bool, changed: dict[str, Any]) -> None:
    """It is read, left out or a KeySetFault; nothing else is raised."""
    entry = signer(algorithm).jwk(private=private) | changed
    try:
        keys = read_jwks(jwks(entry), SECRET)
    except KeySetFault:
        return
    assert 1 <= len(keys) <= 2
