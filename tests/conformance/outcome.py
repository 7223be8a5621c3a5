"""Where the conformance tests leave the line for the summary."""

from __future__ import annotations

import pytest

OUTCOME = pytest.StashKey[str]()
