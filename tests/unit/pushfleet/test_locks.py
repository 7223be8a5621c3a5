"""What is installed is what was locked: exact versions, with hashes, that fit pyproject.toml."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from locks.audit import Finding, NotAsked, findings
from pushfleet.jars import CHECKSUMS, VERSION, jars_fault

TOP = Path(__file__).parents[3]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
RUN = PROJECT["project"]["dependencies"]
BUILD = PROJECT["build-system"]["requires"]
EMBEDDED = PROJECT["project"]["optional-dependencies"]["embedded"]
WANTED = {
    "run.txt": RUN,
    "develop.txt": [*RUN, *EMBEDDED, *GROUPS["dev"], *GROUPS["build"], *BUILD],
    "build.txt": [*GROUPS["build"], *BUILD],
    "fuzz.txt": GROUPS["fuzz"],
    "tools.txt": GROUPS["tools"],
    "autobahn-maker.txt": GROUPS["autobahn"],
    "autobahn-suite.txt": ["autobahntestsuite"],
}
_ENTRY = re.compile(
    r"^([\w.-]+)==([\w.]+)(?: ; [^\\]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def locked(name: str) -> dict[str, Version]:
    """The version of each package in a lock file."""
    return {canonicalize_name(entry[0]): Version(entry[1]) for entry in _ENTRY.findall(text_of(name))}


def text_of(name: str) -> str:
    return (TOP / "locks" / name).read_text()


def test_every_lock_file_is_looked_at() -> None:
    """There is none besides those of the tests below."""
    assert set(WANTED) == {path.name for path in (TOP / "locks").glob("*.txt")}


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_has_what_is_asked_for_in_a_version_that_fits(name: str) -> None:
    """`make lock` was run after the last change of pyproject.toml."""
    found = locked(name)
    wanted = [Requirement(text) for text in WANTED[name]]
    assert [] == [str(one) for one in wanted if canonicalize_name(one.name) not in found]
    assert [] == [str(one) for one in wanted if not one.specifier.contains(found[canonicalize_name(one.name)])]


@pytest.mark.parametrize("name", WANTED)
def test_each_line_of_a_lock_is_one_version_with_hashes(name: str) -> None:
    """Nothing but comments and entries with a SHA-256; no address of an index, which is each machine's own matter."""
    rest = _ENTRY.sub("", text_of(name))
    assert [] == [line for line in rest.splitlines() if not line.lstrip().startswith("#")]
    assert "://" not in text_of(name)


@pytest.mark.parametrize("name", ["run.txt", "build.txt"])
def test_what_is_shipped_is_what_is_tested(name: str) -> None:
    """The image has no version that .venv has not."""
    tested = locked("develop.txt")
    assert {} == {package: version for package, version in locked(name).items() if tested.get(package) != version}


@pytest.mark.parametrize(
    "place",
    ["Makefile", "deploy/Dockerfile", "locks/renew.py", "tests/conformance/autobahn.py"],
)
def test_nothing_is_installed_without_hashes(place: str) -> None:
    """Each `pip install` asks for hashes, or has no index to go to: the project itself, without dependencies."""
    text = (TOP / place).read_text().replace("\\\n", " ").replace('", "', " ")
    installs = re.findall(
        r"(?:pip install|\$\(PIP\) ).*(?:\n.*-r.*)?", text.replace("PIP := $(BIN)/python -m pip install", "")
    )
    assert installs
    assert [] == [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line]


def report(*packages: Mapping[str, object]) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


def test_an_audit_tells_what_is_known() -> None:
    """Package, version, name of the vulnerability, where it is mended."""
    good = {"name": "click", "version": "8.5.1", "vulns": []}
    bad = {"name": "redis", "version": "8.1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["8.1.1"], "aliases": []}]}
    assert [] == findings(report(good))
    assert [Finding("redis", "8.1.0", "PYSEC-1", "8.1.1")] == findings(report(good, bad))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No known vulnerabilities found",
        report({"name": "click", "version": "8.5.1", "vulns": []}, {"name": "redis", "skip_reason": "not found"}),
    ],
)
def test_an_audit_that_could_not_be_made_is_not_taken_for_a_clean_one(text: str) -> None:
    """No report, or one that passes a package over."""
    with pytest.raises(NotAsked):
        findings(text)


def test_jars_that_are_not_the_listed_ones_are_named(tmp_path: Path) -> None:
    """One with other contents, one that nobody listed, and those that are not there."""
    (tmp_path / f"rocketmq-broker-{VERSION}.jar").write_bytes(b"something else")
    (tmp_path / "extra.jar").write_bytes(b"")
    fault = jars_fault(tmp_path)
    assert "other contents: rocketmq-broker-" in fault
    assert "not on the list: extra.jar" in fault
    assert "not there: " in fault


def test_the_list_of_jars_is_of_this_version() -> None:
    """Name server, broker and tools, in the version that is fetched; each line a SHA-256 and a name."""
    lines = CHECKSUMS.read_text().splitlines()
    assert [] == [line for line in lines if not re.fullmatch(r"[0-9a-f]{64}  [\w.+-]+\.jar", line)]
    names = {line[66:] for line in lines}
    assert {f"rocketmq-{part}-{VERSION}.jar" for part in ("namesrv", "broker", "tools")} <= names
