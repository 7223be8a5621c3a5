"""
`make audit`: does a list of known vulnerabilities name anything that is locked?

Every lock file is looked up with pip-audit, which runs in a throw-away environment. Exit codes of this script: 0
nothing is known, 1 something is (it is printed), 3 no service could be asked, which says nothing in either direction. A
service that passes packages over counts as not asked: pip-audit calls such a run clean, and a mirror of an index that
has the files, but not what is known of them, gives one.
(`make` ends with 2 whatever went wrong; its last line shows the script's code, and so does what is printed.)
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locks.renew import LOCKS, TOP, tools

CLEAN, VULNERABLE, NOT_ASKED = 0, 1, 3
# Each is a list of its own behind an address of its own; one that answers is enough.
SERVICES = ("osv", "pypi")
DEADLINE_S = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """A locked package that a vulnerability is known of."""

    package: str
    version: str
    vulnerability: str
    mended_in: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {self.vulnerability}, mended in {self.mended_in or 'no release yet'}"


class NotAsked(Exception):
    """The service gave no judgement; the text says why."""


def findings(report: str) -> list[Finding]:
    """What a report of pip-audit (`--format json`) says. Raises NotAsked if it is none, or passes packages over."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        raise NotAsked("no report") from None
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if skipped:
        raise NotAsked(f"it does not know {', '.join(skipped[:3])}{', ...' if len(skipped) > 3 else ''}")
    return [
        Finding(one["name"], one.get("version", ""), found["id"], ", ".join(found["fix_versions"]))
        for one in packages
        for found in one.get("vulns", [])
    ]


def ask(pip_audit: Path, service: str) -> set[Finding]:
    """What the service knows. Nothing is installed or resolved: all is locked. Raises NotAsked."""
    known: set[Finding] = set()
    for name in LOCKS:
        command = [str(pip_audit), "-r", f"locks/{name}", "--require-hashes", "--disable-pip", "--format", "json"]
        command += ["--progress-spinner", "off", "--vulnerability-service", service, "--timeout", "15"]
        try:
            done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        except subprocess.TimeoutExpired:
            raise NotAsked(f"no answer within {DEADLINE_S} s") from None
        if not done.stdout.strip():
            raise NotAsked((done.stderr.strip().splitlines() or ["no report"])[-1])
        known |= set(findings(done.stdout))
    return known


def main() -> int:
    """The exit code."""
    found = None
    with tools() as programs:
        for service in SERVICES:
            try:
                found = ask(programs / "pip-audit", service)
                break
            except NotAsked as reason:
                print(f"{service}: could not be asked ({str(reason)[:200]})", file=sys.stderr)
    if found is None:
        print(f"NOT AUDITED: no vulnerability service answers from here (code {NOT_ASKED})", file=sys.stderr)
        return NOT_ASKED
    for finding in sorted(found, key=str):
        print(finding)
    if found:
        print(f"{len(found)} known (code {VULNERABLE}); newer: `make lock ARGS=--upgrade`", file=sys.stderr)
        return VULNERABLE
    print(f"{service} knows no vulnerability of what is locked")
    return CLEAN


if __name__ == "__main__":
    sys.exit(main())
