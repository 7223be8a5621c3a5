"""Identities: their forms, and that minted ones sort and never repeat."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import (
    MessageIdMint,
    SessionIdMint,
    client_id_fault,
    client_of_session,
    is_message_id,
    is_node_id,
    is_session_id,
    mint_request_id,
    node_of_session,
    node_topic,
    request_id_fault,
    since_of_session,
)


@pytest.mark.parametrize("client_id", ["a", "1607080309668", "alice@example.com", "a.b_c-d:e", "x" * 128])
def test_good_client_ids(client_id: str) -> None:
    """Every character of the contract is allowed, up to 128 of them."""
    assert client_id_fault(client_id) is None


@pytest.mark.parametrize(
    ("client_id", "words"),
    [("", "empty"), ("x" * 200, "200 characters, at most 128"), ("a b", "only"), ("a\n", "only"), ("é", "only")],
)
def test_bad_client_ids_are_told_why(client_id: str, words: str) -> None:
    """The fault says what is wrong, in words for the sender."""
    assert words in str(client_id_fault(client_id))


def test_request_ids() -> None:
    """A requestId is 1 to 64 printable ASCII characters."""
    assert request_id_fault("a b~") is None
    minted = {mint_request_id() for _ in range(1000)}
    assert len(minted) == 1000
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in minted} == {(4, uuid.RFC_4122)}
    assert all(str(uuid.UUID(each)) == each for each in minted)
    assert "65 characters" in str(request_id_fault("x" * 65))
    assert request_id_fault("") is not None
    assert request_id_fault("a\n") is not None


@pytest.mark.parametrize(
    ("node_id", "good"),
    [
        ("172.31.236.11:9000", True),
        ("[::1]:9000", True),
        ("gateway-1.internal:9000", True),
        ("::1:9000", False),
        ("10.0.0.1", False),
        ("10.0.0.1:0", False),
        ("10.0.0.1:70000", False),
        ("a_b:9000", False),
    ],
)
def test_node_ids(node_id: str, good: bool) -> None:
    """A nodeId is ip:port; an underscore would end it inside a sessionId."""
    assert good == is_node_id(node_id)


def test_node_topic_is_derived_from_the_node_id() -> None:
    """Every character that RocketMQ does not take becomes a dash."""
    assert node_topic("push", "172.31.236.11:9000") == "push-node-172-31-236-11-9000"
    assert node_topic("p", "[::1]:9000") == "p-node----1--9000"


def test_session_id_has_the_contracts_form() -> None:
    """nodeId, clientId and the UTC stamp, joined by underscores; the clientId may hold underscores."""
    mint = SessionIdMint("172.31.236.11:9000")
    session_id = mint.mint("a_b", 1607080309668)

    assert session_id == "172.31.236.11:9000_a_b_20201204111149668"
    assert node_of_session(session_id) == "172.31.236.11:9000"
    assert client_of_session(session_id) == "a_b"


def test_sessions_of_one_client_in_one_millisecond_differ() -> None:
    """A stamp is never given twice to one client, and is kept across a clock that stands still or steps back."""
    mint = SessionIdMint("10.0.0.1:9000")
    ids = {mint.mint("a", 1607080309668) for _ in range(1500)} | {mint.mint("a", 1607080309000)}

    assert len(ids) == 1501


def test_session_stamps_survive_the_sweep() -> None:
    """Old clients are forgotten after a while, the one that could still be met is not."""
    mint = SessionIdMint("10.0.0.1:9000")
    first = mint.mint("a", 5000)
    for ms in range(5001, 9000, 500):
        mint.mint("b", ms)
    assert first != mint.mint("a", 9000)
    assert mint.mint("c", 9000) != mint.mint("c", 9000)


def test_message_ids_are_uuid7_and_sort_in_the_order_of_minting() -> None:
    """Also beyond what one millisecond holds."""
    mint = MessageIdMint()
    ids = [mint.mint() for _ in range(20_000)]

    assert sorted(ids) == ids
    assert len(set(ids)) == len(ids)
    for message_id in ids[:100]:
        assert is_message_id(message_id)
        assert message_id[12] == "7"
        assert message_id[16] in "89ab"


@pytest.mark.parametrize("text", ["", "x" * 32, "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "\n"])
def test_what_is_no_message_id(text: str) -> None:
    """Only 32 lower-case hex digits are."""
    assert not is_message_id(text)


def test_a_session_id_is_told_by_its_form() -> None:
    """A nodeId, a clientId that may hold `_`, and a stamp."""
    for good in ("1.2.3.4:9000_a_20260101000000000", "[::1]:9000_a_b_20260101000000000"):
        assert is_session_id(good)
    for bad in (
        *("", "a", "_", "__", "1.2.3.4:9000", "1.2.3.4:9000_20260101000000000", "1.2.3.4_a_20260101000000000"),
        *("1.2.3.4:9000__20260101000000000", "1.2.3.4:9000_a b_20260101000000000", "1.2.3.4:9000_a_2026010100000000"),
        *("1.2.3.4:9000_a_2026010100000000x", "1.2.3.4:9000_a_20260101000000000\n"),
    ):
        assert not is_session_id(bad)


@given(st.integers(1, 4_000_000_000_000))
def test_a_session_id_tells_since_when(now_ms: int) -> None:
    """The time that it was minted with."""
    assert now_ms == since_of_session(SessionIdMint("1.2.3.4:9000").mint("a_b", now_ms))
