"""When a drain closes sessions, and what it tells them."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.drain import Plan

sessions = st.integers(0, 50_000)
paces = st.integers(1, 5_000)
asked = st.one_of(st.just(0.0), st.floats(0.01, 3600))


@given(sessions, asked, paces)
def test_all_are_closed_when_its_time_is_over(number: int, seconds: float, pace: int) -> None:
    """And 0 s are at once."""
    plan = Plan(number, seconds, pace)
    assert number == plan.due(plan.seconds)
    assert (seconds == 0) == (plan.seconds == 0)


@given(sessions, st.floats(0.01, 3600), paces, st.floats(0, 4000))
def test_never_more_than_the_pace(number: int, seconds: float, pace: int, passed: float) -> None:
    """By any moment at most `pace` for each second that has passed, and one."""
    assert Plan(number, seconds, pace).due(passed) <= passed * pace * (1 + 1e-9) + 1


@given(sessions, st.floats(0.01, 3600), paces)
def test_it_takes_longer_than_asked_only_for_the_pace(number: int, seconds: float, pace: int) -> None:
    """What is asked for, or what so many need."""
    assert max(seconds, number / pace) == Plan(number, seconds, pace).seconds


@given(sessions, asked, paces, st.integers(0, 50_000), st.floats(0, 2))
def test_pauses_are_short_unless_many_are_closed_at_once(
    number: int, seconds: float, pace: int, crowd: int, least: float
) -> None:
    """Within a second from the least; a crowd's are spread so that it comes back at the pace."""
    plan = Plan(number, seconds, pace)
    told = [orjson.loads(plan.advice(at_once=crowd, least_s=least))["reconnectIn"] for _ in range(20)]
    assert all(int(1000 * least) <= ms <= 1000 * (least + max(1.0, crowd / pace)) for ms in told)


def test_a_crowd_is_spread() -> None:
    """10,000 at 500 a second: over 20 s, about evenly."""
    plan = Plan(10_000, 0.0, 500)
    told = [orjson.loads(plan.advice(at_once=10_000))["reconnectIn"] for _ in range(10_000)]
    seconds = [sum(1 for ms in told if ms // 1000 == second) for second in range(20)]
    assert all(350 < count < 650 for count in seconds)
