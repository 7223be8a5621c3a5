"""What the documents say of the code is there: links, variables, metrics, codes, files and names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import pytest

from dispatcher.http import BodyTimeout
from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from shared.errors import PushfleetError
from tests.chaos.faults import FAULTS

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PACKAGES = ("shared", "gateway_node", "dispatcher", "pushfleet")
PAGES = sorted(
    page for place in (TOP, DOCS, DOCS / "adr", TOP / "bench") for page in place.glob("*.md") if page.is_file()
)
TRANSLATED = [TOP / "README.md", DOCS / "quick-start.md", DOCS / "protocol.md"]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|lua|md|yml|conf|json)\Z")
_METHOD = re.compile(r"([A-Z]\w+)\.(\w+)\Z")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and a heading of it if it names one."""
    prose = _FENCE.sub("", page.read_text())
    broken = [link for link in _LINK.findall(prose) if "://" not in link and not resolves(page, link)]
    assert [] == broken


def resolves(page: Path, link: str) -> bool:
    path, _, heading = unquote(link).partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not heading or heading in headings(target))


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def variables() -> Iterator[tuple[str, str]]:
    """Each variable of both roles with its default as the tables show it."""
    for settings in (GatewaySettings, DispatcherSettings):
        for field in dataclasses.fields(cast(Any, settings)):
            default = int(field.default) if isinstance(field.default, bool) else field.default
            yield field.metadata["variable"], "" if default in ("", ()) else f"`{default}`"


def test_operations_tells_every_variable_and_no_other() -> None:
    """The variables named are exactly those that the roles read."""
    named = set(re.findall(r"PUSH_[A-Z_]+[A-Z]", (DOCS / "operations.md").read_text()))
    assert named - {"PUSH_NAMESPACE"} == {name for name, _ in variables()} - {"PUSH_NAMESPACE"}


@pytest.mark.parametrize(("name", "default"), sorted(set(variables())))
def test_operations_tells_the_default(name: str, default: str) -> None:
    """Each variable has a row in a table, with the default of the settings class."""
    rows = re.findall(rf"^\| `{name}` \| ?(.*?) ?\| ", (DOCS / "operations.md").read_text(), re.MULTILINE)
    assert rows
    assert {default} == set(rows)


def test_operations_tells_every_metric() -> None:
    """Metrics in the code and in the table are the same."""
    files = ("shared/metrics.py", "gateway_node/metrics.py", "dispatcher/metrics.py")
    made = re.findall(r'(\w+)\(\s*"(push_[a-z_]+)"', "".join((TOP / file).read_text() for file in files))
    # A family of counters is named without the ending that the text format gives it.
    names = {name + ("_total" if kind == "CounterMetricFamily" else "") for kind, name in made}
    table = set(re.findall(r"^\| `(push_[a-z_]+)`", (DOCS / "operations.md").read_text(), re.MULTILINE))
    assert names == table


@pytest.mark.parametrize("page", ["protocol.md", "protocol.zh-CN.md"])
def test_the_protocol_tells_every_code(page: str) -> None:
    """The codes of bad frames, of the tree of errors, and of close frames."""
    text = (DOCS / page).read_text()
    files = ("client_frames", "incoming", "chat", "gateway", "clerk", "membership")
    frames = "".join((TOP / f"gateway_node/{file}.py").read_text() for file in files)
    codes = set(re.findall(r'(?:BadFrame\(|Refused\(|incoming\.fault\(|_refuse\(errand, |return )"(\w+)"[,)]', frames))
    assert {"not_json", "bad_frame", "not_registered", "group_limit", "unknown_group", "forbidden"} <= codes
    codes |= {error.code for error in error_tree(PushfleetError)} | {BodyTimeout.code}
    codes |= set(re.findall(r" = ([14]0\d\d)$", (TOP / "shared/errors.py").read_text(), re.MULTILINE))
    missing = {code for code in codes if not re.search(rf"\b{code}\b", text)}
    assert set() == missing


def error_tree(error: type[PushfleetError]) -> Iterator[type[PushfleetError]]:
    yield error
    for child in error.__subclasses__():
        yield from error_tree(child)


@cache
def source() -> str:
    """All Python of the packages."""
    return "\n".join(file.read_text() for package in PACKAGES for file in sorted((TOP / package).rglob("*.py")))


@pytest.mark.parametrize("page", ["push.md", "glossary.md"])
def test_files_and_methods_exist(page: str) -> None:
    """Each path in backticks is a file, each `Class.method` is in the code."""
    words = _CODE.findall(_FENCE.sub("", (DOCS / page).read_text()))
    paths = {word for word in words if _PATH.match(word) and "/" in word}
    methods = {(match[1], match[2]) for word in words if (match := _METHOD.match(word))}
    assert paths
    assert [] == sorted(path for path in paths if not (TOP / path).exists())
    assert methods
    assert [] == sorted(method for method in methods if not is_method(*method))


def is_method(class_name: str, name: str) -> bool:
    bodies = re.findall(rf"^class {class_name}\b.*?(?=^\w|\Z)", source(), re.MULTILINE | re.DOTALL)
    return any(re.search(rf"^    (?:async )?def {name}\b", body, re.MULTILINE) for body in bodies)


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_a_translation_has_the_same_examples(page: Path) -> None:
    """What is to be typed or is shown does not differ between the languages; diagrams are translated."""
    translation = page.with_suffix(".zh-CN.md")
    assert examples(page) == examples(translation)


def examples(page: Path) -> list[tuple[str, str]]:
    return [block for block in _FENCE.findall(page.read_text()) if block[0] != "mermaid"]


def test_the_page_of_the_quick_start_is_short() -> None:
    """The client of the quick start is 25 lines, the sender 10."""
    blocks = dict(examples(DOCS / "quick-start.md"))
    assert 25 == len(blocks["html"].splitlines())
    assert 10 == len(blocks["python"].splitlines())
    compile(blocks["python"], "quick-start.md", "exec")


def test_guarantees_name_tests_and_faults_that_are_there() -> None:
    """Each row of guarantees.md points to something that runs."""
    text = (DOCS / "guarantees.md").read_text()
    tests = {path.name: path.read_text() for path in (TOP / "tests").rglob("test_*.py")}
    for file, name in re.findall(r"`(?:[\w/]+/)?(test_\w+\.py)(?:::(\w+))?`", text):
        assert file in tests
        assert not name or f"def {name}(" in tests[file]
    rows = [line for line in text.splitlines() if line.startswith("| ") and "chaos `" in line]
    faults = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("chaos ", 1)[1])}
    assert faults <= set(FAULTS)
    assert len(faults) > 10
