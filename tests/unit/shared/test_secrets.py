"""Secrets of settings are used and never shown."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from shared.secrets import Secret, SecretUrl, hidden_texts, holds_secrets, masked_url, open_to_others
from shared.settings import SettingsError, load

SECRETS = (
    "Odd-Signing-Secret-0123456789-abcdef",
    "Odd-Redis-Pa55",
    "Odd-Access-Key",
    "Odd-Secret-Key",
    "Odd-Jwks-Pa55",
)
ENVIRON = {
    "PUSH_JWT_SECRET": SECRETS[0],
    "PUSH_REDIS_URL": f"rediss://push:{SECRETS[1]}@redis.example:6380/2?ssl_cert_reqs=none",
    "PUSH_BUS_URL": f"rocketmq://names.example:9876?accessKey={SECRETS[2]}&secretKey={SECRETS[3]}&tls=1",
    "PUSH_JWT_JWKS": f"https://reader:{SECRETS[4]}@issuer.example/keys.json",
}


@pytest.fixture
def settings() -> GatewaySettings:
    return load(GatewaySettings, ENVIRON)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:pa55@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://user:pa55@h/0", "redis://user:***@h/0"),
        ("redis://token@h/0", "redis://***@h/0"),
        ("redis+cluster://u:p@a:1,b:2", "redis+cluster://u:***@a:1,b:2"),
        ("redis://:p@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
        ("redis+sentinel://:p@a/main?sentinel_password=q&ssl_cert_reqs=none",
         "redis+sentinel://:***@a/main?sentinel_password=***&ssl_cert_reqs=none"),
        ("rocketmq://a:9876?accessKey=k&secretKey=s&tls=1", "rocketmq://a:9876?accessKey=***&secretKey=***&tls=1"),
        ("https://issuer.example/keys?token=abc", "https://issuer.example/keys?token=***"),
        ("https://issuer.example/keys?abc", "https://issuer.example/keys?***"),
        ("redis://:pa/ss@h:6379/0", "(not shown)"),
        ("redis://:pa?ss@h:6379/0", "(not shown)"),
        ("redis://:pa#ss@h:6379/0", "(not shown)"),
        ("redis://:pass", "(not shown)"),
        ("redis://[", "(not shown)"),
        ("/etc/pushfleet/keys.json", "/etc/pushfleet/keys.json"),
        (":pa55@h:6379", "(not shown)"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_url_shows_where_it_leads_and_no_secret(url: str, shown: str) -> None:
    """Its password and its options are masked; what cannot be taken apart for sure is not shown at all."""
    assert shown == masked_url(url)
    assert (shown != url) == holds_secrets(url)


def test_settings_do_not_show_their_secrets(settings: GatewaySettings) -> None:
    """In `repr`, in that of their dict, and formatted into an error; where they lead stays visible."""
    texts = [repr(settings), repr(dataclasses.asdict(settings)), f"{settings}", f"{settings.bus!r}", f"{(settings,)}"]
    for text in texts:
        assert [] == [secret for secret in SECRETS if secret in text]
    assert "redis.example:6380" in texts[0]
    assert settings.jwt_secret == SECRETS[0]


def test_a_wrong_secret_is_not_shown_in_the_fault() -> None:
    """Neither a URL's password, nor one that breaks the URL."""
    wrong = {
        "PUSH_JWT_SECRET": "Odd-short",
        "PUSH_REDIS_URL": "redis://:Odd-pa/ss@h:1",
        "PUSH_BUS_URL": "kafka://u:Odd-p@h",
    }
    for environ in ({**ENVIRON, name: value} for name, value in wrong.items()):
        with pytest.raises(SettingsError) as error:
            load(GatewaySettings, environ)
        assert "Odd-" not in str(error.value)


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    """The variable with _FILE names it; a line break at its end is not part of it."""
    path = tmp_path / "secret"
    path.write_text(SECRETS[0] + "\n")
    settings = load(GatewaySettings, {"PUSH_JWT_SECRET_FILE": str(path)})
    assert settings.jwt_secret == SECRETS[0]


def test_a_secret_is_given_once_or_in_a_file_that_can_be_read(tmp_path: Path) -> None:
    """Both variables, or a file that is not there, are wrong settings that name the variable and show nothing."""
    for environ in (
        {"PUSH_JWT_SECRET": SECRETS[0], "PUSH_JWT_SECRET_FILE": str(tmp_path)},
        {"PUSH_JWT_SECRET_FILE": str(tmp_path / "nowhere")},
    ):
        with pytest.raises(SettingsError) as error:
            load(GatewaySettings, environ)
        assert "PUSH_JWT_SECRET=(not shown): " in str(error.value)
        assert SECRETS[0] not in str(error.value)


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ('{"keys":[{"name":"a","key":"plain","scopes":["send"]}]}', True),
        ('{"keys":[{"name":"a","sha256":"00","scopes":["send"]}]}', False),
        ('{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}', True),
        ('{"keys":[{"kty":"EC","x":"a","y":"b","d":"private"}]}', True),
        ('{"keys":[{"kty":"EC","x":"a","y":"b"}]}', False),
        ("-----BEGIN PRIVATE KEY-----\n", True),
        ("-----BEGIN CERTIFICATE-----\n", False),
    ],
)
def test_a_file_with_a_secret_is_not_for_everybody(tmp_path: Path, text: str, is_secret: bool) -> None:
    """One that others may read is told if it has a key that is to be kept, and not when only its group may read it."""
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(0o644)
    assert is_secret == open_to_others(str(path))
    path.chmod(0o640)
    assert not open_to_others(str(path))


def test_the_variables_of_open_files_are_named(tmp_path: Path) -> None:
    """API keys in plain, and a secret's own file whatever is in it."""
    keys, secret = tmp_path / "keys.json", tmp_path / "secret"
    keys.write_text('{"keys":[{"name":"a","key":"plain-key-0123456789","scopes":["send"]}]}')
    secret.write_text(SECRETS[0])
    environ = {"PUSH_API_KEYS": str(keys), "PUSH_JWT_SECRET_FILE": str(secret)}
    for path in (keys, secret):
        path.chmod(0o644)
    settings = load(DispatcherSettings, environ)
    assert {"PUSH_API_KEYS", "PUSH_JWT_SECRET_FILE"} == set(settings.open_files(environ))
    secret.chmod(0o600)
    assert ["PUSH_API_KEYS"] == settings.open_files(environ)


def test_what_must_not_be_found_is_each_secret(settings: GatewaySettings) -> None:
    """As it is written and as it is meant; nothing of a URL without secrets, nothing so short that it is in words."""
    assert set(SECRETS) <= set(settings.hidden())
    assert {"redis://:Odd%2DPa55@h", "Odd%2DPa55", "Odd-Pa55", "redis://:Odd-Pa55@h"} == set(
        hidden_texts(SecretUrl("redis://:Odd%2DPa55@h"))
    )
    assert [] == [*hidden_texts(SecretUrl("redis://127.0.0.1:6379/0")), *hidden_texts(Secret("info"))]


def test_a_log_line_loses_the_secrets_of_the_settings() -> None:
    """Also where they came with the text of an error from elsewhere, in a traceback, and escaped for JSON."""
    program = (
        "from shared.logs import set_up_logs, get_log\n"
        "set_up_logs('info', hide=['Odd-Pa55-word', 'Odd\"quoted\"secret'])\n"
        "log = get_log('t')\n"
        "log.warning('a', reason='AUTH Odd-Pa55-word refused', more='Odd\"quoted\"secret')\n"
        "try:\n    raise ValueError('no Odd-Pa55-word')\n"
        "except ValueError:\n    log.exception('b')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("(not shown)" in line and "Odd" not in line for line in lines)
