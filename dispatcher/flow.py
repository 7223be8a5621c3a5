"""
Flow: which nodes are behind, and so get nothing more for now. Pure.

A node tells in its lease how far it is behind with its topic. One that is behind by more than `max_lag_s` is sent
nothing more until half of that is left: what it is sent it would only have later. So a topic holds what was sent in
some seconds, however long more is sent than its node can deliver.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from dispatcher.metrics import NODES_BEHIND
from shared.errors import Overloaded
from shared.registry import Node

_LONGEST_S = 30


class Flow:
    """`behind`: nodeId -> by how many s, of those that get nothing."""

    __slots__ = ("_max_lag_s", "behind")

    def __init__(self, max_lag_s: float) -> None:
        self._max_lag_s = max_lag_s
        self.behind: dict[str, float] = {}

    def observe(self, nodes: Iterable[Node]) -> None:
        """The leases were read."""
        behind = {}
        for node in nodes:
            most_s = self._max_lag_s / 2 if node.node_id in self.behind else self._max_lag_s
            lag_s = node.lease.lag_ms / 1000
            if lag_s > most_s:
                behind[node.node_id] = lag_s
        self.behind = behind
        NODES_BEHIND.set(len(behind))

    def refusal(self, node_id: str = "") -> Overloaded:
        """For what would go to a node that is behind; to all of them, without a name."""
        lag_s = self.behind.get(node_id) or max(self.behind.values(), default=0.0)
        retry_after_s = max(1, min(_LONGEST_S, ceil(lag_s - self._max_lag_s / 2)))
        return Overloaded(f"a node is {lag_s:.1f} s behind; try again", retry_after_s=retry_after_s)
