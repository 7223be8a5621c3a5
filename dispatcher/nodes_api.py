"""
/v1/nodes: the nodes that live, and their drains.

A drain is asked for by a word in Redis that the node reads with each renewal of its lease, so it begins within about a
second, whichever dispatcher was asked. How far it is stands in the lease.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dispatcher.nodes import LiveNodes
from dispatcher.v1 import Call, Operation, Reply
from shared.errors import BadRequest, NotFound, WrongState
from shared.ids import mint_request_id
from shared.logs import get_log
from shared.registry import DrainAnswer, DrainRequest, Lease, Registry

_MOST_S = 3600
_DRAIN = "/v1/nodes/{nodeId}/drain"
_log = get_log("dispatcher")


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to drain."""

    seconds: float | None = None


class DrainProgress(msgspec.Struct, frozen=True):
    """How far a drain is."""

    by: str
    seconds: float
    sessions: int
    left: int


class NodeAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A node with a live lease, as it told about a second ago."""

    node_id: str
    epoch: str
    url: str
    connections: int
    weight: int
    state: str
    drain: DrainProgress | None


class NodesAnswer(msgspec.Struct, frozen=True):
    """All of them, by nodeId."""

    nodes: list[NodeAnswer]


FIELDS = {
    "DrainBody": {
        "seconds": f"over how long the node closes its sessions, 0 (at once) to {_MOST_S}; default: PUSH_DRAIN_SECONDS"
    },
    "DrainProgress": {
        "by": "`request`, or `signal`: the node's process was told to end, which cannot be taken back",
        "seconds": "how long closing the sessions takes in all; more than was asked for when they are many",
        "sessions": "how many there were",
        "left": "how many there still are",
    },
    "NodeAnswer": {
        "epoch": "another one after each start of the node",
        "state": "`serving` or `draining`",
        "drain": "null while it serves",
    },
}


class NodesApi:
    """The operations on nodes."""

    __slots__ = ("_nodes", "_registry")

    def __init__(self, registry: Registry, nodes: LiveNodes) -> None:
        self._registry = registry
        self._nodes = nodes

    def operations(self) -> tuple[Operation[Any], ...]:
        admin = ("admin",)
        drain: dict[str, Any] = {"path": _DRAIN, "scopes": admin, "answer": NodeAnswer}
        return (
            Operation(
                "GET", "/v1/nodes", ("read", "admin"), "listNodes", "The nodes that live", self._list, NodesAnswer
            ),
            Operation(
                **drain,
                method="POST",
                name="drainNode",
                summary="Have a node leave: it takes no clients, sends its own elsewhere, and ends",
                run=self._ask,
                body=DrainBody,
                statuses=(200, 202, 404),
            ),
            Operation(
                **drain,
                method="DELETE",
                name="abortDrain",
                summary="Have it serve again, with the sessions that are left",
                run=self._withdraw,
                statuses=(200, 202, 404, 409),
            ),
        )

    async def _list(self, _: Call[None]) -> Reply:
        await self._nodes.refresh()
        nodes = sorted(self._nodes.live(), key=lambda node: node.node_id)
        return Reply(NodesAnswer([_answer(node.node_id, node.lease) for node in nodes]))

    async def _ask(self, call: Call[DrainBody]) -> Reply:
        node_id, seconds = call.params["nodeId"], call.body.seconds
        if seconds is not None and not 0 <= seconds <= _MOST_S:
            raise BadRequest(f"expected 0 to {_MOST_S}", field="seconds")
        asked = await self._registry.ask_drain(node_id, DrainRequest(mint_request_id(), seconds=seconds))
        return self._reply(call, "drain_asked", asked)

    async def _withdraw(self, call: Call[None]) -> Reply:
        withdrawn = await self._registry.withdraw_drain(call.params["nodeId"])
        if withdrawn is not None and not withdrawn.changed and withdrawn.lease.draining:
            raise WrongState("the process of this node was told to end; that cannot be taken back")
        return self._reply(call, "drain_withdrawn", withdrawn)

    def _reply(self, call: Call[Any], event: str, answer: DrainAnswer | None) -> Reply:
        node_id = call.params["nodeId"]
        if answer is None:
            raise NotFound(f"no node {node_id[:64]} lives")
        if answer.changed:
            _log.info(event, node_id=node_id, caller=call.caller.name)
        return Reply(_answer(node_id, answer.lease), 202 if answer.changed else 200)


def _answer(node_id: str, lease: Lease) -> NodeAnswer:
    drain = lease.drain
    return NodeAnswer(
        node_id,
        lease.epoch,
        lease.url or f"ws://{node_id}/websocket",
        lease.connections,
        lease.weight,
        "draining" if lease.draining else "serving",
        None if drain is None else DrainProgress(drain.by, drain.seconds, drain.sessions, drain.left),
    )
