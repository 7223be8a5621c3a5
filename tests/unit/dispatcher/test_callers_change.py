"""Callers while the set of keys changes, callers with JWTs, and the bound on failures."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from dispatcher import auth_failures, callers
from dispatcher.auth_failures import AuthFailures
from dispatcher.callers import Bucket, Callers
from dispatcher.key_file import KeyEntry, digest_of
from shared.errors import Forbidden, Overloaded, Unauthorized
from shared.key_source import KeySource
from shared.tokens import Claims

SECRET = "a secret of at least 32 bytes, for tests"


def entry(name: str, *keys: str, scopes: tuple[str, ...] = ("send",), **fields: Any) -> KeyEntry:
    return KeyEntry(name, list(scopes), sha256=[digest_of(key).hex() for key in keys], **fields)


def token(*, secret: str = SECRET, **claims: Any) -> str:
    whole = {"sub": "crm", "exp": int(time.time()) + 60, "scope": "send", **claims}
    return jwt.encode({name: value for name, value in whole.items() if value is not None}, secret, algorithm="HS256")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# -- another set of keys ---------------------------------------------------------------------------------------------


def test_a_removed_key_is_refused_at_once() -> None:
    """And its digest may be given to another name."""
    known = Callers([entry("a", "key-a"), entry("b", "key-b")])
    known.use([entry("b", "key-b"), entry("c", "key-c")])
    assert ["b", "c"] == [known.identify(key).name for key in ("key-b", "key-c")]
    with pytest.raises(Unauthorized):
        known.identify("key-a")


def test_a_caller_keeps_its_bucket_when_the_file_is_read_again() -> None:
    """Whatever else of its entry changed; who is new has a full one."""
    known = Callers([entry("a", "key-a", rate=0.001)])
    caller = known.identify("key-a")
    caller.take()
    known.use([entry("a", "key-a2", "key-a", rate=0.001, scopes=("send", "read")), entry("b", "key-b", rate=0.001)])
    assert caller is known.identify("key-a2")
    assert {"send", "read"} == caller.scopes
    with pytest.raises(Overloaded):
        known.identify("key-a").take()
    known.identify("key-b").take()


def test_a_change_of_the_rate_gives_nothing_back() -> None:
    """A lower one bounds what is left, a higher one fills from there."""
    clock = Clock()
    bucket = Bucket(10, clock)
    bucket.level = 4
    bucket.change(2)
    assert 2 == bucket.level
    bucket.level = 0
    bucket.change(100)
    assert 0.01 == pytest.approx(bucket.wait_s())
    bucket.change(None)
    assert 0 == bucket.wait_s()
    bucket.change(3)
    assert 3 == bucket.level


def test_every_digest_of_a_name_is_its_key() -> None:
    """Old and new work at the same time."""
    known = Callers([entry("a", "new-key", "old-key")])
    assert known.identify("new-key") is known.identify("old-key")


def test_a_key_ends_when_it_expires() -> None:
    """The refusal says so; a file that has such keys is a good one."""
    now = int(time.time())
    known = Callers([entry("a", "late", expires=now - 1), entry("b", "good", expires=now + 60)])
    assert "b" == known.identify("good").name
    with pytest.raises(Unauthorized, match="expired"):
        known.identify("late")


def test_a_rate_for_those_that_name_none() -> None:
    """PUSH_CALLER_RATE."""
    known = Callers([entry("a", "key-a"), entry("b", "key-b", rate=0.5)], rate=2)
    bounded, own = known.identify("key-a"), known.identify("key-b")
    bounded.take()
    own.take()
    bounded.take()
    for caller in (bounded, own):
        with pytest.raises(Overloaded):
            caller.take()


# -- JWTs ------------------------------------------------------------------------------------------------------------


def with_tokens(**options: Any) -> Callers:
    return Callers([entry("crm", "key-crm")], tokens=KeySource(SECRET, ""), **options)


def test_a_jwt_with_a_scope_is_a_caller() -> None:
    """Named by its `sub`, and never the key of that name; scopes that are not ours mean nothing."""
    known = with_tokens()
    caller = known.identify(token(scope="openid send read"))
    assert ("jwt:crm", "crm", frozenset({"send", "read"})) == (caller.id, caller.name, caller.scopes)
    assert "key:crm" == known.identify("key-crm").id


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": None},
        {"scope": ""},
        {"scope": "openid sender"},
        {"scope": ["send"]},
        {"exp": None},
        {"exp": 1},
        {"secret": SECRET + "?"},
        {"sub": None},
    ],
)
def test_any_other_jwt_is_no_callers(claims: dict[str, Any]) -> None:
    """A connect token above all: no scope, no send."""
    with pytest.raises(Unauthorized):
        with_tokens().identify(token(**claims))


def test_a_jwt_needs_a_key_to_check_it_with() -> None:
    """Without a secret and a JWKS it is an unknown key."""
    known = Callers([entry("a", "key-a")], tokens=KeySource("", ""))
    with pytest.raises(Unauthorized, match="unknown API key"):
        known.identify(token())


def test_tokens_of_one_sub_have_one_bucket() -> None:
    """Also with other scopes, which are those of the token at hand."""
    known = with_tokens(rate=0.001)
    known.identify(token(scope="send")).take()
    reader = known.identify(token(scope="read"))
    assert {"read"} == reader.scopes
    for caller in (reader, known.identify(token(scope="send"))):
        with pytest.raises(Overloaded):
            caller.take()
    known.identify(token(sub="erp")).take()


def test_callers_of_jwts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one seen the longest ago is forgotten."""
    monkeypatch.setattr(callers, "_MOST_TOKEN_CALLERS", 3)
    known = with_tokens()
    first = [known.identify(token(sub=f"s{number}")) for number in range(3)]
    assert first[0] is known.identify(token(sub="s0"))
    known.identify(token(sub="s3"))
    assert 3 == len(known._by_sub)
    assert first[0] is known.identify(token(sub="s0"))
    assert first[1] is not known.identify(token(sub="s1"))


def test_an_audience_tells_callers_tokens_from_clients() -> None:
    """Where connect tokens may say `scope`: they are no callers', and callers' are nobody's connect token."""
    known = Callers(
        [],
        tokens=KeySource(SECRET, "", audience="dispatcher"),
        client_tokens=KeySource(SECRET, "", audience="nodes"),
    )
    connect, caller = token(aud="nodes", sub="alice"), token(aud="dispatcher")
    assert "jwt:crm" == known.identify(caller).id
    with pytest.raises(Unauthorized):
        known.identify(connect)
    known.check_reader(connect, "", ["alice"])
    with pytest.raises(Forbidden):
        known.check_reader(connect, "", ["bob"])
    known.check_reader(caller, "", ["bob"])


# -- failures --------------------------------------------------------------------------------------------------------


def test_failures_of_an_address_are_bounded() -> None:
    """So many a second are 401, further ones 429 with when to come again; other addresses do not notice."""
    clock = Clock()
    known = Callers([entry("a", "key-a")], failures=AuthFailures(2, clock))
    for _ in range(2):
        with pytest.raises(Unauthorized):
            known.identify("guess", "10.0.0.1")
    with pytest.raises(Overloaded) as caught:
        known.identify("guess", "10.0.0.1")
    assert 1 == caught.value.retry_after_s
    assert "a" == known.identify("key-a", "10.0.0.1").name
    with pytest.raises(Unauthorized):
        known.identify("guess", "10.0.0.2")
    clock.now += 0.5
    with pytest.raises(Unauthorized):
        known.identify("guess", "10.0.0.1")


def test_who_guesses_a_lot_has_no_signatures_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JWT that was good before passes all the same."""
    known = with_tokens(failures=AuthFailures(1, Clock()))
    good, other = token(), token(sub="erp")
    checked: list[str] = []
    known.identify(good, "10.0.0.1")
    with pytest.raises(Unauthorized):
        known.identify(token(secret=SECRET + "?"), "10.0.0.1")
    verify = KeySource.verify

    def watched(keys: KeySource, text: str) -> Claims:
        checked.append(text)
        return verify(keys, text)

    monkeypatch.setattr(KeySource, "verify", watched)
    with pytest.raises(Overloaded):
        known.identify(other, "10.0.0.1")
    assert "crm" == known.identify(good, "10.0.0.1").name
    assert "erp" == known.identify(other, "10.0.0.2").name
    assert [good, other] == checked


def test_a_token_that_was_good_is_checked_only_while_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has expired, or its key is gone, it is a guess as any other."""
    known = with_tokens(failures=AuthFailures(1, Clock()))
    good = token()
    known.identify(good, "10.0.0.1")

    def expired(_: KeySource, __: str) -> Claims:
        raise Unauthorized("expired")

    monkeypatch.setattr(KeySource, "verify", expired)
    for refusal in (Unauthorized, Overloaded):
        with pytest.raises(refusal):
            known.identify(good, "10.0.0.1")
    assert not known._good_tokens


def test_addresses_with_failures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that failed the longest ago is forgotten."""
    monkeypatch.setattr(auth_failures, "_MOST_ADDRESSES", 3)
    failures = AuthFailures(1, Clock())
    for address in ("a", "b", "c", "d"):
        failures.count(address, "")
    assert 3 == len(failures)
    failures.check("a")
    with pytest.raises(Overloaded):
        failures.check("d")


def test_one_host_has_64_bits_of_ipv6() -> None:
    """Who owns a network of it cannot fail from each of its addresses in turn."""
    failures = AuthFailures(1, Clock())
    failures.count("2001:db8::1", "")
    with pytest.raises(Overloaded):
        failures.check("2001:db8::2:1")
    failures.check("2001:db8:0:1::1")
