"""
Groups on a real server and a real cluster: a group's members and its members' audiences say the same.

test_group_model.py holds them against a model in Python; here are calls that meet, calls that broke, and pages.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from pushfleet.local_valkey import LocalValkey
from shared.errors import BadRequest, NotFound, StoreUnavailable, WrongState
from shared.groups import Groups, Standing, group_name_fault
from shared.registry import Joining, Registry
from shared.store import Script, Store

DEADLINE_S = 60.0
START = "0" * 16
CLIENTS = [f"c{number}" for number in range(200)]


@pytest.fixture
def groups(store: Store) -> Groups:
    """With small slices."""
    return Groups(store, most_in_call=50)


async def members_of(store: Store, group_id: str) -> set[str]:
    found: set[bytes] = await store.redis.smembers(store.keys.audience(group_id)[2])  # type: ignore[assignment]
    return {member.decode() for member in found}


async def audiences_of(store: Store, client_id: str) -> dict[str, str]:
    found: dict[bytes, bytes] = await store.redis.hgetall(store.keys.audiences(client_id))  # type: ignore[assignment]
    return {name.decode(): value.decode() for name, value in found.items()}


async def inside(store: Store, group_id: str, clients: Sequence[str] = CLIENTS) -> set[str]:
    """Those whose own side says that they are members."""
    return {client_id for client_id in clients if group_id in await audiences_of(store, client_id)}


async def send(store: Store, group_id: str, order: int) -> str:
    """What the newest message leaves behind."""
    await store.redis.hset(store.keys.audience(group_id)[0], "last", f"{order:016d}")
    return f"{order:016d}"


async def delete(groups: Groups, group_id: str) -> int:
    return sum([changed.count async for changed in groups.delete(group_id)])


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
    assert group_name_fault(f"a{bad}b")
    assert None is group_name_fault("")
    assert None is group_name_fault(" é群🙂\xa0" * 21)
    assert "129" in str(group_name_fault("é" * 129))


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


# -- calls that broke half way -------------------------------------------------------------------------------------


async def test_a_half_done_join_is_mended_by_asking_again(groups: Groups, store: Store) -> None:
    """The group's side had it, the client's did not."""
    await groups.create("g", name="", owner="", members=[])
    await store.redis.sadd(store.keys.audience("g")[2], "c0")
    last = await send(store, "g", 9)
    assert 1 == (await groups.add("g", ["c0"])).count
    assert {"g": last, "#": "1"} == await audiences_of(store, "c0")


@pytest.mark.parametrize("mend", ["remove", "add"])
async def test_a_half_done_leave_is_mended(groups: Groups, store: Store, mend: str) -> None:
    """By leaving again; by joining, which begins anew: what was sent meanwhile is not the client's."""
    await groups.create("g", name="", owner="", members=["c0"])
    await store.redis.srem(store.keys.audience("g")[2], "c0")
    last = await send(store, "g", 9)
    if mend == "remove":
        assert 1 == (await groups.remove("g", ["c0"])).count
        assert {"#": "2"} == await audiences_of(store, "c0")
    else:
        assert 1 == (await groups.add("g", ["c0"])).count
        assert {"g": last, "#": "2"} == await audiences_of(store, "c0")


async def test_a_half_done_delete_is_finished_by_asking_again(groups: Groups, store: Store) -> None:
    """Until then nobody joins or sends, and no group of that id can be made."""
    await groups.create("g", name="", owner="", members=CLIENTS)
    deleting = groups.delete("g")
    assert 50 == (await anext(deleting)).count
    await deleting.aclose()  # type: ignore[attr-defined]
    assert None is await groups.get("g")
    assert {Standing.NO_GROUP} == set(await groups.standing([("g", client_id) for client_id in CLIENTS]))
    with pytest.raises(NotFound):
        await groups.add("g", ["new"])
    with pytest.raises(WrongState, match="being deleted"):
        await groups.create("g", name="", owner="", members=[])
    assert 150 == len(await inside(store, "g"))
    await delete(groups, "g")
    assert set() == await inside(store, "g") == await members_of(store, "g")
    await groups.create("g", name="", owner="", members=[])


async def test_a_delete_that_broke_at_its_last_step_is_finished(groups: Groups, store: Store) -> None:
    """All members have left, what is known of the group is still there."""
    await groups.create("g", name="", owner="", members=[])
    await store.redis.hdel(store.keys.audience("g")[0], "created")
    with pytest.raises(WrongState, match="being deleted"):
        await groups.create("g", name="", owner="", members=[])
    assert 0 == await delete(groups, "g")
    await groups.create("g", name="", owner="", members=[])


class ForgetfulStore(Store):
    """Every first answer is lost, and the script sent once more, as a client of Redis does by itself."""

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        await super().run(script, keys, args)
        return await super().run(script, keys, args)


@pytest.fixture
async def forgetful(store_url: str, namespace: str) -> AsyncIterator[ForgetfulStore]:
    store = ForgetfulStore(store_url, namespace=namespace)
    yield store
    await store.close()


async def test_scripts_may_be_sent_twice(forgetful: ForgetfulStore, store: Store) -> None:
    """Nothing is done twice: a group that this call has made is no other's, and versions count each change once."""
    groups = Groups(forgetful, most_in_call=50)
    await groups.create("g", name="", owner="", members=CLIENTS[:100])
    await groups.remove("g", CLIENTS[:10])
    await groups.add("g", CLIENTS[:5])
    expected = {*CLIENTS[:5], *CLIENTS[10:100]}
    assert expected == await members_of(store, "g") == await inside(store, "g")
    assert {"g": START, "#": "3"} == await audiences_of(store, "c0")
    await delete(groups, "g")
    assert set() == await members_of(store, "g") == await inside(store, "g")
    await groups.create("g", name="", owner="", members=[])


class BreakingStore(Store):
    """Redis goes away at the n-th script from now."""

    left = -1

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            raise StoreUnavailable("away")
        return await super().run(script, keys, args)


@pytest.fixture
async def breaking(valkey: LocalValkey, namespace: str) -> AsyncIterator[BreakingStore]:
    store = BreakingStore(valkey.url, namespace=namespace)
    yield store
    await store.close()


async def test_every_call_can_break_anywhere(breaking: BreakingStore) -> None:
    """Wherever it broke, the same call again does the rest, and both sides agree."""
    store = breaking
    groups = Groups(store, most_in_call=70, most_groups=2)
    for group_id in ("x", "y"):  # c199 is refused
        await groups.create(group_id, name="", owner="", members=["c199"])

    async def again(call: Any, at: int) -> bool:
        """Whether it broke."""
        store.left = at
        try:
            await call()
        except StoreUnavailable:
            await call()
            return True
        finally:
            store.left = -1
        return False

    for at in range(1, 100):
        await groups.create("g", name="", owner="", members=[])
        broken = await again(lambda: groups.add("g", CLIENTS), at)
        assert set(CLIENTS[:199]) == await members_of(store, "g") == await inside(store, "g")
        broken = await again(lambda: groups.remove("g", CLIENTS[::2]), at) or broken
        assert set(CLIENTS[1:199:2]) == await members_of(store, "g") == await inside(store, "g")
        await groups.add("g", CLIENTS)
        broken = await again(lambda: delete(groups, "g"), at) or broken
        assert set() == await members_of(store, "g") == await inside(store, "g")
        assert 0 == await store.redis.exists(*store.keys.audience("g"))
        if not broken:
            break
    assert 9 < at < 99


# -- calls that meet -----------------------------------------------------------------------------------------------


class HeldStore(Store):
    """Stops before the next script of a name: `reached` is set, and it goes on when `go` is."""

    held = ""

    def __init__(self, url: str, *, namespace: str) -> None:
        super().__init__(url, namespace=namespace)
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        if script.name == self.held:
            self.held = ""
            self.reached.set()
            async with asyncio.timeout(DEADLINE_S):
                await self.go.wait()
        return await super().run(script, keys, args)


@pytest.fixture
async def held(store_url: str, namespace: str) -> AsyncIterator[HeldStore]:
    store = HeldStore(store_url, namespace=namespace)
    yield store
    await store.close()


async def add_c0(groups: Groups) -> object:
    return await groups.add("g", ["c0"])


async def remove_c0(groups: Groups) -> object:
    return await groups.remove("g", ["c0"])


async def delete_g(groups: Groups) -> object:
    return await delete(groups, "g")


async def make_g_anew(groups: Groups) -> object:
    await delete(groups, "g")
    return await groups.create("g", name="", owner="", members=["c0"])


@pytest.mark.parametrize(
    ("slow", "before", "quick", "member"),
    [
        (add_c0, "group_enter", remove_c0, False),
        (add_c0, "group_enter", delete_g, False),
        (add_c0, "group_enter", make_g_anew, True),
        (remove_c0, "group_quit", add_c0, True),
        (remove_c0, "group_quit", make_g_anew, True),
        (delete_g, "group_quit", make_g_anew, True),
        (delete_g, "group_clear", make_g_anew, True),
    ],
)
async def test_both_sides_agree_when_calls_have_met(
    held: HeldStore, groups: Groups, store: Store, slow: Any, before: str, quick: Any, member: bool
) -> None:
    """One stands between its two steps while another is carried out from beginning to end."""
    await groups.create("g", name="", owner="", members=[] if slow is add_c0 else ["c0"])
    held.held = before
    call = asyncio.create_task(slow(Groups(held, most_in_call=50)))
    async with asyncio.timeout(DEADLINE_S):
        await held.reached.wait()
    await quick(groups)
    held.go.set()
    await call
    expected = {"c0"} if member else set()
    assert expected == await members_of(store, "g") == await inside(store, "g")


async def test_many_at_once_leave_both_sides_agreed(store: Store) -> None:
    """Joins, leaves and deletes of the same clients by many callers at once."""
    callers = [Groups(store, most_in_call=3, most_members=5, most_groups=2) for _ in range(6)]
    clients, group_ids = CLIENTS[:6], ["g1", "g2", "g3"]
    chance = random.Random(7)

    async def act(groups: Groups) -> None:
        for _ in range(40):
            group_id, some = chance.choice(group_ids), chance.sample(clients, 4)
            with suppress(NotFound, WrongState):
                match chance.randrange(8):
                    case 0:
                        await delete(groups, group_id)
                    case 1:
                        await groups.create(group_id, name="", owner="", members=some)
                    case 2 | 3 | 4:
                        await groups.remove(group_id, some)
                    case _:
                        await groups.add(group_id, some)

    await asyncio.gather(*map(act, callers))
    for group_id in group_ids:
        if await callers[0].get(group_id) is not None:
            assert await members_of(store, group_id) == await inside(store, group_id, clients)
        else:
            assert set() == await inside(store, group_id, clients)


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
