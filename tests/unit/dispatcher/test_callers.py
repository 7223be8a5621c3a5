"""API keys: who is known, what each may, how fast."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dispatcher.callers import Caller, Callers, presented_key
from dispatcher.key_file import load_keys
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
    assert name == callers.identify(presented_key(authorization, api_key)).name


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [(None, None), ("Bearer ", None), ("Bearer b-key2", None), ("Basic b-key", None), (None, ""), (None, "ü\udcff")],
)
def test_any_other_key_is_unauthorized(callers: Callers, authorization: str | None, api_key: str | None) -> None:
    """Absent, empty, another scheme, unknown."""
    with pytest.raises(Unauthorized):
        callers.identify(presented_key(authorization, api_key))


def test_a_hash_is_no_key(callers: Callers) -> None:
    """Who has read the file cannot send."""
    with pytest.raises(Unauthorized):
        callers.identify(sha256("b-key"))


def test_scopes_are_asked_for_by_name(callers: Callers) -> None:
    """A key without the scope is refused, with the scope's name and never the key."""
    caller = callers.identify("b-key")
    caller.require("send")
    with pytest.raises(Forbidden, match="'broadcast'"):
        caller.require("broadcast")


def test_with_authentication_off_everybody_is_system() -> None:
    """PUSH_AUTH=off: no key is asked for and nothing is out of scope."""
    caller = Callers(None).identify("")
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
