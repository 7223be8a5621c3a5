"""The window: bounded, each message once, resent until acknowledged and no longer than it lives."""

from __future__ import annotations

from gateway_node.window import Recent, Window, Written

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
LATER_MS = 10**13


def test_a_message_is_known_from_add_until_long_after_its_ack() -> None:
    """A record that the bus brings twice is seen by that."""
    window = Window(10, 1000)
    assert not window.knows(A)
    window.add(A, b"x", LATER_MS, due=10)
    assert window.knows(A)
    assert window.ack(A)
    assert window.knows(A)
    assert not window.ack(A)


def test_room_is_bounded_in_messages_and_bytes() -> None:
    """An empty window takes a message of any size; then both bounds hold."""
    window = Window(2, 100)
    assert window.has_room(10_000)
    window.add(A, b"x" * 60, LATER_MS, due=10)
    assert window.has_room(40)
    assert not window.has_room(41)
    window.add(B, b"x", LATER_MS, due=10)
    assert not window.has_room(1)
    window.ack(A)
    assert window.has_room(99)
    assert window.bytes == 1


def test_half_empty_is_when_the_next_slice_is_pulled() -> None:
    """By messages and by bytes."""
    window = Window(2, 100)
    assert window.is_half_empty()
    window.add(A, b"x" * 50, LATER_MS, due=10)
    assert window.is_half_empty()
    window.add(B, b"x", LATER_MS, due=10)
    assert not window.is_half_empty()
    window.ack(B)
    window.add(C, b"x" * 10, LATER_MS, due=10)
    window.ack(A)
    assert window.is_half_empty()


def test_resends_double_their_time_and_end() -> None:
    """Due after 10, 20, 40, 80 s more; then silent, and still in the window."""
    window = Window(10, 1000)
    window.add(A, b"x", LATER_MS, due=10)
    sent_at = []
    for now in range(0, 1000):
        if window.next_due <= now and window.due(now, 0, 10):
            sent_at.append(now)

    assert sent_at == [10, 30, 70, 150]
    assert len(window) == 1
    assert window.next_due == float("inf")


def test_next_due_is_the_earliest() -> None:
    """A scan before it would find nothing."""
    window = Window(10, 1000)
    window.add(A, b"a", LATER_MS, due=30)
    window.add(B, b"b", LATER_MS, due=10)
    assert window.next_due == 10
    assert [each.envelope for each in window.due(10, 0, 5)] == [b"b"]
    assert window.next_due == 20


def test_an_expired_message_is_not_resent_and_leaves() -> None:
    """It makes room for others."""
    window = Window(10, 1000)
    window.add(A, b"x", 5_000, due=10)
    assert window.due(10, 5_000, 10) == []
    assert len(window) == 0


def test_what_is_written_is_taken_by_the_kernel_all_at_once() -> None:
    """The window of a session that does not acknowledge: bounded for replay, nothing due, each message once."""
    written = Written(100)
    assert written.has_room(1000)
    assert written.is_half_empty()
    written.add(A, b"x", LATER_MS, due=10)
    written.add(B, b"y", LATER_MS, due=10)
    assert not written.is_half_empty()
    assert written.has_room(98)
    assert not written.has_room(99)
    assert written.due(10**9, 0, 1) == []
    assert not written.ack(A)
    assert written.take_all() == [A, B]
    assert written.take_all() == []
    assert written.knows(A)
    assert not written.knows(C)


def test_recent_remembers_at_least_a_generation_and_forgets_in_the_end() -> None:
    """Bounded by two generations; two agings without additions empty it."""
    recent = Recent()
    for number in range(200):
        recent.add(b"%032d" % number)
    assert all(b"%032d" % number in recent for number in range(136, 200))
    assert b"%032d" % 0 not in recent
    assert not recent.age()
    assert recent.age()
    assert b"%032d" % 199 not in recent
