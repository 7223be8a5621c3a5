"""
Groups when calls break half way, or meet: asking again mends what is half done, and both sides agree in the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from pushfleet.local_valkey import LocalValkey
from shared.errors import NotFound, StoreUnavailable, WrongState
from shared.groups import Groups, Standing
from shared.store import Script, Store
from tests.harness.groups import CLIENTS, DEADLINE_S, START, audiences_of, delete, inside, members_of, send


@pytest.fixture
def groups(store: Store) -> Groups:
    """With small slices."""
    return Groups(store, most_in_call=50)


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


async def test_who_stays_is_compared_when_the_group_goes_before_who_cannot_stay_has_left(
    held: HeldStore, groups: Groups, store: Store
) -> None:
    """c0 is taken in, c1 is in too many groups; the group is deleted before c1 is taken out of it again."""
    await groups.create("g", name="", owner="", members=[])
    await groups.create("other", name="", owner="", members=["c1"])
    entered = asyncio.create_task(Groups(held, most_groups=1).add("g", ["c0", "c1"]))
    held.held = "group_enter"
    async with asyncio.timeout(DEADLINE_S):
        await held.reached.wait()
        await delete(groups, "g")
        held.go.set()
        await entered
    assert set() == await inside(store, "g", ["c0", "c1"])


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
