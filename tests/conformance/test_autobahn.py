"""The WebSocket core behaves as RFC 6455 says, judged by Autobahn: sections 1-7, 9 and 10, strictly."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.autobahn import Unavailable, Verdict, echo_server, run_suite, suite_python
from tests.conformance.outcome import OUTCOME

# Sections 12 and 13 are about compression, which is not offered. The suite has no sections 8 and 11.
CASES = {"1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37, "9": 54, "10": 1}

# The suite judges nothing in these, whatever a server does: data after a close frame (7.1.6), close codes that
# RFC 6455 does not define (7.13.*).
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    """What the suite says about the real connection in echo mode."""
    try:
        python = suite_python()
    except Unavailable as error:
        text = f"WebSocket conformance did not run: {error}"
        request.config.stash[OUTCOME] = text
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    with echo_server() as port:
        found = run_suite(python, port, [f"{section}.*" for section in CASES], tmp_path_factory.mktemp("autobahn"))
    passed = sum(is_strict_pass(verdict) for verdict in found)
    request.config.stash[OUTCOME] = f"Autobahn: {passed} of {len(found)} cases passed"
    return found


def is_strict_pass(verdict: Verdict) -> bool:
    """OK in both respects; NON-STRICT is not enough."""
    wanted = "INFORMATIONAL" if verdict.case in INFORMATIONAL else "OK"
    return wanted == verdict.behavior == verdict.behavior_close


def test_every_case_passes_strictly(verdicts: list[Verdict]) -> None:
    """Each case's behaviour and close are OK; the table names those that are not."""
    failed = [verdict for verdict in verdicts if not is_strict_pass(verdict)]
    table = "\n".join(f"{verdict.case:8} {verdict.behavior:14} {verdict.behavior_close}" for verdict in failed)
    assert not failed, f"{len(failed)} of {len(verdicts)} cases:\n{table}"


def test_no_case_is_left_out(verdicts: list[Verdict]) -> None:
    """As many cases ran of each section as it has."""
    assert dict(Counter(verdict.case.split(".")[0] for verdict in verdicts)) == CASES


def test_no_server_no_verdict(tmp_path: Path, verdicts: list[Verdict]) -> None:
    """The judge judges what it was pointed at: where nobody listens, no case has a verdict."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert run_suite(suite_python(), port, ["1.1.1"], tmp_path) == []
