"""docs/security.md names a test for each item and each limit, and they are there."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings

TOP = Path(__file__).parents[2]
PAGE = (TOP / "docs" / "security.md").read_text()
CHECKLIST, _, LIMITS = PAGE.partition("\n## Limits\n")
_ID = re.compile(r"`(tests/[\w/]+\.py)((?:::\w+)+)`")
TOPICS = (
    "Transport",
    "Origin, and cross-site WebSocket hijacking",
    "Authentication",
    "Authorization of each message",
    "Lifetime of sessions, revocation",
    "Validation of input",
    "Size, rate, and denial of service",
    "Logging and monitoring",
    "Tunnelling and proxies",
    "Errors",
    "Dependencies",
    "Secrets",
    "Hardened configuration",
)
# Settings with numbers that limit nothing that a peer does.
NO_LIMITS = {
    "PUSH_ACK_TIMEOUT",
    "PUSH_ADMIN_PORT",
    "PUSH_BROADCAST_RATE",
    "PUSH_DRAIN_PACE",
    "PUSH_DRAIN_SECONDS",
    "PUSH_HTTP_PORT",
    "PUSH_LEASE",
    "PUSH_NODE_PORT",
    "PUSH_NODE_WEIGHT",
    "PUSH_RECONCILE_SECONDS",
    "PUSH_REVOKED_SECONDS",
    "PUSH_TIMELINE_SECONDS",
}


def rows(text: str) -> list[list[str]]:
    """The cells of each row of its tables, without heads."""
    lines = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| item", "| setting"))
    ]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@cache
def source(path: str) -> str:
    return (TOP / path).read_text() if (TOP / path).is_file() else ""


def numbers() -> dict[str, str]:
    """Each setting with a number, and its default as the tables show it."""
    found = {}
    for settings in (GatewaySettings, DispatcherSettings):
        for field in dataclasses.fields(cast(Any, settings)):
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                found[field.metadata["variable"]] = f"`{field.default}`"
    return found


@pytest.mark.parametrize(("path", "name"), sorted(set(_ID.findall(PAGE))), ids=lambda part: part)
def test_each_test_that_is_named_is_there(path: str, name: str) -> None:
    """The file has the function, and the class around it where one is named."""
    *classes, function = name.removeprefix("::").split("::")
    text = source(path)
    for enclosing in classes:
        text = re.split(r"^class ", text.partition(f"\nclass {enclosing}")[2], maxsplit=1, flags=re.MULTILINE)[0]
    assert re.search(rf"^ *(?:async )?def {function}\(", text, re.MULTILINE), f"{path}{name}"


def test_the_topics_are_complete() -> None:
    """Each has a heading of its own and at least one row."""
    sections = re.split(r"^### ", CHECKLIST, flags=re.MULTILINE)[1:]
    assert list(TOPICS) == [section.partition("\n")[0] for section in sections]
    assert [] == [section.partition("\n")[0] for section in sections if not rows(section)]


def test_every_item_names_its_test() -> None:
    """No row of the checklist, and none of the limits, is without one."""
    checklist = CHECKLIST.partition("## Checklist")[2]
    assert rows(checklist)
    assert [] == [row[:2] for row in [*rows(checklist), *rows(LIMITS)] if not _ID.search(row[-1])]


def test_every_limit_has_its_row() -> None:
    """Each setting with a number stands among the limits, or among those that limit nothing a peer does."""
    listed = {row[0].strip("`") for row in rows(LIMITS)}
    assert set() == set(numbers()) - listed - NO_LIMITS
    assert set() == NO_LIMITS - set(numbers())


def test_limits_have_their_defaults() -> None:
    """As the settings classes have them; none is of a setting that is not there."""
    told = {row[0].strip("`"): row[1] for row in rows(LIMITS)}
    switches = {"PUSH_PROXY_PROTOCOL": "`0`"}
    assert told == {name: default for name, default in {**numbers(), **switches}.items() if name in told}


def test_every_counted_limit_is_told() -> None:
    """What the code counts under `limit` stands in the table."""
    code = "".join(path.read_text() for role in ("gateway_node", "dispatcher") for path in (TOP / role).rglob("*.py"))
    counted = set(re.findall(r'REFUSED\.labels\("(\w+)"\)|limit="(\w+)"', code))
    told = {name for row in rows(LIMITS) for name in re.findall(r"`(\w+)`", row[3])}
    assert set() == {one or other for one, other in counted} - told
