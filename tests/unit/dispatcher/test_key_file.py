"""The file of API keys: its form, what is wrong with one, and the keys that are made for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dispatcher.key_file import KeyEntry, KeysFault, digest_of, load_keys, mint_key, plain_names, read_keys


def keys_file(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": entries}))
    return str(path)


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


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sha256": ["0" * 64, "abc"]}, "64 hex digits"),
        ({"sha256": ["0" * 64, "0" * 64]}, "the same key as another"),
        ({"sha256": [f"{number:064x}" for number in range(5)]}, "5 digests, at most 4"),
        ({"sha256": []}, "either sha256 or key"),
        ({"expires": "next year"}, "expires: expected epoch seconds"),
        ({"expires": 0}, "expires"),
        ({"expires": True}, "Expected"),
        ({"sha256": "", "key": "x" * 15}, "15 characters can be guessed, at least 16"),
    ],
)
def test_wrong_digests_dates_and_weak_keys(fields: dict[str, Any], words: str) -> None:
    """Each is refused by name; none is shown."""
    text = json.dumps({"keys": [{**GOOD, **fields}]}).encode()
    with pytest.raises(KeysFault, match=words):
        read_keys(text, least_key=16)


@pytest.mark.parametrize(
    ("expires", "epoch_s"),
    [
        (None, 0.0),
        (1_800_000_000, 1_800_000_000.0),
        ("2027-01-15", 1_799_971_200.0),
        ("2027-01-15T08:00:00Z", 1_800_000_000.0),
        ("2027-01-15T10:00:00+02:00", 1_800_000_000.0),
    ],
)
def test_expiry_is_epoch_seconds_or_a_date(expires: Any, epoch_s: float) -> None:
    """A date alone is its beginning in UTC; none is never."""
    (entry,) = read_keys(json.dumps({"keys": [{**GOOD, "expires": expires}]}).encode())
    assert epoch_s == entry.expires_s()


def test_a_name_may_have_several_digests() -> None:
    """One or a list; a plain key counts as its digest."""
    listed = KeyEntry("a", ["send"], sha256=["0" * 64, "1" * 64])
    assert [bytes(32), b"\x11" * 32] == listed.digests()
    assert [digest_of("k")] == KeyEntry("a", ["send"], key="k").digests()


def test_weak_keys_are_named() -> None:
    """Those in plain, and those of them under 32 characters."""
    keys = [
        KeyEntry("a", ["send"], key="x" * 31),
        KeyEntry("b", ["send"], key="x" * 32),
        KeyEntry("c", ["send"], "0" * 64),
    ]
    assert (["a", "b"], ["a"]) == plain_names(keys)


def test_minted_keys_are_recognisable_and_never_the_same() -> None:
    """The prefix, then 43 characters of base64url: 256 bits."""
    keys = {mint_key() for _ in range(100)}
    assert 100 == len(keys)
    for key in keys:
        assert key.startswith("pf_")
        assert 46 == len(key)
        assert key[3:].replace("-", "").replace("_", "").isalnum()
