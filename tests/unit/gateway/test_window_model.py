"""The window against a model: Hypothesis sends, acknowledges, lets time pass, and the bounds and resends are right."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway_node.window import Window

MOST_MESSAGES, MOST_BYTES, TRIES = 4, 100, 5
TIMEOUT_S = 10.0


@dataclass
class Sent:
    """A message of the model. `due` is None when it was tried often enough."""

    envelope: bytes
    expires_ms: int
    due: float | None
    tries: int = 1


class Windows(RuleBasedStateMachine):
    """One window and what a client and its node do to it. Time is the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(MOST_MESSAGES, MOST_BYTES)
        self.now = 0.0
        self.next_number = 0
        self.model: dict[bytes, Sent] = {}
        self.left: list[bytes] = []  # acknowledged or let go, the newest last

    @rule(size=st.integers(1, 150), life_s=st.sampled_from([5, 30, 1000]))
    def send(self, size: int, life_s: int) -> None:
        """As delivery does: only when there is room."""
        held_bytes = sum(len(sent.envelope) for sent in self.model.values())
        room = not self.model or (len(self.model) < MOST_MESSAGES and held_bytes + size <= MOST_BYTES)
        assert room is self.window.has_room(size)
        if not room:
            return
        message_id = b"%032x" % self.next_number
        self.next_number += 1
        assert not self.window.knows(message_id)
        sent = Sent(b"x" * size, int((self.now + life_s) * 1000), self.now + TIMEOUT_S)
        self.window.add(message_id, sent.envelope, sent.expires_ms, self.now + TIMEOUT_S)
        self.model[message_id] = sent

    @rule(which=st.integers(0, 5))
    def acknowledge(self, which: int) -> None:
        if not self.model:
            assert not self.window.ack(b"%032x" % 10**9)
            return
        message_id = list(self.model)[which % len(self.model)]
        assert self.window.ack(message_id)
        assert not self.window.ack(message_id)
        del self.model[message_id]
        self.left.append(message_id)

    @rule(seconds=st.sampled_from([1.0, 9.0, 10.0, 25.0, 200.0]))
    def let_time_pass(self, seconds: float) -> None:
        """What is due is sent again, with a time-out that doubles, so often and no more; what has expired leaves."""
        self.now += seconds
        expected: list[bytes] = []
        for message_id, sent in list(self.model.items()):
            if sent.due is None or sent.due > self.now:
                continue
            if sent.expires_ms <= self.now * 1000:
                del self.model[message_id]
                self.left.append(message_id)
            elif sent.tries == TRIES:
                sent.due = None
            else:
                expected.append(sent.envelope)
                sent.due = self.now + TIMEOUT_S * 2**sent.tries
                sent.tries += 1
        due = self.window.due(self.now, int(self.now * 1000), TIMEOUT_S)
        assert expected == [unacked.envelope for unacked in due]

    @rule(kept=st.sets(st.integers(0, 3)))
    def keep_only(self, kept: set[int]) -> None:
        """The node came back to itself: others were acknowledged elsewhere."""
        ids = [message_id for place, message_id in enumerate(self.model) if place in kept]
        self.window.keep_only(set(ids))
        self.left += [message_id for message_id in self.model if message_id not in ids]
        self.model = {message_id: self.model[message_id] for message_id in ids}

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert len(self.model) == len(self.window)
        assert sum(len(sent.envelope) for sent in self.model.values()) == self.window.bytes
        assert all(self.window.knows(message_id) for message_id in [*self.model, *self.left[-64:]])

    @invariant()
    def nothing_is_due_before_it_says(self) -> None:
        dues = [sent.due for sent in self.model.values() if sent.due is not None]
        assert self.window.next_due <= min(dues, default=float("inf"))

    @invariant()
    def it_is_half_empty_when_it_is(self) -> None:
        half = 2 * len(self.model) <= MOST_MESSAGES and 2 * self.window.bytes <= MOST_BYTES
        assert half is self.window.is_half_empty()


def test_the_window_agrees_with_a_model() -> None:
    """Bounds in messages and bytes, resends with doubling time-outs and bounded tries, expiry, remembered ids."""
    run_state_machine_as_test(Windows, settings=settings(max_examples=300, stateful_step_count=40, deadline=None))
