"""
Connect tokens and the key sets that they are checked with: Unauthorized, KeySetFault, or something well formed.

An input is a token as a client may make one up, the parts of one that is signed here, or a JWKS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from shared.errors import Unauthorized
from shared.ids import client_id_fault
from shared.jwks import ALGORITHMS, KeySet, KeySetFault, read_jwks
from shared.tokens import MOST_GROUPS, Claims, TokenVerifier, mint_token
from tests.fuzz.target import Chooser, Target

_SECRET = "a secret of the site that has more than 32 bytes"


def run(data: bytes) -> None:
    chooser = Chooser(data)
    (_made_up, _signed, _jwks)[chooser.below(3)](chooser.rest())


@cache
def _verifiers() -> tuple[TokenVerifier, ...]:
    secret, jwks = KeySet(_SECRET), read_jwks(_key_set(), _SECRET)
    return TokenVerifier(lambda: secret), TokenVerifier(lambda: jwks, audience="here", issuer="us")


def _made_up(data: bytes) -> None:
    token = data.decode("utf-8", "surrogateescape")
    for verifier in _verifiers():
        try:
            verifier.verify(token)
        except Unauthorized as error:
            _judge_refusal(error, token)
        else:
            raise AssertionError("a token that nobody signed was taken")


def _signed(data: bytes) -> None:
    """Header and claims as they come, over a good signature: a client that has one cannot do it, an issuer can."""
    header, _, claims = data.partition(b"\n")
    signed = b".".join(map(_encoded, (header, claims)))
    signature = hmac.digest(_SECRET.encode(), signed, hashlib.sha256)
    token = b".".join((signed, _encoded(signature))).decode()
    for verifier in _verifiers():
        try:
            found = verifier.verify(token)
        except Unauthorized as error:
            _judge_refusal(error, token)
            continue
        assert json.loads(header.decode(errors="replace"))["alg"] == "HS256"
        _judge(found)
        assert found is verifier.verify(token)


def _judge(claims: Claims) -> None:
    assert client_id_fault(claims.client_id) is None
    assert len(claims.groups) <= MOST_GROUPS
    assert all(client_id_fault(group) is None for group in claims.groups)
    assert claims.expires_s == 0 or claims.expires_s > time.time() - 60
    assert claims.issued_s < float("inf")
    assert isinstance(claims.device, str)


def _judge_refusal(error: Unauthorized, token: str) -> None:
    text = str(error)
    assert len(text) < 512
    assert len(token) < 16 or token not in text, "the token is in the refusal"
    text.encode()


def _jwks(data: bytes) -> None:
    try:
        keys = read_jwks(data, _SECRET)
    except KeySetFault as fault:
        text = str(fault)
        assert len(text) < 512
        assert '"k"' not in text
        assert "'k'" not in text, "a key is in the fault"
        return
    assert len(keys) > 1
    for algorithm in ALGORITHMS:
        try:
            assert keys.find("a", algorithm).algorithm == algorithm
        except Unauthorized:
            continue


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@cache
def _key_set() -> bytes:
    """A key of each kind."""
    numbers = rsa.RSAPublicNumbers(65537, (1 << 2047) + 1)
    keys = [
        {"kid": "r", **json.loads(RSAAlgorithm.to_jwk(numbers.public_key()))},
        {"kid": "e", **json.loads(ECAlgorithm.to_jwk(ec.derive_private_key(7, ec.SECP256R1()).public_key()))},
        {"kid": "d", **json.loads(OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))))},
        {"kid": "o", "kty": "oct", "k": _encoded(b"another secret that has more than 32 bytes").decode()},
    ]
    return json.dumps({"keys": keys}).encode()


_CLAIMS = b'{"sub":"a","exp":4102444800,"iat":1,"nbf":1,"device":"web","groups":["g"],"scope":"send read","aud":"here"}'
_SEEDS = (
    b"\0" + mint_token("some other secret that has more than 32 bytes", "a", life_s=60).encode(),
    b"\0eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
    b"\0" + _encoded(b'{"alg":"HS256","kid":"o"}') + b"." + _encoded(_CLAIMS) + b".AAAA",
    b"\0" + _encoded(b"[" * 3000) + b"." + _encoded(_CLAIMS) + b".AAAA",
    b'\1{"alg":"HS256","typ":"JWT"}\n' + _CLAIMS,
    b'\1{"alg":"HS256","kid":"r","crit":["x"],"b64":false}\n{"sub":1,"exp":"1e3","iss":["us"]}',
    b"\2" + _key_set(),
    b'\2{"keys":[{"kty":"oct","k":"AAAA","use":"enc"},{"kty":"RSA","n":"AQAB","e":"AQAB","alg":"RS256"}]}',
    *(b'\2{"keys":[%b]}' % json.dumps(key).encode() for key in json.loads(_key_set())["keys"]),
)

TARGET = Target("tokens", run, _SEEDS)
