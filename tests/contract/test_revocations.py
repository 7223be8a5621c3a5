"""Revocations and the most sessions of a client, in Redis: on a real server, Sentinel's, and a real cluster."""

from __future__ import annotations

import time

import pytest

from shared.ids import node_of_session
from shared.keys import partition_of
from shared.registry import Joined, Joining, Registry
from shared.revocations import Revocations
from shared.store import Store
from tests.contract.test_registry import NODE, OTHER, index, register, route, session_id


async def join(store: Store, client_id: str, session: str, issued_s: float | None, *, again: bool = False) -> Joined:
    joining = [Joining(client_id, session, issued_s=issued_s)]
    (joined,) = await Registry(store).register(
        node_of_session(session), "e1", joining, most=10, most_bytes=1 << 20, again=again
    )
    return joined


async def revoke(store: Store, client_id: str) -> int:
    return (await Revocations(store).revoke(client_id, keep_s=60)).before_s


# -- revocations ---------------------------------------------------------------------------------------------------


async def test_an_older_token_is_refused(store: Store) -> None:
    """Also one without iat, and to the fraction of a second; one of the same second, a newer one and none are not."""
    before = await revoke(store, "a")
    assert abs(before - time.time()) < 10
    for issued_s in (before - 1, before - 0.001, float(before - 1), 0, 0.0, 1e-5):
        session = session_id("a")
        assert (await join(store, "a", session, issued_s)).revoked
        assert {} == await route(store, "a")
        assert set() == await index(store, "a", NODE)
    for good in (before, float(before), before + 0.5, before + 1, None):
        session = session_id("a")
        joined = await join(store, "a", session, good)
        assert not joined.revoked
        assert session in await route(store, "a")


async def test_nobody_else_is_refused(store: Store) -> None:
    """Not a client of the same partition, nor one whose name begins like it."""
    same = next(name for n in range(10_000) if partition_of(name := f"n{n}") == partition_of("a"))
    before = await revoke(store, "a")
    for client_id in (same, "a:", "aa", "b"):
        assert not (await join(store, client_id, session_id(client_id), before - 100)).revoked


async def test_who_was_there_is_told_and_who_comes_later_refused(store: Store) -> None:
    """In one step: a session is in the answer or it is refused."""
    first, second, other = session_id("a"), session_id("a", OTHER), session_id("b")
    for session in (first, second, other):
        await register(store, session.split("_")[1], session)
    revocation = await Revocations(store).revoke("a", keep_s=60)
    assert {(first, "e1"), (second, "e1")} == set(revocation.sessions)
    assert (await join(store, "a", session_id("a"), revocation.before_s - 1)).revoked
    assert () == (await Revocations(store).revoke("nobody", keep_s=60)).sessions


async def test_a_session_registered_again_is_refused_as_well(store: Store) -> None:
    """It was missed: it leaves the route, and its node is told."""
    session = session_id("a")
    await join(store, "a", session, 1000)
    before = await revoke(store, "a")
    assert (await join(store, "a", session, 1000, again=True)).revoked
    assert {} == await route(store, "a")
    renewed = session_id("a")
    await join(store, "a", renewed, before)
    assert not (await join(store, "a", renewed, before, again=True)).revoked


async def test_a_batch_is_judged_one_by_one(store: Store) -> None:
    """Those of other clients, and newer tokens of this one, are registered."""
    before = await revoke(store, "a")
    asked = [("a", before - 1), ("b", 5), ("a", before), ("a", 0), ("a", None)]
    joining = [Joining(client_id, session_id(client_id), issued_s=issued_s) for client_id, issued_s in asked]
    joined = await Registry(store).register(NODE, "e1", joining, most=1, most_bytes=1)
    assert [True, False, False, True, False] == [each.revoked for each in joined]
    tokens = [(client_id, issued_s) for client_id, issued_s in asked if issued_s is not None]
    assert [True, False, False, True] == await Revocations(store).are_revoked(tokens)


async def test_a_record_is_kept_for_as_long_as_was_said(store: Store) -> None:
    """A later revocation keeps it for longer and never brings an old token back, also when the clock steps back."""
    revocations = Revocations(store)
    await revocations.revoke("a", keep_s=1000)
    assert 990 < await store.redis.ttl(store.keys.revoked("a")) <= 1000
    ahead = int(time.time()) + 500
    await store.redis.set(store.keys.revoked("a"), ahead)
    assert ahead == (await revocations.revoke("a", keep_s=2000)).before_s
    assert str(ahead).encode() == await store.redis.get(store.keys.revoked("a"))
    assert 1990 < await store.redis.ttl(store.keys.revoked("a")) <= 2000
    await store.redis.delete(store.keys.revoked("a"))
    assert not (await join(store, "a", session_id("a"), 0)).revoked


# -- sessions of a client ------------------------------------------------------------------------------------------


async def crowd_in(
    store: Store, session: str, most: int, *, epoch: str = "e1", policy: str = "multi", again: bool = False
) -> Joined:
    registry = Registry(store, policy=policy, most_sessions=most)
    joining = [Joining("a", session)]
    (joined,) = await registry.register(node_of_session(session), epoch, joining, most=1, most_bytes=1, again=again)
    return joined


async def test_the_oldest_make_room(store: Store) -> None:
    """With one more than a client may have, on whichever node and of whichever dead start they are."""
    sessions = [session_id("a", node) for node in (NODE, OTHER, NODE, OTHER)]
    for session in sessions[:3]:
        joined = await crowd_in(store, session, 3, epoch="dead")
        assert (0, ()) == (joined.crowded, joined.replaced)
    joined = await crowd_in(store, sessions[3], 3)
    assert (1, ((sessions[0], "dead"),)) == (joined.crowded, joined.replaced)
    assert set(sessions[1:]) == set(await route(store, "a"))
    assert {sessions[2]} == await index(store, "a", NODE)


async def test_a_lower_limit_is_reached_with_the_next_session(store: Store) -> None:
    """All that are too many go at once, oldest first; the new one stays whatever its clock says."""
    early = session_id("a", OTHER)
    sessions = [session_id("a") for _ in range(5)]
    for session in sessions:
        await crowd_in(store, session, 100)
    joined = await crowd_in(store, early, 2)
    assert sessions[:4] == [session for session, _ in joined.replaced]
    assert 4 == joined.crowded
    assert {early, sessions[4]} == set(await route(store, "a"))


async def test_registering_the_same_session_twice_pushes_nobody_out(store: Store) -> None:
    """An answer was lost, or the node's lease."""
    sessions = [session_id("a") for _ in range(3)]
    for session in sessions:
        await crowd_in(store, session, 3)
    for again in (False, True):
        for session in sessions:
            joined = await crowd_in(store, session, 3, again=again)
            assert (0, (), False) == (joined.crowded, joined.replaced, joined.outdated)
    assert set(sessions) == set(await route(store, "a"))


async def test_a_session_registered_again_yields_to_a_crowd_of_newer_ones(store: Store) -> None:
    """It is the oldest itself."""
    sessions = [session_id("a") for _ in range(4)]
    for session in sessions[1:]:
        await crowd_in(store, session, 3)
    assert (await crowd_in(store, sessions[0], 3, again=True)).outdated
    assert set(sessions[1:]) == set(await route(store, "a"))
    newest = session_id("a")
    joined = await crowd_in(store, newest, 3, again=True)
    assert (1, ((sessions[1], "e1"),)) == (joined.crowded, joined.replaced)


@pytest.mark.parametrize("policy", ["device", "client"])
async def test_what_the_policy_replaces_makes_room(store: Store, policy: str) -> None:
    """Nobody else has to go, and it is not counted as crowded."""
    sessions = [session_id("a") for _ in range(3)]
    for session in sessions[:2]:
        await crowd_in(store, session, 2)
    await store.redis.hset(store.keys.session("a")[3], "", sessions[1])
    joined = await crowd_in(store, sessions[2], 2, policy=policy)
    gone = {sessions[1]} if policy == "device" else set(sessions[:2])
    assert (0, gone) == (joined.crowded, {session for session, _ in joined.replaced})
