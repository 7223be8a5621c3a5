"""Settings: from flags, then the environment, then defaults; every fault names its variable and what is expected."""

from __future__ import annotations

import pytest

from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from shared.settings import SettingsError, describe, is_loopback, load

OFF = {"PUSH_AUTH": "off"}


def test_defaults_work_with_authentication_off() -> None:
    """A node and a dispatcher start on loopback with nothing but PUSH_AUTH=off."""
    gateway = load(GatewaySettings, OFF)
    dispatcher = load(DispatcherSettings, OFF)

    assert gateway.bind_host == "127.0.0.1"
    assert (gateway.port, gateway.admin_port, dispatcher.http_port) == (9000, 9100, 8080)
    assert gateway.bus == gateway.redis_url == "redis://127.0.0.1:6379/0"


def test_flags_win_over_the_environment() -> None:
    """A flag that was not given (None) leaves the environment's value."""
    settings = load(GatewaySettings, {**OFF, "PUSH_NODE_PORT": "9001"}, {"port": 9002, "admin_port": None})

    assert settings.port == 9002


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PUSH_NODE_PORT", "abc", "a whole number from 0 to 65535"),
        ("PUSH_NODE_PORT", "70000", "a whole number from 0 to 65535"),
        ("PUSH_AUTH", "maybe", "jwt or off"),
        ("PUSH_REDIS_URL", "http://x", "redis://host:6379/0"),
        ("PUSH_BUS_URL", "kafka://x", "rocketmq://host:9876"),
        ("PUSH_LEASE", "-1", "seconds from 1 to 3600"),
        ("PUSH_LEASE", "nan", "seconds from 1 to 3600"),
        ("PUSH_NAMESPACE", "a b", "1 to 32 of"),
        ("PUSH_NODE_ADVERTISE", "nowhere", "ip:port"),
        ("PUSH_ALLOWED_ORIGINS", "example.com", "https://"),
        ("PUSH_INSECURE", "perhaps", "1 or 0"),
        ("PUSH_NODE_HOST", "0.0.0.0", "a loopback address, or PUSH_INSECURE=1"),
        ("PUSH_LOG_LEVEL", "loud", "debug or info"),
        ("PUSH_SESSION_POLICY", "some", "multi or device or client"),
        ("PUSH_CHAT_TIMEZONE", "Mars/Olympus", "a name of the tz database"),
        ("PUSH_CHAT_TIMEZONE", "Asia", "a name of the tz database"),
        ("PUSH_CHAT_TIMEZONE", "../etc/passwd", "a name of the tz database"),
        ("PUSH_CHAT_TIMEZONE", "", "a name of the tz database"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(variable: str, value: str, expected: str) -> None:
    """One line: variable, value, expectation."""
    with pytest.raises(SettingsError) as error:
        load(GatewaySettings, {**OFF, variable: value})

    assert variable in str(error.value) or variable == "PUSH_NODE_HOST"
    assert expected in str(error.value)


def test_all_faults_are_told_at_once() -> None:
    """Nobody mends settings one start at a time."""
    with pytest.raises(SettingsError) as error:
        load(GatewaySettings, {**OFF, "PUSH_NODE_PORT": "x", "PUSH_LEASE": "y"})

    assert len(str(error.value).splitlines()) == 2


def test_authentication_needs_its_secrets() -> None:
    """jwt is the default, and says what it needs."""
    with pytest.raises(SettingsError, match="PUSH_JWT_SECRET"):
        load(GatewaySettings, {})
    with pytest.raises(SettingsError, match="PUSH_API_KEYS"):
        load(DispatcherSettings, {})
    assert load(GatewaySettings, {"PUSH_JWT_SECRET": "s" * 32}).bind_host == "0.0.0.0"


def test_secrets_are_not_shown() -> None:
    """Not in the error about them."""
    with pytest.raises(SettingsError) as error:
        load(GatewaySettings, {"PUSH_JWT_SECRET": "short-secret"})

    assert "short-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("PUSH_JWT_SECRET", "\udc95" * 40), ("PUSH_NODE_URL", "\udc95"), ("PUSH_JWT_JWKS", "x" * 5000)],
)
def test_what_is_no_text_and_no_path_is_a_fault(variable: str, text: str) -> None:
    """Bytes that are not UTF-8 and names that no file can have are told of like everything else."""
    with pytest.raises(SettingsError, match=variable):
        load(GatewaySettings, {**OFF, variable: text})


def test_help_names_every_variable() -> None:
    """With default and meaning, from the one place where it is written."""
    text = describe(GatewaySettings)

    assert "PUSH_NODE_PORT" in text
    assert "PUSH_REDIS_URL" in text
    assert len(text.splitlines()) == len(GatewaySettings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x", False)]
)
def test_loopback(host: str, loopback: bool) -> None:
    """What only this machine can reach."""
    assert loopback == is_loopback(host)
