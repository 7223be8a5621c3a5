"""The line that says, at the end of a run, how much of the Autobahn suite passed."""

from __future__ import annotations

import pytest

from tests.conformance.outcome import OUTCOME


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say the outcome, loudest where there was none."""
    if text := terminalreporter.config.stash.get(OUTCOME, ""):
        terminalreporter.section("WebSocket conformance")
        terminalreporter.line(text, yellow="did not run" in text, bold=True)
