"""The rate of arrivals: a bucket that fills."""

from __future__ import annotations

import pytest

from gateway_node.arrivals import Arrivals
from shared.errors import Unavailable


def let_in(arrivals: Arrivals, now: float, tries: int) -> int:
    taken = 0
    for _ in range(tries):
        try:
            arrivals.take(now)
        except Unavailable:
            continue
        taken += 1
    return taken


def test_two_seconds_worth_at_once_then_the_rate() -> None:
    """A burst empties the bucket; it fills with the rate, up to its size."""
    arrivals = Arrivals(10)
    assert 20 == let_in(arrivals, 1000.0, 50)
    assert 0 == let_in(arrivals, 1000.0, 50)
    assert 5 == let_in(arrivals, 1000.5, 50)
    assert 20 == let_in(arrivals, 2000.0, 50)


def test_who_is_refused_comes_back_at_a_time_of_its_own() -> None:
    """Whole seconds from 1 to 5, all of them."""
    arrivals = Arrivals(0.001)
    told = set()
    for _ in range(500):
        with pytest.raises(Unavailable) as refused:
            arrivals.take(0.0)
        told.add(refused.value.retry_after_s)
    assert {1, 2, 3, 4, 5} == told


def test_without_a_rate_everybody_comes_in() -> None:
    """PUSH_CONNECT_RATE=0."""
    assert 10_000 == let_in(Arrivals(0), 0.0, 10_000)


def test_a_clock_that_stands_still_gives_nothing() -> None:
    """The clock is the node's coarse one."""
    arrivals = Arrivals(1)
    assert 2 == let_in(arrivals, 5.0, 10)
    assert 0 == let_in(arrivals, 4.0, 10)
