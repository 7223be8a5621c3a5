"""The command line: what it teaches, what it refuses, and that each option is written once."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from pushfleet.cli import main
from pushfleet.durations import parse_duration
from pushfleet.roles import settings_options
from shared.settings import RoleSettings
from tests.harness.tokens import verifier_of

SECRET = "a secret of at least 32 bytes, for tests"


def run(*arguments: str, **environment: str) -> Result:
    unset = dict.fromkeys(["PUSH_JWT_SECRET", "PUSH_DISPATCHER_URL", "PUSH_API_KEY", "PUSH_TOKEN"])
    return CliRunner().invoke(main, list(arguments), env={**unset, **environment})


def test_help_shows_the_first_steps() -> None:
    """Who types `pushfleet --help` learns the three commands to start with."""
    text = run("--help").output
    for command in ("pushfleet dev", "pushfleet tail alice", "pushfleet send alice '{\"hello\":1}'"):
        assert command in text


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    """Each command has help that a person can act on."""
    result = run(command, "--help")
    assert result.exit_code == 0
    assert main.commands[command].help


def test_version_is_told() -> None:
    """`pushfleet --version` names the program."""
    result = run("--version")
    assert (result.exit_code, result.output.split(",")[0]) == (0, "pushfleet")


@pytest.mark.parametrize(("command", "settings"), [("gateway", GatewaySettings), ("dispatcher", DispatcherSettings)])
def test_a_roles_help_lists_every_setting(command: str, settings: type[RoleSettings]) -> None:
    """Each variable is there with its option, default and meaning."""
    text = " ".join(run(command, "--help").output.split())
    for field in dataclasses.fields(cast(Any, settings)):
        variable = field.metadata["variable"]
        assert variable in text
        assert "--" + variable.removeprefix("PUSH_").lower().replace("_", "-") in text
        assert " ".join(field.metadata["meaning"].split())[:12] in text


@pytest.mark.parametrize("settings", [GatewaySettings, DispatcherSettings])
def test_no_option_is_written_twice(settings: type[RoleSettings]) -> None:
    """Two settings of a role never share an option."""
    names = [name for option in settings_options(settings) for name in option.opts]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("command", ["gateway", "dispatcher"])
def test_a_wrong_flag_names_its_variable(command: str) -> None:
    """A flag's value is checked as the variable's is: exit 2, and the variable is named."""
    result = run(command, "--lease", "soon")
    assert result.exit_code == 2
    assert "PUSH_LEASE='soon'" in result.stderr


def test_a_flag_wins_over_the_environment() -> None:
    """The variable is wrong and the flag is good: only what remains wrong is told."""
    result = run("gateway", "--lease", "5", "--auth", "never", PUSH_LEASE="soon")
    assert "PUSH_AUTH='never'" in result.stderr
    assert "PUSH_LEASE" not in result.stderr


def test_a_token_is_good_for_its_client() -> None:
    """The printed token passes the check that nodes make, and holds client, device and end."""
    result = run("token", "--sub", "alice", "--ttl", "1h", "--device", "phone", PUSH_JWT_SECRET=SECRET)
    claims = verifier_of(SECRET).verify(result.stdout.strip())
    assert (claims.client_id, claims.device) == ("alice", "phone")
    assert claims.expires_s > 0


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["token", "--sub", "alice"], {}, "PUSH_JWT_SECRET is not set"),
        (["token", "--sub", "alice"], {"PUSH_JWT_SECRET": "short"}, "5 bytes long"),
        (["token", "--sub", "a/b"], {"PUSH_JWT_SECRET": SECRET}, "a clientId may hold only"),
        (["token", "--sub", "a", "--ttl", "soon"], {"PUSH_JWT_SECRET": SECRET}, "expected 90, 90s, 15m, 1h or 7d"),
        (["dev", "--bus", "kafka://x"], {}, "expected rocketmq://host:9876"),
        (["tail", "a b"], {}, "a clientId may hold only"),
    ],
)
def test_a_wrong_argument_is_explained(arguments: list[str], environment: dict[str, str], expected: str) -> None:
    """The reason is said in words and nothing is printed for a script to take up."""
    result = run(*arguments, **environment)
    assert result.exit_code in (1, 2)
    assert expected in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800), (" 2h ", 7200)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    """A number alone is seconds; a letter is its unit."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize("text", ["", "0", "0h", "-1", "1.5h", "h", "1w", "1h30m", "१"])
def test_other_durations_are_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="expected 90, 90s"):
        parse_duration(text)
