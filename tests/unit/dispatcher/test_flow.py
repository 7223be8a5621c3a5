"""Which nodes get nothing more for now."""

from __future__ import annotations

from dispatcher.flow import Flow
from shared.registry import Lease, Node


def node(node_id: str, lag_s: float) -> Node:
    return Node(node_id, Lease(epoch="e", url="", lag_ms=round(lag_s * 1000)))


def test_behind_from_the_bound_on_until_half_of_it() -> None:
    """Not at the bound, beyond it, still at more than half, not at half, not again before the bound."""
    flow = Flow(10.0)
    seen = []
    for lag_s in (10.0, 10.1, 7.0, 5.1, 5.0, 9.0, 11.0, 0.0):
        flow.observe([node("a", lag_s), node("b", 0)])
        seen.append(set(flow.behind))
    assert [set(), {"a"}, {"a"}, {"a"}, set(), set(), {"a"}, set()] == seen


def test_a_node_that_is_gone_is_not_behind() -> None:
    """Only what was read last counts."""
    flow = Flow(1.0)
    flow.observe([node("a", 5)])
    flow.observe([])
    assert {} == flow.behind


def test_when_to_try_again() -> None:
    """What has to be caught up with, at least a second, at most thirty; for everyone by the node furthest behind."""
    flow = Flow(10.0)
    flow.observe([node("a", 12), node("b", 10.5), node("c", 100)])
    assert [7, 6, 30, 30] == [flow.refusal(node_id).retry_after_s for node_id in ("a", "b", "c", "")]
    flow = Flow(0.1)
    flow.observe([node("a", 0.2)])
    assert 1 == flow.refusal().retry_after_s
