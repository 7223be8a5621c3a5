"""API keys: who is known, what each may, how fast."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dispatcher.callers import Caller, Callers, KeysFault, load_keys
from shared.errors import Forbidden, Overloaded, Unauthorized


def keys_file(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": entries}))
    return str(path)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    billing = {"name": "billing", "sha256": sha256("b-key").upper(), "scopes": ["send"]}
    news = {"name": "news", "key": "n-key", "scopes": ["broadcast", "read"]}
    return Callers(load_keys(keys_file(tmp_path, billing, news)))


@pytest.mark.parametrize(
    ("authorization", "api_key", "name"),
    [("Bearer b-key", None, "billing"), ("bearer  n-key ", None, "news"), (None, "b-key", "billing")],
)
def test_a_known_key_names_its_caller(
    callers: Callers, authorization: str | None, api_key: str | None, name: str
) -> None:
    """In either header, whether the file holds its hash or the key itself."""
    assert name == callers.identify(authorization, api_key).name


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [(None, None), ("Bearer ", None), ("Bearer b-key2", None), ("Basic b-key", None), (None, ""), (None, "ü\udcff")],
)
def test_any_other_key_is_unauthorized(callers: Callers, authorization: str | None, api_key: str | None) -> None:
    """Absent, empty, another scheme, unknown."""
    with pytest.raises(Unauthorized):
        callers.identify(authorization, api_key)


def test_a_hash_is_no_key(callers: Callers) -> None:
    """Who has read the file cannot send."""
    with pytest.raises(Unauthorized):
        callers.identify(None, sha256("b-key"))


def test_scopes_are_asked_for_by_name(callers: Callers) -> None:
    """A key without the scope is refused, with the scope's name and never the key."""
    caller = callers.identify(None, "b-key")
    caller.require("send")
    with pytest.raises(Forbidden, match="'broadcast'"):
        caller.require("broadcast")


def test_with_authentication_off_everybody_is_system() -> None:
    """PUSH_AUTH=off: no key is asked for and nothing is out of scope."""
    caller = Callers(None).identify(None, None)
    assert "system" == caller.name
    caller.require("admin")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_is_a_bucket_of_one_second() -> None:
    """`rate` sends at once, then one each 1/rate s; what is refused says when to come again."""
    clock = Clock()
    caller = Caller("a", frozenset(), rate=2, now=clock)
    caller.take()
    caller.take()
    with pytest.raises(Overloaded) as caught:
        caller.take()
    assert 1 == caught.value.retry_after_s
    clock.now += 0.5
    caller.take()
    with pytest.raises(Overloaded):
        caller.take()
    clock.now += 60
    caller.take()
    caller.take()
    with pytest.raises(Overloaded):
        caller.take()


def test_a_rate_below_one_allows_one_send_at_a_time() -> None:
    """0.1 sends a second: one each ten seconds."""
    clock = Clock()
    caller = Caller("a", frozenset(), rate=0.1, now=clock)
    caller.take()
    with pytest.raises(Overloaded) as caught:
        caller.take()
    assert 10 == caught.value.retry_after_s
    clock.now += 10
    caller.take()


def test_without_a_rate_nothing_is_counted() -> None:
    """`rate` is optional."""
    caller = Caller("a", frozenset())
    for _ in range(10_000):
        caller.take()


GOOD: dict[str, Any] = {"name": "a", "sha256": "0" * 64, "scopes": ["send"]}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "no keys"),
        ([{"name": "a", "scopes": ["send"]}], "either sha256 or key"),
        ([{**GOOD, "key": "k"}], "either sha256 or key"),
        ([{**GOOD, "sha256": "abc"}], "64 hex digits"),
        ([{**GOOD, "scopes": ["sned"]}], "scopes: expected some of send, broadcast, read, admin"),
        ([{**GOOD, "scopes": []}], "scopes"),
        ([{**GOOD, "name": "a/b"}], "name"),
        ([{**GOOD, "rate": 0}], "rate"),
        ([{**GOOD, "quota": 0}], "quota"),
        ([{**GOOD, "colour": "red"}], "colour"),
        ([GOOD, {**GOOD, "name": "b"}], "keys[1]: the same key as another"),
        ([GOOD, {**GOOD, "sha256": "1" * 64}], "keys[1]: name: a is there twice"),
        (["a"], "Expected `object`"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, entries: list[Any], words: str) -> None:
    """The place in the file and what is expected there."""
    with pytest.raises(KeysFault) as caught:
        load_keys(keys_file(tmp_path, *entries))
    assert words in str(caught.value)


def test_a_file_that_is_no_json_is_refused_without_being_shown(tmp_path: Path) -> None:
    """It may hold keys."""
    path = tmp_path / "keys.json"
    path.write_text("secret-key")
    with pytest.raises(KeysFault) as caught:
        load_keys(str(path))
    assert "secret" not in str(caught.value)
