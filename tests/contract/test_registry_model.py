"""
The registry's scripts against a model in Python, with Hypothesis choosing what happens: sessions come, replace each
other, end late; tokens are revoked; nodes lose their lease, restart, come back.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pushfleet.local_valkey import LocalValkey
from shared.ids import node_of_session
from shared.registry import Held, Joining, Registry
from shared.revocations import Revocations
from shared.store import Store
from tests.contract.test_registry import NODE, OTHER, index, lease, route, session_id

clients = st.sampled_from(["a", "b"])
node_ids = st.sampled_from([NODE, OTHER])
devices = st.sampled_from(["", "phone"])
ages = st.sampled_from([None, 0.0, 1000.0, 1.5, "now", "later"])
MOST = 3


@dataclass
class NodeModel:
    """What a node believes: its epoch, whether it was told that it holds the lease, its open sessions."""

    epoch: str = ""
    # sessionId -> clientId, device, iat
    open: dict[str, tuple[str, str, float | None]] = field(default_factory=dict)


class Routes(RuleBasedStateMachine):
    """Two nodes and two clients beside a model: the lease's holder, and each client's route."""

    url = ""
    policy = "multi"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = Store(self.url, namespace=f"m{time.monotonic_ns()}")
        self.registry = Registry(self.store, policy=self.policy, most_sessions=MOST)
        self.revoked: dict[str, int] = {}
        self.epochs = (f"e{number}" for number in itertools.count(1))
        self.holder: dict[str, str] = {}
        self.nodes = {NODE: NodeModel(), OTHER: NodeModel()}
        self.routes: dict[str, dict[str, str]] = {"a": {}, "b": {}}
        self.device_of: dict[str, str] = {}
        self.ended: list[tuple[str, str]] = []

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    @rule(node_id=node_ids)
    def start_or_restart(self, node_id: str) -> None:
        """A process starts on the address: its predecessor's sessions are dead, their routes stay for a while."""
        node = self.nodes[node_id]
        node.epoch, node.open = next(self.epochs), {}
        assert Held.YES is self.run(self.registry.take(node_id, lease(node.epoch), life_s=60)).held
        self.holder[node_id] = node.epoch

    @rule(node_id=node_ids)
    def lose_the_lease(self, node_id: str) -> None:
        self.run(self.delete(self.store.keys.lease(node_id)))
        self.holder.pop(node_id, None)

    @rule(node_id=node_ids)
    def renew(self, node_id: str) -> None:
        """One that lost its lease takes it under a new epoch and registers its sessions again, oldest last."""
        node = self.nodes[node_id]
        if not node.epoch:
            return
        renewal = self.run(self.registry.renew(node_id, lease(node.epoch), life_s=60))
        assert (self.holder.get(node_id) == node.epoch) is (renewal.held is Held.YES)
        if renewal.held is Held.YES:
            return
        node.epoch = next(self.epochs)
        self.run(self.registry.take(node_id, lease(node.epoch), life_s=60))
        self.holder[node_id] = node.epoch
        for session, (client_id, device, issued_s) in reversed(list(node.open.items())):
            self.join(node_id, client_id, session, device, issued_s, again=True)

    @rule(node_id=node_ids, client_id=clients, device=devices, age=ages)
    def connect(self, node_id: str, client_id: str, device: str, age: float | str | None) -> None:
        """With a token that was issued long ago, in the second of the last revocation, or later; or without one."""
        issued_s = self.revoked.get(client_id, 1000) + (age == "later") if isinstance(age, str) else age
        if self.nodes[node_id].epoch:
            self.join(node_id, client_id, session_id(client_id, node_id), device, issued_s, again=False)

    @rule(client_id=clients)
    def revoke(self, client_id: str) -> None:
        """The sessions that are in the route are told; they end when their nodes hear of it, or never do."""
        revocation = self.run(Revocations(self.store).revoke(client_id, keep_s=60))
        assert self.revoked.get(client_id, 0) <= revocation.before_s
        self.revoked[client_id] = revocation.before_s
        assert self.routes[client_id] == dict(revocation.sessions)

    @rule(client_id=clients, age=ages)
    def renew_a_token(self, client_id: str, age: float | str | None) -> None:
        """Only one that would register is good."""
        issued_s = self.revoked.get(client_id, 1000) + (age == "later") if isinstance(age, str) else age or 0.0
        (revoked,) = self.run(Revocations(self.store).are_revoked([(client_id, issued_s)]))
        assert (issued_s < self.revoked.get(client_id, 0)) is revoked

    def join(
        self, node_id: str, client_id: str, session: str, device: str, issued_s: float | None, *, again: bool
    ) -> None:
        node = self.nodes[node_id]
        joining = [Joining(client_id, session, device, issued_s=issued_s)]
        call = self.registry.register(node_id, node.epoch, joining, most=1, most_bytes=1, again=again)
        (joined,) = self.run(call)
        if issued_s is not None and issued_s < self.revoked.get(client_id, 0):
            assert joined.revoked
            self.routes[client_id].pop(session, None)
            self.end(node_id, session)
            return
        assert not joined.revoked
        by_policy = self.rivals(client_id, session, device)
        crowd = self.crowd(client_id, session, by_policy)
        rivals = by_policy | crowd
        if again and any(rival[-17:] > session[-17:] for rival in rivals):
            assert joined.outdated
            self.routes[client_id].pop(session, None)
            self.end(node_id, session)
            return
        assert not joined.outdated
        assert len(crowd) == joined.crowded
        assert {(rival, self.routes[client_id][rival]) for rival in rivals} == set(joined.replaced)
        for rival in rivals:
            del self.routes[client_id][rival]
            self.end(node_of_session(rival), rival)
        self.routes[client_id][session] = node.epoch
        self.device_of[session] = device
        node.open[session] = (client_id, device, issued_s)

    def rivals(self, client_id: str, session: str, device: str) -> set[str]:
        if self.policy == "multi":
            return set()
        others = {other for other in self.routes[client_id] if other != session}
        if self.policy == "client":
            return others
        return {other for other in others if self.device_of[other] == device}

    def crowd(self, client_id: str, session: str, leaving: set[str]) -> set[str]:
        """The oldest of the others, as many as are too many."""
        others = sorted((set(self.routes[client_id]) - leaving) - {session}, key=lambda other: other[-17:])
        return set(others[: max(0, len(others) + 1 - MOST)])

    def end(self, node_id: str, session: str) -> None:
        """Its node closes the socket, now; the removal comes late."""
        gone = self.nodes[node_id].open.pop(session, None)
        if gone is not None:
            self.ended.append((gone[0], session))

    @rule(node_id=node_ids, which=st.integers(0, 5))
    def disconnect(self, node_id: str, which: int) -> None:
        sessions = list(self.nodes[node_id].open)
        if sessions:
            self.end(node_id, sessions[which % len(sessions)])

    @rule()
    def remove_what_ended(self) -> None:
        """However late, no session but these goes."""
        self.run(self.registry.unregister([(client_id, session, "") for client_id, session in self.ended]))
        for client_id, session in self.ended:
            self.routes[client_id].pop(session, None)
        self.ended.clear()

    @rule(node_id=node_ids)
    def clean_up_behind_the_dead(self, node_id: str) -> None:
        """As dispatchers do: by sessionId and epoch, for epochs that hold no lease."""
        living = self.holder.get(node_id)
        dead = [
            (client_id, session, epoch)
            for client_id, sessions in self.routes.items()
            for session, epoch in sessions.items()
            if node_of_session(session) == node_id and epoch != living
        ]
        if dead:
            self.run(self.registry.unregister(dead))
        for client_id, session, _ in dead:
            del self.routes[client_id][session]

    @invariant()
    def routes_and_index_agree(self) -> None:
        for client_id, expected in self.routes.items():
            assert expected == self.run(route(self.store, client_id))
            for node_id in (NODE, OTHER):
                here = {session for session in expected if node_of_session(session) == node_id}
                assert here <= self.run(index(self.store, client_id, node_id))

    async def delete(self, key: str) -> None:
        await self.store.redis.delete(key)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()


@pytest.mark.parametrize("policy", ["multi", "device", "client"])
def test_the_registry_agrees_with_a_model(valkey: LocalValkey, policy: str) -> None:
    """Registered, replaced, ended late, lease lost, node restarted: each route holds what it must, and no more."""
    machine = type("RoutesHere", (Routes,), {"url": valkey.url, "policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
