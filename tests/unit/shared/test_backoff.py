"""Backoff: bounds of the delays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.backoff import Backoff


def test_delays_double_up_to_the_most() -> None:
    """Each delay lies in [half, whole] of a bound that doubles and then stays."""
    backoff = Backoff(first=1.0, most=5.0)
    for bound in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert bound / 2 <= backoff.next_s() <= bound


def test_reset_begins_again() -> None:
    """After a success the first delay is short again."""
    backoff = Backoff(first=1.0, most=64.0)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_delays_differ() -> None:
    """Two that fail together do not try again together."""
    assert len({Backoff(first=1.0).next_s() for _ in range(50)}) > 1


@given(first=st.floats(0.001, 100), most=st.floats(0.001, 100), tries=st.integers(1, 40))
def test_no_delay_exceeds_the_most(first: float, most: float, tries: int) -> None:
    """Whatever the arguments, a delay is positive and not above `most`."""
    backoff = Backoff(first=first, most=most)
    assert all(0 < backoff.next_s() <= most for _ in range(tries))
