"""Turns: what a session asks for begins in its order, and changes are alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.turns import Turns
from shared.errors import Overloaded

ME = b"session"


def starter(begun: list[int], number: int, under_way: bool = True) -> Callable[[], bool]:
    """Notes that it was begun."""

    def start() -> bool:
        begun.append(number)
        return under_way

    return start


def test_messages_overlap_and_changes_are_alone() -> None:
    """A change waits for the messages before it; the messages after it wait for the change."""
    turns, begun = Turns(), list[int]()
    for number, alone in enumerate([False, False, True, False, False]):
        turns.take(ME, starter(begun, number), alone=alone)
    steps = [list(begun)]
    for _ in range(5):
        turns.done(ME)
        steps.append(list(begun))

    assert [[0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]] == steps
    assert turns.is_idle(ME)


def test_what_came_to_nothing_holds_up_nobody() -> None:
    """Also when it was to be alone; nothing of the session is kept."""
    turns, begun = Turns(), list[int]()
    for number in range(3):
        turns.take(ME, starter(begun, number, under_way=False), alone=number == 1)

    assert [0, 1, 2] == begun
    assert turns.is_idle(ME)


def test_sessions_do_not_wait_for_each_other() -> None:
    """Each has turns of its own."""
    turns, begun = Turns(), list[int]()
    turns.take(ME, starter(begun, 0), alone=True)
    turns.take(b"other", starter(begun, 1), alone=True)

    assert [0, 1] == begun


def test_a_session_that_asks_too_much_is_told() -> None:
    """256 wait; what is beyond is refused, and there is room again when it goes on."""
    turns, begun = Turns(), list[int]()
    turns.take(ME, starter(begun, 0), alone=True)
    for number in range(1, 257):
        turns.take(ME, starter(begun, number), alone=True)
    with pytest.raises(Overloaded):
        turns.take(ME, starter(begun, 257))
    turns.done(ME)
    turns.take(ME, starter(begun, 258))

    assert [0, 1] == begun


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=40))
def test_everything_begins_once_and_in_order(asked: list[tuple[bool, bool, bool]]) -> None:
    """Whatever is asked, and whenever something ends; while a change is under way nothing else is."""
    turns, begun, under_way = Turns(), list[int](), 0
    last_alone = False
    for number, (alone, goes, ends) in enumerate(asked):
        before = len(begun)
        turns.take(ME, starter(begun, number, goes), alone=alone)
        for started in begun[before:]:
            assert not (asked[started][0] and under_way)
            assert not (last_alone and under_way)
            under_way += asked[started][1]
            last_alone = asked[started][0]
        if ends and under_way:
            before, under_way = len(begun), under_way - 1
            turns.done(ME)
            under_way += sum(asked[started][1] for started in begun[before:])
            last_alone = asked[begun[-1]][0] if len(begun) > before else last_alone
    while under_way:
        before, under_way = len(begun), under_way - 1
        turns.done(ME)
        under_way += sum(asked[started][1] for started in begun[before:])

    assert list(range(len(asked))) == begun
    assert turns.is_idle(ME)
