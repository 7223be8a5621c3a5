"""How far a node is behind, by a clock that is another machine's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.lag import Lag

T = 1_800_000_000.0


def ms(time_s: float) -> int:
    return round(time_s * 1000)


def test_it_is_the_age_of_the_record_in_hand() -> None:
    """Of the one that came last, by the time at which the bus stored it."""
    lag = Lag(T)
    lag.handling(ms(T - 5), T)
    assert 5000 == lag.ms(T)
    lag.handling(ms(T - 3), T + 1)
    assert 4000 == lag.ms(T + 1)
    assert 6000 == lag.ms(T + 3)


@given(st.floats(-100_000, 100_000))
def test_clocks_may_differ(difference: float) -> None:
    """Once the topic was empty the difference is known."""
    lag = Lag(T)
    for n in range(3):
        lag.caught_up(T + n)
        lag.handling(ms(T + n - difference), T + n)
    lag.handling(ms(T + 2 - difference), T + 12)
    assert 10_000 == pytest.approx(lag.ms(T + 12), abs=2)


def test_a_record_that_waited_does_not_spoil_the_difference() -> None:
    """A broker that was away brings old records after a while without any; the least difference counts."""
    lag = Lag(T)
    lag.caught_up(T)
    lag.handling(ms(T), T)
    lag.caught_up(T + 60)
    lag.handling(ms(T + 1), T + 60)
    lag.handling(ms(T + 60), T + 68)
    assert 8000 == lag.ms(T + 68)


def test_nothing_is_older_than_the_moment_without_anything() -> None:
    """Whatever the clocks say: it was not behind then."""
    lag = Lag(T)
    lag.caught_up(T)
    lag.handling(ms(T), T)
    lag.caught_up(T + 10)
    lag.handling(ms(T - 1000), T + 12)
    assert 2000 == lag.ms(T + 12)


def test_never_negative_and_nothing_without_a_time() -> None:
    """A clock that runs ahead, or a bus that does not tell."""
    lag = Lag(T)
    lag.handling(ms(T + 50), T)
    assert 0 == lag.ms(T)
    lag.handling(0, T + 1)
    assert 0 == lag.ms(T + 1)
