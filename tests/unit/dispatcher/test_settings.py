"""The dispatcher's settings: what is refused, and how it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispatcher.settings import DispatcherSettings
from shared.settings import SettingsError, describe, load


def faults(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(DispatcherSettings, environ)
    return str(caught.value)


def test_authentication_needs_keys() -> None:
    """The default is `jwt`, and without a file of keys nobody could send: the fault says both ways out."""
    text = faults()
    assert "PUSH_API_KEYS" in text
    assert "PUSH_AUTH=off" in text


def test_authentication_off_is_for_loopback() -> None:
    """The default address then; refused on one that others can reach unless insisted on."""
    assert "PUSH_HTTP_HOST" in faults(PUSH_AUTH="off", PUSH_HTTP_HOST="0.0.0.0")
    assert "127.0.0.1" == load(DispatcherSettings, {"PUSH_AUTH": "off"}).bind_host
    assert load(DispatcherSettings, {"PUSH_AUTH": "off", "PUSH_HTTP_HOST": "0.0.0.0", "PUSH_INSECURE": "1"})


def test_a_wrong_file_of_keys_is_a_wrong_setting(tmp_path: Path) -> None:
    """It is read at the start, not at the first request."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "a", "key": "k", "scopes": ["sned"]}]}))
    assert "scopes" in faults(PUSH_API_KEYS=str(path))
    path.write_text(json.dumps({"keys": [{"name": "a", "key": "k" * 16, "scopes": ["send"]}]}))
    assert load(DispatcherSettings, {"PUSH_API_KEYS": str(path)})


def test_a_key_that_can_be_guessed_is_for_loopback(tmp_path: Path) -> None:
    """Under 16 characters it is refused where others reach the port, unless insisted on, and never shown."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "a", "key": "hunter2", "scopes": ["send"]}]}))
    text = faults(PUSH_API_KEYS=str(path))
    assert "at least 16" in text
    assert "hunter2" not in text
    for environ in ({"PUSH_HTTP_HOST": "127.0.0.1"}, {"PUSH_INSECURE": "1"}):
        assert load(DispatcherSettings, {"PUSH_API_KEYS": str(path), **environ})


def test_a_short_secret_is_refused_and_not_shown() -> None:
    """HS256 wants 32 bytes (RFC 7518 section 3.2)."""
    text = faults(PUSH_AUTH="off", PUSH_HTTP_HOST="127.0.0.1", PUSH_JWT_SECRET="hunter2")
    assert "PUSH_JWT_SECRET" in text
    assert "hunter2" not in text


def test_every_variable_is_described() -> None:
    """--help has a line for each."""
    text = describe(DispatcherSettings)
    for name in ("PUSH_HTTP_PORT", "PUSH_API_KEYS", "PUSH_INBOX_MESSAGES", "PUSH_REDIS_URL", "PUSH_AUTH"):
        assert name in text


def test_a_public_key_is_no_secret() -> None:
    """Whoever knows it could sign (RFC 8725 section 2.1)."""
    for text in ("-----BEGIN PUBLIC KEY-----\nMIIB" + "A" * 60, "ssh-ed25519 AAAA" + "C" * 60):
        fault = faults(PUSH_JWT_SECRET=text, PUSH_AUTH="off")
        assert "PUSH_JWT_SECRET" in fault
        assert "PUSH_JWT_JWKS" in fault
        assert text[30:60] not in fault
