"""Connect tokens: who a connection is, and nothing else will do."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Unauthorized
from shared.jwks import ALGORITHMS, KeySet, UnknownKey, read_jwks
from shared.tokens import LEEWAY_S, MOST_TOKEN, Claims, TokenVerifier, mint_token
from tests.harness.tokens import SECRET, Signer, by_hand, jwks, signer, verifier_of

NOW = int(time.time())  # may be long ago when a test runs
HEADER = {"alg": "HS256"}


def make(**claims: object) -> str:
    return jwt.encode({"sub": "alice", "exp": NOW + 86_400} | claims, SECRET, algorithm="HS256")


def signed(header: object, payload: object) -> str:
    """With the secret, whatever the parts are."""
    text = by_hand(header, payload).rpartition(".")[0]
    signature = hmac.digest(SECRET.encode(), text.encode(), hashlib.sha256)
    return text + by_hand(b"", b"", signature)[1:]


def verifier(*signers: Signer, secret: str = "", **options: Any) -> TokenVerifier:
    keys = read_jwks(jwks(*(each.jwk() for each in signers)), secret)
    return TokenVerifier(lambda: keys, **options)


def refusal(checked: TokenVerifier, token: str) -> str:
    """Why it is refused."""
    with pytest.raises(Unauthorized) as error:
        checked.verify(token)
    return str(error.value)


def test_a_minted_token_is_good() -> None:
    """Its claims come back."""
    claims = verifier_of(SECRET).verify(mint_token(SECRET, "alice", life_s=60, device="phone"))

    assert Claims("alice", claims.expires_s, "phone", issued_s=claims.issued_s) == claims
    assert 0 < claims.expires_s - time.time() <= 60
    assert 0 <= time.time() - claims.issued_s <= 60


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        make(exp=NOW - 6),
        make(nbf=NOW + 86_400),
        make(sub=""),
        make(sub="not a client"),
        make(sub=None),
        make(sub=7),
        jwt.encode({"sub": "alice"}, "t" * 32, algorithm="HS256"),
        jwt.encode({"sub": "alice"}, "", algorithm="none"),
        jwt.encode({"sub": "alice"}, SECRET * 2, algorithm="HS512"),
        jwt.encode({"exp": NOW + 86_400}, SECRET, algorithm="HS256"),
    ],
)
def test_any_other_token_is_refused_without_being_shown(token: str) -> None:
    """Expired, not yet good, another key, another algorithm, no or a bad sub."""
    with pytest.raises(Unauthorized) as error:
        verifier_of(SECRET).verify(token)

    assert token not in str(error.value) or len(token) < 2


# -- algorithms and keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(algorithm: str) -> None:
    """A token of the key is good; one of another key of the same kid and algorithm, or with a changed part, is not."""
    ours, other = signer(algorithm), signer(algorithm, which=1)
    checked = verifier(ours)
    good = ours.sign()
    head, body, signature = good.split(".")
    assert "alice" == checked.verify(good).client_id
    assert "signature" in refusal(checked, other.sign())
    assert "signature" in refusal(checked, f"{head}.{ours.sign(sub='bob').split('.')[1]}.{signature}")
    assert "signature" in refusal(checked, f"{head}.{body}.{'A' * len(signature)}")
    assert "signature" in refusal(checked, f"{head}.{body}.")
    assert "signature" in refusal(checked, f"{head}.{body}.AAAA")


def test_the_kid_chooses_the_key() -> None:
    """Among several; the secret is for tokens that name none; an unknown one is told apart."""
    first, second = signer("RS256", "first"), signer("RS256", "second", 1)
    checked = verifier(first, second, signer("ES256", "third"), secret=SECRET)
    assert "alice" == checked.verify(first.sign()).client_id
    assert "alice" == checked.verify(second.sign()).client_id
    assert "alice" == checked.verify(make()).client_id
    assert "signature" in refusal(checked, first.sign(headers={"kid": "second"}))
    with pytest.raises(UnknownKey):
        checked.verify(first.sign(headers={"kid": "fourth"}))
    with pytest.raises(UnknownKey):
        checked.verify(first.sign(headers={"kid": ""}))
    assert "several" in refusal(checked, Signer("RS256", first.key, "").sign())
    assert "alice" == checked.verify(Signer("ES256", signer("ES256", "third").key, "").sign()).client_id


def test_without_named_keys_a_kid_means_nothing() -> None:
    """Issuers write it also where there is a secret alone."""
    assert "alice" == verifier_of(SECRET).verify(Signer("HS256", SECRET, "any").sign()).client_id


@pytest.mark.parametrize("form", ["pem", "der", "modulus", "jwk"])
def test_a_public_key_is_no_secret(form: str) -> None:
    """RFC 8725 section 2.1: HS256 with what everybody knows of the RSA key, with its kid, another and none."""
    ours = signer("RS256")
    public = ours.key.public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    known = {
        "pem": public.public_bytes(serialization.Encoding.PEM, info),
        "der": public.public_bytes(serialization.Encoding.DER, info),
        "modulus": public.public_numbers().n.to_bytes(256, "big"),
        "jwk": json.dumps(ours.jwk()).encode(),
    }[form]
    checked = verifier(ours)
    for header in (HEADER | {"kid": "k"}, HEADER | {"kid": "x"}, HEADER):
        text = by_hand(header, {"sub": "alice"}).rpartition(".")[0]
        token = text + by_hand(b"", b"", hmac.digest(known, text.encode(), hashlib.sha256))[1:]
        refusal(checked, token)


def test_the_algorithm_is_the_keys() -> None:
    """None of the others, no other spelling, and none at all, whatever key the token names."""
    checked = verifier(signer("RS256"), secret=SECRET)
    for algorithm in (
        "none",
        "None",
        "NONE",
        "",
        "hs256",
        "HS512",
        "RS384",
        "PS256",
        "ES256",
        "ES256K",
        "EdDSA",
        "x" * 999,
    ):
        for kid in ({"kid": "k"}, {"kid": "z"}, {}):
            refusal(checked, by_hand({"alg": algorithm} | kid, {"sub": "alice"}))
            refusal(checked, by_hand({"alg": algorithm} | kid, {"sub": "alice"}, b""))
    refusal(checked, Signer("RS512", signer("RS256").key, "k").sign())
    refusal(checked, Signer("PS256", signer("RS256").key, "k").sign())
    assert "key is for RS256" in refusal(checked, Signer("HS256", SECRET, "k").sign())


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"crit": ["b64"], "b64": False},
        {"kid": 7},
        {"kid": ["k"]},
        {"alg": None},
        {"alg": ["HS256"]},
        {"alg": 256},
    ],
)
def test_headers_that_ask_for_more(header: dict[str, Any]) -> None:
    """RFC 7515 section 4.1.11: an extension that has to be understood and is not; and names of odd types."""
    refusal(verifier_of(SECRET), signed(HEADER | header, {"sub": "alice"}))


def test_headers_that_offer_a_key_are_not_followed() -> None:
    """jwk, jku, x5u and x5c are the token's own words."""
    ours, foreign = signer("RS256"), signer("RS256", which=1)
    offers = {"jwk": foreign.jwk(), "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/", "x5c": ["AAAA"]}
    assert "signature" in refusal(verifier(ours), foreign.sign(headers=offers))


# -- times ---------------------------------------------------------------------------------------------------------


def test_leeway_is_five_seconds() -> None:
    """Clocks differ a little: of exp, nbf and iat."""
    keys = KeySet(SECRET)
    checked = TokenVerifier(lambda: keys, now=lambda: NOW)
    for claims in ({"exp": NOW - 4}, {"nbf": NOW + 5}, {"iat": NOW + 5}, {"exp": NOW - 4.9}, {"iat": NOW + 4.5}):
        assert "alice" == checked.verify(make(**claims)).client_id
    for claims in ({"exp": NOW - 5}, {"nbf": NOW + 6}, {"iat": NOW + 6}, {"nbf": NOW + 5.5}):
        refusal(checked, make(**claims))


def test_a_token_without_exp_does_not_end() -> None:
    """expires_s is 0, and so is issued_s without iat."""
    claims = verifier_of(SECRET).verify(jwt.encode({"sub": "a"}, SECRET, algorithm="HS256"))
    assert (0, 0) == (claims.expires_s, claims.issued_s)


ODD_TIMES = [
    b'"9999999999"',
    b'""',
    b"null",
    b"true",
    b"false",
    b"[]",
    b"{}",
    b"[9999999999]",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e400",
    b"-1e400",
    b"1e300",
    b"-1",
    b"-0.5",
    b"-1e-300",
    b"253402300801",
    b"9" * 30,
    b"9" * 400,
    b"1" + b"0" * 5000,
    b"0x7fffffff",
    b"01",
]


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", [pytest.param(value, id=value[:20].decode()) for value in ODD_TIMES])
def test_odd_times(claim: str, value: bytes) -> None:
    """Strings, booleans, null, what JSON has no number for, negative and endless ones: refused, nothing else."""
    payload = b'{"sub":"alice","%b":%b}' % (claim.encode(), value)
    if value == b"-1e-300":
        payload = payload.replace(b"-1e-300", b"-1e-3")
    refusal(verifier_of(SECRET), signed(HEADER, payload))


@pytest.mark.parametrize("value", [0, 0.0, NOW - 100, NOW - 100.75])
def test_usual_times(value: float) -> None:
    """Whole and fractional seconds, as iat and nbf."""
    claims = verifier_of(SECRET).verify(make(iat=value, nbf=value))
    assert value == claims.issued_s


# -- who it is for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"aud": "push"}, True),
        ({"aud": ["web", "push"]}, True),
        ({"aud": ["push"]}, True),
        ({}, False),
        ({"aud": "pushy"}, False),
        ({"aud": "pus"}, False),
        ({"aud": []}, False),
        ({"aud": ["web"]}, False),
        ({"aud": [["push"]]}, False),
        ({"aud": {"push": 1}}, False),
        ({"aud": True}, False),
        ({"aud": None}, False),
    ],
)
def test_audience(claims: dict[str, Any], good: bool) -> None:
    """RFC 7519 section 4.1.3: it is the value or one of the values; without a setting anything is."""
    keys = KeySet(SECRET)
    checked = TokenVerifier(lambda: keys, audience="push")
    if good:
        assert "alice" == checked.verify(make(**claims)).client_id
    else:
        assert "aud" in refusal(checked, make(**claims))
    assert "alice" == verifier_of(SECRET).verify(make(**claims)).client_id


@pytest.mark.parametrize(
    ("claims", "good"),
    [({"iss": "sso"}, True), ({}, False), ({"iss": "sso2"}, False), ({"iss": ["sso"]}, False), ({"iss": None}, False)],
)
def test_issuer(claims: dict[str, Any], good: bool) -> None:
    """RFC 7519 section 4.1.1: exactly the setting; without one anybody."""
    keys = KeySet(SECRET)
    checked = TokenVerifier(lambda: keys, issuer="sso")
    text = jwt.encode({"sub": "alice"}, SECRET, algorithm="HS256")
    if claims:
        text = signed(HEADER, {"sub": "alice"} | claims)
    if good:
        assert "alice" == checked.verify(text).client_id
    else:
        assert "iss" in refusal(checked, text)
    assert "alice" == verifier_of(SECRET).verify(text).client_id


@pytest.mark.parametrize(
    ("claims", "field"),
    [
        ({"groups": "g"}, "groups"),
        ({"groups": None}, "groups"),
        ({"groups": {"g": 1}}, "groups"),
        ({"groups": ["g", 7]}, "groups[1]"),
        ({"groups": ["a group"]}, "groups[0]"),
        ({"groups": ["g"] * 101}, "groups"),
        ({"sub": "a" * 129}, "sub"),
        ({"sub": "a\n"}, "sub"),
    ],
)
def test_bad_claims_are_named(claims: dict[str, Any], field: str) -> None:
    """By their path."""
    assert refusal(verifier_of(SECRET), signed(HEADER, {"sub": "alice"} | claims)).startswith(f"{field}: ")


def test_claims_that_are_only_taken_when_they_are_good() -> None:
    """device and scope of odd types are none; groups are taken once each."""
    token = make(device=7, scope=["send"], groups=["g", "h", "g"])
    claims = verifier_of(SECRET).verify(token)
    assert ("", (), ("g", "h")) == (claims.device, claims.scopes, claims.groups)
    assert ("send", "read") == verifier_of(SECRET).verify(make(scope="send read")).scopes


# -- garbage -------------------------------------------------------------------------------------------------------


def test_oversized_tokens_are_not_looked_at() -> None:
    """At the limit it is read, beyond it not."""
    room = MOST_TOKEN - len(signed(HEADER, {"sub": "alice", "x": ""}))
    longest = signed(HEADER, {"sub": "alice", "x": "x" * (room * 3 // 4 - 2)})
    assert MOST_TOKEN - 8 < len(longest) <= MOST_TOKEN
    assert "alice" == verifier_of(SECRET).verify(longest).client_id
    assert "too long" in refusal(verifier_of(SECRET), "x" * (MOST_TOKEN + 1))
    assert "too long" in refusal(verifier_of(SECRET), signed(HEADER, {"sub": "alice", "x": "x" * MOST_TOKEN}))


@pytest.mark.parametrize("deep", [b"[" * 9000, b'{"a":' * 2000, b'{"sub":"alice","aud":' + b"[" * 9000])
def test_deep_json(deep: bytes) -> None:
    """In the header or the claims, before any signature: refused, and no end of the stack."""
    refusal(verifier_of(SECRET), by_hand(deep, {"sub": "alice"}))
    refusal(verifier_of(SECRET), by_hand(HEADER, deep))


def test_only_the_exact_form_is_a_token() -> None:
    """Padding, blanks, other alphabets, more or fewer parts."""
    good = make()
    head, body, signature = good.split(".")
    checked = verifier_of(SECRET)
    for text in (
        *(f"{good}=", f"{good}==", f" {good}", f"{good} ", f"{good}\n", f"{good}.", f".{good}", f"{good}.{signature}"),
        *(f"{head}.{body}", f"{head}..{signature}", f".{body}.{signature}", f"{head}=.{body}.{signature}"),
        *(f"{head}.{body}.{signature[:-1]}*", f"{head}\n.{body}.{signature}", f"{head}.{body}é.{signature}"),
        *("..", "...", ".", "\x00.\x00.\x00", "\ud800.\ud800.\ud800", "💥.💥.💥"),
    ):
        refusal(checked, text)
    slashed = next(token for n in range(200) if "-" in (token := make(n=n)).split(".")[2])
    refusal(checked, slashed.replace("-", "+"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "groups", "device", "scope"])


@settings(max_examples=400, deadline=None)
@given(
    st.fixed_dictionaries(
        {}, optional={"alg": json_values, "kid": json_values, "crit": json_values, "typ": json_values}
    ),
    st.dictionaries(names, json_values, max_size=6),
    st.booleans(),
)
def test_well_signed_nonsense(header: dict[str, Any], claims: dict[str, Any], named: bool) -> None:
    """Of an issuer that lost its mind: Claims of the right types, or Unauthorized; never another error."""
    keys = read_jwks(jwks(signer("HS256").jwk()), SECRET) if named else KeySet(SECRET)
    checked = TokenVerifier(lambda: keys, audience="push", issuer="sso")
    try:
        found = checked.verify(
            signed({"alg": "HS256"} | header, {"sub": "alice", "aud": "push", "iss": "sso"} | claims)
        )
    except Unauthorized:
        return
    assert isinstance(found.client_id, str)
    assert isinstance(found.device, str)
    assert 0 <= found.expires_s <= 253_402_300_800
    assert 0 <= found.issued_s <= time.time() + LEEWAY_S + 1
    assert all(isinstance(text, str) for text in (*found.groups, *found.scopes))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_\-=+/. ]{0,60}\.[A-Za-z0-9_\-]{0,60}\.[A-Za-z0-9_\-]{0,60}"))
def test_any_text_is_refused(text: str) -> None:
    """With Unauthorized and nothing else, by a secret and by named keys."""
    refusal(verifier_of(SECRET), text)
    refusal(verifier(signer("ES256"), signer("EdDSA", "d")), text)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=80), st.sampled_from(ALGORITHMS))
def test_any_bytes_are_refused(head: bytes, body: bytes, signature: bytes, algorithm: str) -> None:
    """As the parts of a token, also behind a header that names a key."""
    checked = verifier(*(signer(name, name) for name in ALGORITHMS))
    refusal(checked, by_hand(head, body, signature))
    refusal(checked, by_hand({"alg": algorithm, "kid": algorithm}, body, signature))
    refusal(checked, by_hand({"alg": algorithm, "kid": algorithm}, {"sub": "alice"}, signature))
