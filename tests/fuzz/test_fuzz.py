"""
Every target, shortly: its seeds, what was found once, and what Hypothesis makes of both. `make fuzz` looks for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.target import CORPUS, Target
from tests.fuzz.targets import TARGETS

_KEPT = [(target, kept) for target in TARGETS.values() for kept in target.kept()]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_seeds_pass(target: Target) -> None:
    """What a target begins with breaks nothing."""
    for data in target.seeds:
        target.run(data)


@pytest.mark.parametrize(("target", "kept"), _KEPT, ids=[f"{target.name}/{kept.name}" for target, kept in _KEPT])
def test_what_was_found_is_mended(target: Target, kept: Path) -> None:
    """Each input that broke something once."""
    target.run(kept.read_bytes())


def test_the_corpus_is_of_targets_that_are_there() -> None:
    """No finding is forgotten because its target has another name now."""
    assert {place.name for place in CORPUS.iterdir()} <= TARGETS.keys()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_nothing_breaks_it(target: Target) -> None:
    """Bytes at random, and seeds with pieces changed."""
    changed = st.builds(_changed, st.sampled_from(target.seeds), st.lists(_EDITS, max_size=8))

    @seed(1)
    @settings(max_examples=_FEW if target.name == "long_texts" else _MANY, database=None)
    @given(st.binary(max_size=256) | changed)
    def holds(data: bytes) -> None:
        target.run(data)

    holds()


_MANY, _FEW = 300, 60
_EDITS = st.tuples(st.integers(0, 1 << 16), st.integers(0, 4), st.binary(max_size=4))


def _changed(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """At each place so many octets replaced."""
    for place, count, octets in edits:
        at = place % (len(data) + 1)
        data = data[:at] + octets + data[at + count :]
    return data
