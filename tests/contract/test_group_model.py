"""
Groups against a model in Python, with Hypothesis choosing what happens: groups are made, joined, left, renamed and
deleted, messages are sent and acknowledged, and calls break between their two steps and are asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pushfleet.local_valkey import LocalValkey
from shared.errors import NotFound, WrongState
from shared.groups import Changed, Groups, Standing
from shared.store import Store
from tests.harness.valkey_sites import ValkeyCluster

CLIENTS = ["a", "b", "c", "d", "e"]
GROUPS = ["g1", "g2", "g3"]
SESSIONS = {"a": "n:1_a_20260101000000001", "b": "n:1_b_20260101000000002"}
MOST_MEMBERS, MOST_GROUPS, MOST_IN_CALL = 4, 2, 2

some_clients = st.lists(st.sampled_from(CLIENTS), max_size=4)
one_client = st.sampled_from(CLIENTS)
group_ids = st.sampled_from(GROUPS)
names = st.text(st.characters(min_codepoint=32, exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=5)


@dataclass
class GroupModel:
    name: str
    owner: str
    members: set[str] = field(default_factory=set)
    last: int = 0


class Memberships(RuleBasedStateMachine):
    """Three groups and five clients, of which two are online."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = Store(self.url, namespace=f"m{time.monotonic_ns()}")
        self.groups = Groups(self.store, most_members=MOST_MEMBERS, most_groups=MOST_GROUPS, most_in_call=MOST_IN_CALL)
        for client_id, session_id in SESSIONS.items():  # as registered, but with no cursor of everyone's yet
            self.run(self.raw("HSET", self.store.keys.route(client_id), session_id, "e"))
        self.there: dict[str, GroupModel] = {}
        self.going: dict[str, set[str]] = {}  # of a group whose delete broke: who may have left
        self.cursors: dict[str, dict[str, str]] = {client_id: {} for client_id in CLIENTS}
        self.versions = dict.fromkeys(CLIENTS, 0)
        self.order = 0

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    # -- what callers do -----------------------------------------------------------------------------------------

    @rule(group_id=group_ids, members=some_clients, name=names)
    def create(self, group_id: str, members: list[str], name: str) -> None:
        call = self.groups.create(group_id, name=name, owner="a", members=members)
        if group_id in self.there or group_id in self.going:
            with pytest.raises(WrongState):
                self.run(call)
            return
        self.there[group_id] = GroupModel(name, "a")
        self.join(group_id, members, self.run(call))

    @rule(group_id=group_ids, members=some_clients)
    def add(self, group_id: str, members: list[str]) -> None:
        if group_id not in self.there:
            with pytest.raises(NotFound):
                self.run(self.groups.add(group_id, members))
            return
        self.join(group_id, members, self.run(self.groups.add(group_id, members)))

    @rule(group_id=group_ids, members=some_clients)
    def remove(self, group_id: str, members: list[str]) -> None:
        if group_id not in self.there:
            with pytest.raises(NotFound):
                self.run(self.groups.remove(group_id, members))
            return
        self.leave(group_id, members, self.run(self.groups.remove(group_id, members)))

    @rule(group_id=group_ids, name=names)
    def rename(self, group_id: str, name: str) -> None:
        if group_id not in self.there:
            with pytest.raises(NotFound):
                self.run(self.groups.rename(group_id, name))
            return
        self.there[group_id].name = name
        assert name == self.run(self.groups.rename(group_id, name)).name

    @rule(group_id=group_ids)
    def delete(self, group_id: str) -> None:
        if group_id not in self.there and group_id not in self.going:
            with pytest.raises(NotFound):
                self.run(self.delete_slices(group_id, 99))
            return
        self.run(self.delete_slices(group_id, 99))
        self.there.pop(group_id, None)
        self.going.pop(group_id, None)
        for client_id in CLIENTS:
            self.set_cursor(client_id, group_id, None)

    @rule(group_id=group_ids, slices=st.integers(0, 2))
    def delete_and_break(self, group_id: str, slices: int) -> None:
        """Whoever has left by then has left on both sides or on its own."""
        if group_id not in self.there:
            return
        model = self.there.pop(group_id)
        if self.run(self.delete_slices(group_id, slices + 1)):
            model.members.clear()
        else:
            self.going[group_id] = model.members
        for client_id in CLIENTS:
            if group_id not in self.run(self.audiences(client_id)):
                self.set_cursor(client_id, group_id, None)

    # -- what breaks between its steps, and is asked again -----------------------------------------------------------

    @rule(group_id=group_ids, client_id=one_client)
    def join_and_break(self, group_id: str, client_id: str) -> None:
        model = self.there.get(group_id)
        if model is None or (client_id not in model.members and len(model.members) >= MOST_MEMBERS):
            return
        self.run(self.raw("SADD", self.store.keys.audience(group_id)[2], client_id))
        self.send(group_id)
        self.join(group_id, [client_id], self.run(self.groups.add(group_id, [client_id])))

    @rule(group_id=group_ids, client_id=one_client, join=st.booleans())
    def leave_and_break(self, group_id: str, client_id: str, join: bool) -> None:
        model = self.there.get(group_id)
        if model is None or client_id not in model.members:
            return
        self.run(self.raw("SREM", self.store.keys.audience(group_id)[2], client_id))
        self.send(group_id)
        if not join:
            self.leave(group_id, [client_id], self.run(self.groups.remove(group_id, [client_id])))
            return
        changed = self.run(self.groups.add(group_id, [client_id]))
        assert (1, ()) == (changed.count, changed.refused)
        self.set_cursor(client_id, group_id, f"{model.last:016d}")

    # -- what senders and clients do ---------------------------------------------------------------------------------

    @rule(group_id=group_ids)
    def send(self, group_id: str) -> None:
        if group_id in self.there:
            self.order += 1
            self.there[group_id].last = self.order
            about = self.store.keys.audience(group_id)[0]
            self.run(self.raw("HSET", about, "last", f"{self.order:016d}"))

    @rule(group_id=group_ids, client_id=one_client)
    def acknowledge(self, group_id: str, client_id: str) -> None:
        if group_id in self.there and client_id in self.there[group_id].members:
            cursor = self.cursors[client_id][group_id] = f"{self.there[group_id].last:016d}"
            self.run(self.raw("HSET", self.store.keys.audiences(client_id), group_id, cursor))

    @rule(client_id=one_client)
    def acknowledge_everyone(self, client_id: str) -> None:
        self.cursors[client_id]["*"] = "1" * 16
        self.run(self.raw("HSET", self.store.keys.audiences(client_id), "*", "1" * 16))

    # -- the model ---------------------------------------------------------------------------------------------------

    def join(self, group_id: str, members: list[str], changed: Changed) -> None:
        """Slice by slice: first all who find room, then those go again who are in too many groups."""
        model = self.there[group_id]
        distinct = list(dict.fromkeys(members))
        joined: set[str] = set()
        refused: set[str] = set()
        for start in range(0, len(distinct), MOST_IN_CALL):
            crowded = set()
            for client_id in distinct[start : start + MOST_IN_CALL]:
                if client_id in model.members:
                    continue
                if len(model.members) >= MOST_MEMBERS:
                    refused.add(client_id)
                    continue
                model.members.add(client_id)
                if len([name for name in self.cursors[client_id] if name != "*"]) >= MOST_GROUPS:
                    crowded.add(client_id)
                else:
                    joined.add(client_id)
                    self.set_cursor(client_id, group_id, f"{model.last:016d}")
            model.members -= crowded
            refused |= crowded
        self.assert_changed(joined, refused, changed)

    def leave(self, group_id: str, members: list[str], changed: Changed) -> None:
        left = self.there[group_id].members & set(members)
        self.there[group_id].members -= left
        for client_id in left:
            self.set_cursor(client_id, group_id, None)
        self.assert_changed(left, set(), changed)

    def set_cursor(self, client_id: str, group_id: str, cursor: str | None) -> None:
        if cursor != self.cursors[client_id].get(group_id):
            self.versions[client_id] += 1
        self.cursors[client_id].pop(group_id, None)
        if cursor is not None:
            self.cursors[client_id][group_id] = cursor

    def assert_changed(self, clients: set[str], refused: set[str], changed: Changed) -> None:
        assert len(clients) == changed.count
        assert refused == {client_id for client_id, _ in changed.refused}
        expected = {(client_id, SESSIONS[client_id], "e") for client_id in clients & set(SESSIONS)}
        assert expected == set(changed.sessions)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def groups_are_as_the_model_says(self) -> None:
        for group_id in GROUPS:
            model, group = self.there.get(group_id), self.run(self.groups.get(group_id))
            held = self.run(self.members(group_id))
            asked = [(group_id, client_id) for client_id in CLIENTS]
            standing = dict(zip(CLIENTS, self.run(self.groups.standing(asked)), strict=True))
            if model is None:
                assert None is group
                assert {Standing.NO_GROUP} == set(standing.values())
                assert held <= self.going.get(group_id, set())
                continue
            assert (model.name, model.owner, len(model.members)) == (group.name, group.owner, group.members)
            assert model.members == held
            members = {client_id for client_id, found in standing.items() if found is Standing.MEMBER}
            assert model.members == members

    @invariant()
    def audiences_are_as_the_model_says(self) -> None:
        for client_id in CLIENTS:
            version = {"#": str(self.versions[client_id])} if self.versions[client_id] else {}
            assert {**self.cursors[client_id], **version} == self.run(self.audiences(client_id))
            for group_id in set(self.cursors[client_id]) - {"*", *self.there}:
                assert client_id in self.run(self.members(group_id))  # whoever goes on deleting finds it
            if set(self.cursors[client_id]) - {"*"}:
                assert -1 == self.run(self.raw("TTL", self.store.keys.audiences(client_id)))

    # -- Redis ---------------------------------------------------------------------------------------------------------

    async def delete_slices(self, group_id: str, most: int) -> bool:
        """Whether that was all."""
        deleting = self.groups.delete(group_id)
        async for _ in deleting:
            most -= 1
            if not most:
                await deleting.aclose()  # type: ignore[attr-defined]
                return False
        return True

    async def raw(self, *command: str) -> Any:
        return await self.store.redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def members(self, group_id: str) -> set[str]:
        found = await self.raw("SMEMBERS", self.store.keys.audience(group_id)[2])
        return {member.decode() for member in found}

    async def audiences(self, client_id: str) -> dict[str, str]:
        found: dict[bytes, bytes] = await self.store.redis.hgetall(self.store.keys.audiences(client_id))  # type: ignore[assignment]
        return {name.decode(): value.decode() for name, value in found.items()}

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()


def check(url: str, examples: int) -> None:
    machine = type("MembershipsHere", (Memberships,), {"url": url})
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None))


def test_groups_agree_with_a_model(valkey: LocalValkey) -> None:
    """Members, cursors, versions, limits, who is to be told, and what half done calls leave to be mended."""
    check(valkey.url, 40)


def test_groups_agree_with_a_model_on_a_cluster(valkey_cluster: ValkeyCluster) -> None:
    """Where a group and its members lie on different masters."""
    check(valkey_cluster.url, 8)
