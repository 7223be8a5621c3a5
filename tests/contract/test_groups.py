"""
Groups on a real server and a real cluster: a group's members and its members' audiences say the same.

test_group_model.py holds them against a model in Python, test_group_breaks.py breaks calls and has them meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.errors import BadRequest, NotFound, WrongState
from shared.groups import Groups, Standing
from shared.ids import display_name_fault
from shared.registry import Joining, Registry
from shared.store import Store
from tests.harness.groups import CLIENTS, DEADLINE_S, START, audiences_of, delete, inside, members_of, send


@pytest.fixture
def groups(store: Store) -> Groups:
    """With small slices."""
    return Groups(store, most_in_call=50)


# -- one call after the other --------------------------------------------------------------------------------------


async def test_a_group_is_as_it_was_made(groups: Groups) -> None:
    """Its name, owner and members, once; another of its id cannot be made."""
    assert None is await groups.get("g")
    changed = await groups.create("g", name="Gruppe ☂", owner="c0", members=["c0", "c1", "c0"])
    assert (2, (), ()) == (changed.count, changed.refused, changed.sessions)
    group = await groups.get("g")
    assert group is not None
    assert ("g", "Gruppe ☂", "c0", 2) == (group.group_id, group.name, group.owner, group.members)
    assert group.created_ms > 1_700_000_000_000
    with pytest.raises(WrongState, match="exists already"):
        await groups.create("g", name="", owner="", members=["c2"])
    assert group == await groups.get("g")


@pytest.mark.parametrize(
    ("group_id", "name", "members", "field"),
    [
        ("*", "", 0, "groupId"),
        ("", "", 0, "groupId"),
        ("g", "a\nb", 0, "groupName"),
        ("g", "x" * 129, 0, "groupName"),
        ("g", "", 4, "members"),
    ],
)
async def test_a_bad_group_is_not_made(store: Store, group_id: str, name: str, members: int, field: str) -> None:
    """The error names what is wrong, and nothing is there."""
    groups = Groups(store, most_members=3)
    with pytest.raises(BadRequest) as error:
        await groups.create(group_id, name=name, owner="", members=CLIENTS[:members])
    assert field == error.value.field
    assert 0 == await store.redis.exists(*store.keys.audience(group_id))


@pytest.mark.parametrize("bad", ["\x00", "\t", "\x1f", "\x7f", "\x85", "\x9f", "\u2028", "\u2029", "\ud800"])
def test_a_name_holds_no_control_characters(bad: str) -> None:
    """C0, DEL, C1, line and paragraph separators, halves of pairs; all else is good, up to 128 characters."""
    assert display_name_fault(f"a{bad}b")
    assert None is display_name_fault("")
    assert None is display_name_fault(" é群🙂\xa0" * 21)
    assert "129" in str(display_name_fault("é" * 129))


async def test_who_joins_begins_at_the_newest_message(groups: Groups, store: Store) -> None:
    """Joined from here on: the cursor is the group's last order, and joining again does not move it."""
    await groups.create("g", name="", owner="", members=["c0"])
    first = await send(store, "g", 7_000_000)
    await groups.add("g", ["c1"])
    await send(store, "g", 8_000_000)
    again = await groups.add("g", ["c0", "c1"])
    assert (0, (), ()) == (again.count, again.refused, again.sessions)
    assert {"g": START, "#": "1"} == await audiences_of(store, "c0")
    assert {"g": first, "#": "1"} == await audiences_of(store, "c1")


async def test_sessions_of_those_who_changed_are_told(groups: Groups, store: Store) -> None:
    """Of whom something changed, every session with its epoch; of others none."""
    sessions = [("c0", "n:1_c0_1"), ("c0", "n:1_c0_2"), ("c1", "n:1_c1_3")]
    joining = [Joining(client_id, session_id) for client_id, session_id in sessions]
    await Registry(store).register("n:1", "e1", joining, most=1, most_bytes=1)
    expected = {(client_id, session_id, "e1") for client_id, session_id in sessions}
    await groups.create("g", name="", owner="", members=["c1"])
    assert {one for one in expected if one[0] == "c0"} == set((await groups.add("g", CLIENTS)).sessions)
    assert expected == set((await groups.remove("g", CLIENTS)).sessions)
    assert () == (await groups.remove("g", CLIENTS)).sessions
    await groups.add("g", CLIENTS)
    told = [session async for changed in groups.delete("g") for session in changed.sessions]
    assert expected == set(told)


async def test_what_the_audiences_of_a_client_hold_stays_while_it_is_in_a_group(groups: Groups, store: Store) -> None:
    """They do not expire; of a client that is in none any more they do, with the version and everyone's cursor."""
    await groups.create("g", name="", owner="", members=[])
    audiences = store.keys.audiences("c0")
    await store.redis.hset(audiences, "*", START)
    await store.redis.expire(audiences, 100)
    await groups.add("g", ["c0"])
    assert -1 == await store.redis.ttl(audiences)
    await groups.remove("g", ["c0"])
    assert {"*": START, "#": "2"} == await audiences_of(store, "c0")
    assert 86_400 < await store.redis.ttl(audiences)


async def test_a_full_group_refuses_whom_it_has_no_room_for(store: Store) -> None:
    """In the order given; who is in already is not refused; room is made by who leaves."""
    groups = Groups(store, most_members=3)
    await groups.create("g", name="", owner="", members=["c0", "c1"])
    changed = await groups.add("g", ["c2", "c3", "c0"])
    assert (1, ["c3"]) == (changed.count, [client_id for client_id, _ in changed.refused])
    assert "3 members" in changed.refused[0][1]
    assert {} == await audiences_of(store, "c3")
    await groups.remove("g", ["c0"])
    assert () == (await groups.add("g", ["c3"])).refused
    assert {"c1", "c2", "c3"} == await members_of(store, "g") == await inside(store, "g")
    with pytest.raises(BadRequest, match="members: 4, a group has at most 3"):
        await groups.add("g", CLIENTS[:4])


async def test_a_client_in_too_many_groups_is_refused(store: Store) -> None:
    """It is a member on neither side; everyone's cursor and the version are no groups; the others join."""
    groups = Groups(store, most_groups=2)
    await store.redis.hset(store.keys.audiences("c0"), "*", START)
    for group_id in ("g1", "g2", "g3"):
        await groups.create(group_id, name="", owner="", members=[])
    for group_id in ("g1", "g2"):
        assert () == (await groups.add(group_id, ["c0"])).refused
    changed = await groups.add("g3", ["c0", "c1"])
    assert (1, ["c0"]) == (changed.count, [client_id for client_id, _ in changed.refused])
    assert "2 groups" in changed.refused[0][1]
    assert {"c1"} == await members_of(store, "g3")
    assert {"*": START, "#": "2", "g1": START, "g2": START} == await audiences_of(store, "c0")
    assert () == (await groups.add("g2", ["c0"])).refused
    await groups.remove("g1", ["c0"])
    assert () == (await groups.add("g3", ["c0"])).refused


async def test_a_group_is_renamed(groups: Groups) -> None:
    """Nothing else of it changes."""
    await groups.create("g", name="old", owner="c0", members=CLIENTS)
    before = await groups.get("g")
    after = await groups.rename("g", "new")
    assert before is not None
    assert ("new", before.created_ms, "c0", 200) == (after.name, after.created_ms, after.owner, after.members)
    assert after == await groups.get("g")
    with pytest.raises(BadRequest, match="groupName"):
        await groups.rename("g", "\x07")


async def test_standing_is_told_in_order(groups: Groups) -> None:
    """Of many questions over many groups each gets its own answer."""
    for number in range(10):
        await groups.create(f"g{number}", name="", owner="", members=CLIENTS[number::10])
    asked = [(f"g{number % 11}", client_id) for number, client_id in enumerate(CLIENTS)]
    expected = [
        Standing.NO_GROUP if group == 10 else Standing.MEMBER if number % 10 == group else Standing.NOT_MEMBER
        for number, group in ((number, number % 11) for number in range(len(CLIENTS)))
    ]
    assert expected == await groups.standing(asked)
    assert [] == await groups.standing([])


@pytest.mark.parametrize("group_id", ["g", "*", "", "a/b"])
async def test_an_unknown_group_is_not_found(groups: Groups, store: Store, group_id: str) -> None:
    """Whatever is asked of it, and nothing comes of it; everyone is no group."""
    about = store.keys.audience(group_id)[0]
    if group_id == "*":
        await store.redis.hset(about, "last", START)
    calls: list[Any] = [groups.add(group_id, ["c0"]), groups.remove(group_id, ["c0"]), groups.rename(group_id, "x")]
    calls += [groups.members(group_id, "", 10), delete(groups, group_id)]
    for call in calls:
        with pytest.raises(NotFound):
            await call
    assert None is await groups.get(group_id)
    assert [Standing.NO_GROUP] == await groups.standing([(group_id, "c0")])
    assert int(group_id == "*") == await store.redis.exists(*store.keys.audience(group_id))
    assert {} == await audiences_of(store, "c0")


async def test_nothing_is_left_of_a_deleted_group(groups: Groups, store: Store) -> None:
    """Nor among its members' audiences; its id is free."""
    await groups.create("g", name="", owner="", members=CLIENTS)
    keys = store.keys.audience("g")
    await store.redis.xadd(keys[1], {"m": "x"})
    await store.redis.hset(keys[3], "n:1", "e1")
    assert len(CLIENTS) == await delete(groups, "g")
    assert 0 == await store.redis.exists(*keys)
    assert set() == await inside(store, "g")
    with pytest.raises(NotFound):
        await delete(groups, "g")
    await groups.create("g", name="", owner="", members=["c0"])
    assert {"c0"} == await inside(store, "g")


# -- pages ---------------------------------------------------------------------------------------------------------


async def pages(groups: Groups, limit: int, group_id: str = "g") -> AsyncIterator[list[str]]:
    cursor = ""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            page, cursor = await groups.members(group_id, cursor, limit)
            yield page
            if not cursor:
                return


@pytest.mark.parametrize(
    ("count", "limit"),
    [(0, 10), (1, 1), (40, 1), (100, 7), (128, 100), (129, 100), (600, 7), (200, 1), (3000, 100), (3000, 1000)],
)
async def test_pages_hold_every_member_once(store: Store, count: int, limit: int) -> None:
    """Whatever the size of the group and of a page; with pages that are no tiny ones none is larger than asked for."""
    groups = Groups(store)
    members = [f"m{number}" for number in range(count)]
    await groups.create("g", name="", owner="", members=members)
    found = [page async for page in pages(groups, limit)]
    assert sorted(members) == sorted(member for page in found for member in page)
    assert max(map(len, found)) <= max(limit, 50)
    assert len(found) <= 1 + count / max(1, limit / 3)


@pytest.mark.parametrize(("count", "limit"), [(20, 1), (100, 7), (127, 100), (300, 7), (1500, 100)])
async def test_who_is_a_member_all_the_while_is_on_a_page(store: Store, count: int, limit: int) -> None:
    """While others join and leave, which grows and shrinks the set, and the pages come to an end."""
    groups = Groups(store)
    stay, guests = [f"m{number}" for number in range(count)], [f"guest{number}" for number in range(600)]
    await groups.create("g", name="", owner="", members=stay)
    seen: set[str] = set()
    turn = 0
    async for page in pages(groups, limit):
        seen.update(page)
        turn += 1
        if turn % 3 == 1:
            await groups.add("g", guests)
        elif turn % 3 == 0 and turn < 20:
            await groups.remove("g", guests)
    assert set(stay) <= seen


async def test_a_group_may_outgrow_its_small_form_between_two_pages(store: Store) -> None:
    """Redis keeps a small set in another form, with pages of another kind; twenty groups, since chance has a part."""
    groups = Groups(store)
    for number in range(20):
        group_id = f"g{number}"
        stay = {f"m{number}-{one}" for one in range(100)}
        await groups.create(group_id, name="", owner="", members=sorted(stay))
        seen: set[str] = set()
        async for page in pages(groups, 7, group_id):
            if not seen:
                await store.redis.sadd(store.keys.audience(group_id)[2], *(f"guest{number}-{n}" for n in range(600)))
            seen.update(page)
        assert stay <= seen


@pytest.mark.parametrize("cursor", ["x", "s", "s-1", "s99999999999999999999999", f"s{1 << 64}", "b", "b\n", "0", "bé"])
async def test_a_cursor_that_is_none_is_refused(groups: Groups, cursor: str) -> None:
    """As the caller's fault."""
    await groups.create("g", name="", owner="", members=["c0"])
    with pytest.raises(BadRequest, match="cursor"):
        await groups.members("g", cursor, 10)
