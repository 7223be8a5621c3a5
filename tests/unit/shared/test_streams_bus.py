"""The pure parts of the streams adapter: cutting publishes into calls, decoding replies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import Received, Record
from shared.bus.streams.entries import Place, decode_entries
from shared.bus.streams.publisher import CALL_BYTES, EXCHANGE_BYTES, Item, cut_exchanges
from shared.bus.streams.scripts import marker_key

MIB = 1024 * 1024
BODIES = [bytes(size) for size in (0, 1, MIB, 3 * MIB, 4 * MIB)]

items = st.lists(
    st.tuples(st.sampled_from("abc"), st.builds(Record, st.sampled_from(BODIES), st.just("k"), st.integers(0, 1000))),
    min_size=1,
    max_size=40,
)


@given(items=items)
def test_every_record_is_in_one_call_in_order(items: list[Item]) -> None:
    """Cutting loses, doubles and reorders nothing within a topic; no call or exchange is larger than it may be."""
    sent: dict[str, list[tuple[Any, ...]]] = {}
    for topics, commands in cut_exchanges(items, "ns"):
        exchange_bytes = 0
        for topic, command in zip(topics, commands, strict=True):
            assert marker_key("ns", topic) == command[3]
            arguments = command[4:]
            bodies = [bytes(body) for body in arguments[3::4]]
            size = sum(map(len, bodies))
            assert size <= CALL_BYTES or len(bodies) == 1
            exchange_bytes += size
            sent.setdefault(topic, []).extend(zip(arguments[::4], bodies, strict=True))
        assert exchange_bytes <= EXCHANGE_BYTES
    expected: dict[str, list[tuple[Any, ...]]] = {}
    for topic, record in items:
        expected.setdefault(topic, []).append((record.queue, record.body))
    assert expected == sent


def test_an_entry_becomes_a_record() -> None:
    """Body, key, an id that is unique over the queues, and the place for the acknowledgement."""
    records, foreign = decode_entries(2, [[b"17-0", [b"k", b"order", b"b", b"a\0b"]]])
    assert [Received(b"a\0b", "order", "2/17-0", Place(2, b"17-0"), 17)] == records
    assert [] == foreign


@pytest.mark.parametrize(
    "fields",
    [None, [], [b"b", b"x"], [b"b", b"x", b"k", b""], [b"k", b"", b"b", b"x", b"c", b""], [b"k", b"\xff", b"b", b"x"]],
)
def test_any_other_entry_is_foreign(fields: list[bytes] | None) -> None:
    """Deleted, missing, extra or misplaced fields and undecodable keys are set aside; the others still come."""
    records, foreign = decode_entries(0, [[b"1-0", fields], [b"2-0", [b"k", b"", b"b", b"x"]]])
    assert [Place(0, b"1-0")] == foreign
    assert [b"x"] == [record.body for record in records]
