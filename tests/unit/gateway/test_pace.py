"""The rates of a connection and a session: what is at the limit passes, what is beyond it is a flood."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_node.arrivals import Floods
from gateway_node.commands import Ack, Business, Command, Heartbeat, Read
from gateway_node.session import Session
from gateway_node.websocket.frames import CONTINUATION, PING, PONG, TEXT, FrameParser, Ping, ProtocolError
from gateway_node.websocket.pace import FRAGMENT_BYTES, TOO_FAR_S, Pace, share_s, too_fast
from shared.errors import Unavailable
from tests.unit.gateway.test_frames import client_frame

ID = "0" * 32
MESSAGE_S = share_s(1000)


def session() -> Session:
    return Session(b"n:1_a_2", "a", cast(Any, None), ack=True, expires_s=0.0, device="")


def passed(it: Session, command: Command, now: float, tries: int = 20_000) -> int:
    """How many of these pass, one after the other at the same time."""
    return next((n for n in range(tries) if it.charge(command, MESSAGE_S, now) > TOO_FAR_S), tries)


def business(targets: int, groups: int = 0) -> Business:
    return Business(["b"] * targets, cast(Any, b"1"), None, ("g",) * groups)


class TestMessages:
    def test_five_seconds_worth_at_once_and_then_the_rate(self) -> None:
        """5,000 pass; a second later another 1,000; after five quiet seconds, or an hour of them, 5,000 again."""
        it = session()
        assert 5000 == passed(it, Heartbeat(), 100.0)
        it.paid_until = 105.0  # the one that did not pass was counted, too
        assert 1000 == passed(it, Heartbeat(), 101.0)
        it.paid_until = 106.0
        assert 5000 == passed(it, Heartbeat(), 106.0)
        assert 5000 == passed(it, Heartbeat(), 5000.0)

    def test_without_a_rate_all_pass(self) -> None:
        """0 is no limit."""
        it = session()
        assert not any(it.charge(Heartbeat(), share_s(0), 1.0) for _ in range(20_000))

    def test_acknowledging_what_came_is_free(self) -> None:
        """30,000 in a second, in frames of any size, by msgType 2 and type 15 alike."""
        it = session()
        it.delivered = 30_000
        assert 10_000 == passed(it, Ack([ID]), 1.0, 10_000)
        assert 100 == passed(it, Ack([ID] * 100), 1.0, 100)
        assert 10_000 == passed(it, Read(ID), 1.0, 10_000)
        assert 5000 == passed(it, Heartbeat(), 1.0)

    @pytest.mark.parametrize("ack", [Ack([ID]), Read(ID)])
    def test_acknowledging_nothing_is_not(self, ack: Command) -> None:
        """Beyond the 1,024 that may be of earlier sessions each counts as a message."""
        assert 1024 + 5000 == passed(session(), ack, 1.0)

    def test_each_id_of_a_frame_counts(self) -> None:
        """Also when it is the same one again and again; what was paid for is not paid for twice."""
        it = session()
        it.delivered = 1000
        assert (1024 + 1000 + 5000) // 250 == passed(it, Ack([ID] * 250), 1.0)
        it = session()
        it.charge(Ack([ID] * 2024), MESSAGE_S, 1.0)
        assert pytest.approx(1.001) == it.charge(Ack([ID]), MESSAGE_S, 1.0)

    def test_a_message_to_many_counts_for_more(self) -> None:
        """One for each ten of those that it names, so 49 frames to a thousand clients pass at once."""
        assert 5000 == passed(session(), business(9), 1.0)
        assert 2500 == passed(session(), business(10), 1.0)
        assert 49 == passed(session(), business(1000), 1.0)
        assert 49 == passed(session(), business(900, 100), 1.0)

    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4000)), max_size=30))
    def test_it_is_a_token_bucket(self, steps: list[tuple[int, int]]) -> None:
        """Whatever comes when: over the limit exactly when a bucket of 5,000, filled at 1,000 a second, is empty."""
        it, now, tokens = session(), 10, 5000
        for pause_s, count in steps:
            now += pause_s
            tokens = min(5000, tokens + 1000 * pause_s) - count
            ahead_s = 0.0
            for _ in range(count):
                ahead_s = it.charge(Heartbeat(), MESSAGE_S, float(now))
            assert (tokens < 0) == (ahead_s > TOO_FAR_S)

    def test_groups_a_minute(self) -> None:
        """60 at once, then one a second; one that was refused costs nothing. 0: any."""
        it = session()
        assert [True] * 60 + [False] * 5 == [it.may_make_group(60, 7.0) for _ in range(65)]
        assert [True, False] == [it.may_make_group(60, 8.0) for _ in range(2)]
        assert all(it.may_make_group(0, 8.0) for _ in range(100))


class TestBytes:
    PACE = Pace(byte_s=share_s(1000))

    def test_five_seconds_worth_at_once(self) -> None:
        """To the byte, headers included; what comes in the read that is too much is not looked at."""
        frame = client_frame(TEXT, bytes(94))  # 100 bytes
        parser = FrameParser(pace=self.PACE)
        assert 50 == len(parser.feed(frame * 50, 10.0))
        error = violation(parser, b"\x00", 10.0)
        assert (4029, "bytes", []) == (error.code, error.limit, error.events)
        assert [] == parser.feed(frame, 20.0)

    def test_the_rate_goes_on(self) -> None:
        """A thousand a second pass for ever; the reason says when to come back."""
        parser = FrameParser(pace=self.PACE)
        for second in range(100):
            parser.feed(client_frame(TEXT, bytes(992)), float(second))
        error = violation(parser, client_frame(TEXT, bytes(5992)), 100.0)
        assert {"limit": "bytes", "reconnectIn": 6000} == json.loads(str(error))

    def test_a_message_that_does_not_end_counts(self) -> None:
        """Also what brings no event."""
        parser = FrameParser(1 << 20, pace=self.PACE)
        assert [] == parser.feed(client_frame(TEXT, bytes(10_000))[:5000], 1.0)
        assert "bytes" == violation(parser, b"\0", 1.0).limit

    def test_fragments_count_for_more_than_their_bytes(self) -> None:
        """Each continuation as a KiB besides: a flood of empty ones ends in the read that brings it."""
        parser = FrameParser(max_fragments=1 << 20, pace=Pace(byte_s=share_s(FRAGMENT_BYTES)))
        empty = client_frame(CONTINUATION, b"", fin=False)
        start = client_frame(TEXT, b"", fin=False)
        assert [] == parser.feed(start + empty * 4, 1.0)
        assert (4029, "bytes") == (
            (error := violation(parser, empty * 100, 1.0)).code,
            error.limit,
        )

    def test_without_a_rate_all_pass(self) -> None:
        """0 is no limit."""
        parser = FrameParser(1 << 30, max_fragments=10**6)
        parser.feed(client_frame(TEXT, b"", fin=False) + client_frame(CONTINUATION, b"", fin=False) * 10_000, 1.0)
        parser.feed(client_frame(PING, b"") * 10_000, 1.0)


class TestControlFrames:
    PACE = Pace(control_s=share_s(10))

    @pytest.mark.parametrize("opcode", [PING, PONG])
    def test_fifty_at_once_and_ten_a_second(self, opcode: int) -> None:
        """The 51st ends it, and nothing behind that in the same read is looked at."""
        frame = client_frame(opcode, b"x")
        parser = FrameParser(pace=self.PACE)
        assert 50 == len(parser.feed(frame * 50, 1.0))
        assert 10 == len(parser.feed(frame * 10, 2.0))
        error = violation(parser, client_frame(TEXT, b"a") + frame + client_frame(TEXT, b"b"), 2.0)
        assert (4029, "pings", [b"a"]) == (error.code, error.limit, error.events)

    def test_messages_are_none(self) -> None:
        """Text, whole or in pieces, and whatever is between."""
        parser = FrameParser(pace=self.PACE)
        frame = client_frame(TEXT, b"a", fin=False) + client_frame(PING, b"") + client_frame(CONTINUATION, b"b")
        assert [Ping(b""), b"ab"] * 50 == parser.feed(frame * 50, 1.0)


def violation(parser: FrameParser, data: bytes, now: float) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        parser.feed(data, now)
    return caught.value


def test_limits_of_a_message_are_named() -> None:
    """For the metric."""
    start = client_frame(TEXT, b"", fin=False)
    assert "fragments" == violation(FrameParser(max_fragments=1), start + client_frame(CONTINUATION, b""), 1.0).limit
    assert "message_bytes" == violation(FrameParser(10), client_frame(TEXT, bytes(11)), 1.0).limit
    assert "" == violation(FrameParser(), b"\xc1\x80", 1.0).limit


def test_the_reason_fits_a_close_frame() -> None:
    """JSON of at most 123 bytes, like that of a drain; the wait is rounded up."""
    assert {"limit": "messages", "reconnectIn": 5001} == json.loads(too_fast("messages", 5.0001))
    assert len(too_fast("messages", 1e9).encode()) <= 123


def test_who_flooded_stays_away_for_a_while() -> None:
    """Five seconds from the flood; others come in, and in the end nothing is remembered."""
    floods = Floods()
    floods.add("mallory", 100.0)
    with pytest.raises(Unavailable) as refusal:
        floods.check("mallory", 101.5)
    floods.check("alice", 101.5)
    floods.forget(104.9)
    with pytest.raises(Unavailable):
        floods.check("mallory", 104.9)
    floods.check("mallory", 105.0)
    floods.forget(105.0)
    floods.check("mallory", 0.0)

    assert 4 == refusal.value.retry_after_s


def test_a_flood_of_floods_is_bounded() -> None:
    """10,000 are remembered."""
    floods = Floods()
    for number in range(10_001):
        floods.add(str(number), 1.0)
    floods.check("10000", 1.0)
    with pytest.raises(Unavailable):
        floods.check("9999", 1.0)
