"""`pushfleet config show` and options that take secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pushfleet.cli import main

SECRET = "Odd-Signing-Secret-0123456789-abcdef"
ENVIRON = {
    "PUSH_JWT_SECRET": SECRET,
    "PUSH_REDIS_URL": "redis://:Odd-Redis-Pa55@redis.example:6379/0",
    "PUSH_BUS_URL": "rocketmq://names.example:9876?accessKey=Odd-Access&secretKey=Odd-Key-0",
    "PUSH_CONNECT_RATE": "0",
}


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, [*arguments], env={"PUSH_AUTH": None, **environ})


def shown(*arguments: str, **environ: str) -> dict[str, Any]:
    """Setting by variable."""
    result = run("config", "show", "gateway", "--json", *arguments, **environ)
    assert result.exit_code == 0
    return {one["variable"]: one for one in json.loads(result.stdout)["gateway"]}


def test_each_setting_is_shown_with_its_source_and_without_secrets(tmp_path: Path) -> None:
    """Default, environment or file; where a URL leads, and nothing that opens a door."""
    path = tmp_path / "url"
    path.write_text(ENVIRON["PUSH_BUS_URL"])
    environ = {**ENVIRON, "PUSH_BUS_URL_FILE": str(path), "PUSH_ALLOWED_ORIGINS": "https://a.example"}
    del environ["PUSH_BUS_URL"]
    settings = shown(**environ)

    assert ("(not shown)", "environment") == (
        settings["PUSH_JWT_SECRET"]["value"],
        settings["PUSH_JWT_SECRET"]["source"],
    )
    assert settings["PUSH_REDIS_URL"]["value"] == "redis://:***@redis.example:6379/0"
    assert settings["PUSH_BUS_URL"]["value"] == "rocketmq://names.example:9876?accessKey=***&secretKey=***"
    assert settings["PUSH_BUS_URL"]["source"] == f"file {path}"
    assert settings["PUSH_ALLOWED_ORIGINS"]["value"] == ["https://a.example"]
    assert (9000, "default") == (settings["PUSH_NODE_PORT"]["value"], settings["PUSH_NODE_PORT"]["source"])
    assert settings["PUSH_NODE_HOST"]["value"] == "0.0.0.0"
    assert "Odd-" not in json.dumps(settings)


def test_the_text_for_people_has_no_secret_either() -> None:
    """A line for each setting of both roles."""
    result = run("config", "show", **ENVIRON, PUSH_AUTH="off", PUSH_INSECURE="1")
    assert result.exit_code == 0
    assert "# gateway" in result.output
    assert "# dispatcher" in result.output
    assert "Odd-" not in result.output


def test_settings_that_a_role_would_not_take_end_with_2() -> None:
    """The fault is told as the role tells it."""
    result = run("config", "show", "gateway", PUSH_NODE_PORT="none", **ENVIRON)
    assert result.exit_code == 2
    assert "PUSH_NODE_PORT='none'" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("gateway", "--jwt-secret", SECRET),
        ("dispatcher", "--redis-url", "redis://:Odd-Redis-Pa55@h:6379/0"),
        ("gateway", "--bus-url", "rocketmq://h:9876?accessKey=a&secretKey=Odd-Key-0"),
        ("gateway", "--jwt-jwks", "https://u:Odd-Jwks-Pa55@h/keys"),
        ("token", "--sub", "alice", "--secret", SECRET),
        ("dev", "--bus", "rocketmq://h:9876?accessKey=a&secretKey=Odd-Key-0"),
    ],
)
def test_a_secret_is_refused_on_a_command_line_that_others_can_read(arguments: tuple[str, ...]) -> None:
    """Before anything is started; what to do instead is said, the secret is not."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "every user of this machine" in result.output
    assert "@FILE" in result.output
    assert "Odd-" not in result.output


@pytest.mark.parametrize("option", ["--token", "--api-key"])
def test_a_token_on_a_command_line_is_taken_with_a_warning(option: str) -> None:
    """It is good for a while, and handy in development."""
    result = run("tail", "not a client", option, "Odd-Token")
    assert f"Warning: {option}" in result.stderr
    assert "Odd-" not in result.output


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    """`@FILE`; one that is not there is told."""
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    good = run("token", "--sub", "alice", "--secret", f"@{path}", PUSH_JWT_SECRET="")
    assert (0, 3) == (good.exit_code, len(good.stdout.split(".")))
    assert good.stderr == ""
    bad = run("token", "--sub", "alice", "--secret", f"@{tmp_path}/none", PUSH_JWT_SECRET="")
    assert bad.exit_code == 2
    assert "cannot be read" in bad.output
