"""The clients that are known, and the records of broadcasts: on one server and on a cluster."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dispatcher.broadcast_records import DONE, EXPIRED, MOST_RUNNING, RUNNING, Broadcasts, Sent, Wish
from dispatcher.broadcast_walk import END, Walk
from dispatcher.lock import Lock
from pushfleet.local_valkey import LocalValkey
from shared.clients import KnownClients
from shared.errors import Conflict, NotFound, Overloaded, WrongState
from shared.groups import Groups
from shared.ids import MessageIdMint, SessionIdMint
from shared.keys import partition_of
from shared.registry import Joining, Registry
from shared.store import Store

NODE = "10.0.0.1:9000"
WISH = Wish("billing", "billing", (), 1000, 60_000, "", b'"hello"')


async def register(store: Store, *client_ids: str) -> list[str]:
    """The sessionIds."""
    mint = SessionIdMint(NODE)
    joining = [Joining(client_id, mint.mint(client_id, 1)) for client_id in client_ids]
    for start in range(0, len(joining), 500):
        await Registry(store).register(NODE, "e1", joining[start : start + 500], most=1, most_bytes=1)
    return [each.session_id for each in joining]


async def walked(walk: Walk, most: int) -> list[list[str]]:
    """The pages."""
    pages: list[list[str]] = []
    place = ""
    while place != END:
        page, place = await walk.page(place, most)
        pages.append(page)
    return pages


def everyone(store: Store) -> Walk:
    return Walk((), Groups(store), KnownClients(store))


async def begun(store: Store, wish: Wish = WISH, targets: int = 7) -> str:
    broadcast, _ = await Broadcasts(store).begin(wish, "r", targets)
    return broadcast.id


async def held(store: Store, broadcast_id: str) -> tuple[str, int]:
    lock = Lock(store, f"broadcast:{broadcast_id}", life_s=60)
    assert await lock.hold()
    return lock.key, lock.token


# -- who is known --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 100, 10_000])
async def test_everyone_who_registered_is_on_a_page(store: Store, most: int) -> None:
    """Once each, also clients with odd names and those who left; a page holds hardly more than was asked for."""
    names = [*(f"c{number}" for number in range(300)), "a:route:b", "x@y", "route:"]
    session_ids = await register(store, *names)
    await Registry(store).unregister([(names[0], session_ids[0], "")])
    assert len(names) == await KnownClients(store).count()
    pages = await walked(everyone(store), most)
    assert sorted(names) == sorted(name for page in pages for name in page)
    assert max(map(len, pages)) <= most + 8


async def test_large_partitions_are_walked_whole(store: Store) -> None:
    """Sets that Redis holds as tables: nobody is missed, and pages are near what was asked for."""
    names = [name for name in (f"c{number}" for number in range(40_000)) if partition_of(name) < 2]
    assert len(names) > 1000
    await register(store, *names)
    pages = await walked(everyone(store), 100)
    assert sorted(names) == sorted(name for page in pages for name in page)
    assert max(map(len, pages)) <= 150  # a step of a scan gives some more than it is asked for


async def test_a_set_has_all_its_pages_however_its_members_lie(store: Store) -> None:
    """Also when the first step of a scan gives more than a page may hold."""
    groups, names = Groups(store), [f"g{number}" for number in range(200)]
    for name in names:
        about, _, members, _ = store.keys.audience(name)
        await store.redis.hset(about, "created", "1")
        await store.redis.sadd(members, *(f"{name}-{number}" for number in range(200)))
    for most in (3, 10):
        for name in names:
            pages = await walked(Walk((name,), groups, KnownClients(store)), most)
            assert 200 == len({member for page in pages for member in page})


async def test_a_walk_goes_on_after_a_restart_of_redis(private_valkey: LocalValkey) -> None:
    """It scans anew what it was at, since a server places members anew: nobody is missed, however far it was."""
    store = Store(private_valkey.url, namespace="t")
    names = [name for name in (f"c{number}" for number in range(40_000)) if partition_of(name) == 7]
    await register(store, *names)
    walk = everyone(store)
    seen: list[str] = []
    place = ""
    for most in (100, 200, 10_000):
        page, place = await walk.page(place, most)
        seen += page
        private_valkey.kill()
        await private_valkey.restart()
        await store.ping()
    assert END == place
    assert set(names) == set(seen)
    await store.close()


async def test_whom_a_walk_may_meet_again(store: Store) -> None:
    """Of everyone the clients of the partition that the next page begins in; of groups all, until the end."""
    walk = everyone(store)
    targets = [f"c{number}" for number in range(1000)]
    of_two = tuple(name for name in targets if partition_of(name) == 2)
    assert (of_two, True) == walk.to_remember("0:s5", targets, "2:s7")
    assert (of_two, False) == walk.to_remember("2:s5", targets, "2:s7")
    assert ((), True) == walk.to_remember("63:s5", targets, END)
    both = Walk(("a", "b"), Groups(store), KnownClients(store))
    assert (tuple(targets), False) == both.to_remember("0:s5", targets, "1:s7")


async def test_who_is_forgotten_is_no_target(store: Store) -> None:
    """Neither audiences nor a session: taken out by the page that finds it. One of the two is enough to stay."""
    names = ["gone", "online", "away"]
    session_ids = await register(store, *names)
    await Registry(store).unregister([(names[place], session_ids[place], "") for place in (0, 2)])
    await store.redis.delete(store.keys.audiences("gone"))
    await store.redis.delete(store.keys.audiences("online"))
    assert 3 == await KnownClients(store).count()
    assert ["away", "online"] == sorted(name for page in await walked(everyone(store), 10) for name in page)
    assert 2 == await KnownClients(store).count()
    await register(store, "gone")
    assert 3 == len([name for page in await walked(everyone(store), 10) for name in page])


async def test_members_of_groups_are_walked(store: Store) -> None:
    """One group after the other; one that was deleted meanwhile has nobody, and the walk goes on behind it."""
    groups = Groups(store)
    members = {name: [f"{name}{number}" for number in range(250)] for name in ("a", "b", "c")}
    for name, some in members.items():
        await groups.create(name, name="", owner="", members=some)
    walk = Walk(("a", "b", "c"), groups, KnownClients(store))
    first, place = await walk.page("", 100)
    assert len(first) <= 150
    assert set(first) <= set(members["a"])
    async for _ in groups.delete("b"):
        pass
    others: list[str] = []
    while place != END:
        page, place = await walk.page(place, 100)
        others += page
    assert sorted(members["a"] + members["c"]) == sorted(first + others)


# -- records -------------------------------------------------------------------------------------------------------


async def test_a_request_id_begins_one_broadcast(store: Store) -> None:
    """The same again gives it, another body a conflict; another caller's is another broadcast."""
    records = Broadcasts(store)
    wish = Wish("billing", "billing", ("g",), 5, 60_000, "r-1", b"1")
    assert await records.begun_before(wish) is None
    first, is_new = await records.begin(wish, "r-1", 7)
    again, is_new_again = await records.begin(wish, "r-1", 9)
    assert (first, True, first, False) == (first, is_new, again, is_new_again)
    assert first == await records.begun_before(wish)
    for other in (
        Wish("billing", "billing", ("g",), 5, 60_000, "r-1", b"2"),
        Wish("billing", "billing", (), 5, 60_000, "r-1", b"1"),
        Wish("billing", "billing", ("g",), 6, 60_000, "r-1", b"1"),
    ):
        with pytest.raises(Conflict):
            await records.begun_before(other)
        with pytest.raises(Conflict):
            await records.begin(other, "r-1", 7)
    theirs = Wish("shop", "billing", ("g",), 5, 60_000, "r-1", b"1")
    other_broadcast, is_new = await records.begin(theirs, "r-1", 7)
    assert (True, True) == (is_new, other_broadcast.id != first.id)
    assert {first.id, other_broadcast.id} == set(await records.running())


async def test_a_page_counts_once(store: Store) -> None:
    """However often its step is sent, and only under the lock's token; the next one goes on behind it."""
    records, id_ = Broadcasts(store), await begun(store)
    lock = await held(store, id_)
    sent = Sent(online=3, offline=2, failed=1)
    assert "" == await records.step(id_, (lock[0], lock[1] + 1), 1, "0:s1", sent)
    assert 0 == (await records.get(id_)).online
    assert [RUNNING, RUNNING] == [await records.step(id_, lock, 1, "0:s1", sent) for _ in range(2)]
    assert RUNNING == await records.step(id_, lock, 2, "0:s2", Sent(online=1))
    broadcast, work = await records.get(id_), await records.work(id_)
    assert (4, 2, 1, 0) == (broadcast.online, broadcast.offline, broadcast.failed, broadcast.ended_ms)
    assert work is not None
    assert ("0:s2", 2, b'"hello"', broadcast.about) == (work.place, work.pages, work.msg, work.about)


@pytest.mark.parametrize("end", [DONE, EXPIRED])
async def test_the_last_page_ends_it(store: Store, end: str) -> None:
    """It runs no more, its message is let go, the rest is kept for 7 days; it cannot be aborted."""
    records, id_ = Broadcasts(store), await begun(store)
    lock = await held(store, id_)
    assert end == await records.step(id_, lock, 1, END, Sent(online=7), end)
    assert end == await records.step(id_, lock, 1, END, Sent(online=7), end)
    broadcast = await records.get(id_)
    assert (end, 7, True) == (broadcast.state, broadcast.online, broadcast.ended_ms > 0)
    assert [] == await records.running()
    assert not await store.redis.hexists(store.keys.broadcast(id_)[0], "msg")
    assert 7 * 86_400 - 60 < await store.redis.ttl(store.keys.broadcast(id_)[0]) <= 7 * 86_400
    with pytest.raises(WrongState):
        await records.abort(id_)


async def test_an_abort_is_seen_by_the_next_step(store: Store) -> None:
    """That page was sent and counts still; nothing else changes any more."""
    records, id_ = Broadcasts(store), await begun(store)
    lock = await held(store, id_)
    await records.step(id_, lock, 1, "0:s1", Sent(online=1, reached=("a",)))
    assert "aborted" == (await records.abort(id_)).state
    assert "aborted" == await records.step(id_, lock, 2, "0:s2", Sent(online=2, reached=("b",)))
    assert "aborted" == await records.step(id_, lock, 3, END, Sent(), DONE)
    broadcast = await records.get(id_)
    assert ("aborted", 3) == (broadcast.state, broadcast.online)
    assert [] == await records.running()
    assert 0 == await store.redis.exists(store.keys.broadcast(id_)[1])
    with pytest.raises(WrongState):
        await records.abort(id_)
    with pytest.raises(NotFound):
        await records.abort(MessageIdMint().mint())


async def test_who_was_reached_is_remembered_while_it_runs(store: Store) -> None:
    """Others are fresh; nothing of it is left at the end, nor would be if nobody ended it."""
    records, id_ = Broadcasts(store), await begun(store)
    lock, reached = await held(store, id_), store.keys.broadcast(id_)[1]
    await records.step(id_, lock, 1, "0:s1", Sent(online=2, reached=("a", "b")))
    assert ["c", "d"] == await records.fresh(id_, ["a", "c", "b", "d"])
    assert 0 < await store.redis.ttl(reached) <= await store.redis.ttl(store.keys.broadcast(id_)[0]) + 1
    await records.step(id_, lock, 2, "1:s1", Sent(reached=("c",), forget=True))
    assert ["a", "d"] == await records.fresh(id_, ["a", "c", "d"])
    await records.step(id_, lock, 3, END, Sent(), DONE)
    assert 0 == await store.redis.exists(reached)


async def pages_of(records: Broadcasts, limit: int) -> list[list[str]]:
    pages: list[list[str]] = []
    behind = ""
    while page := await records.newest(behind, limit):
        pages.append([broadcast.id for broadcast in page])
        behind = pages[-1][-1]
    return pages


async def test_the_newest_are_listed_first(store: Store) -> None:
    """Page by page, each once; those that are kept no more are passed over and forgotten."""
    records = Broadcasts(store)
    ids = [(await records.begin(WISH, "r", 7))[0].id for _ in range(10)]
    assert [ids[:6:-1], ids[6:3:-1], ids[3:0:-1], ids[:1]] == await pages_of(records, 3)
    for gone in (0, 5, 8, 9):
        await store.redis.delete(store.keys.broadcast(ids[gone])[0])
    left: Sequence[str] = [ids[place] for place in (7, 6, 4, 3, 2, 1)]
    assert [left[:4], left[4:]] == await pages_of(records, 4)
    assert len(left) == await store.redis.zcard(store.keys.broadcasts[0])
    assert set(left) == set(await records.running())
    assert len(left) == await store.redis.scard(store.keys.broadcasts[1])


async def test_so_many_run_and_no_more(store: Store) -> None:
    """One that ends makes room."""
    records = Broadcasts(store)
    ids = [await begun(store) for _ in range(MOST_RUNNING)]
    with pytest.raises(Overloaded):
        await begun(store)
    await records.abort(ids[3])
    await begun(store)


async def test_nothing_of_a_broadcast_stays_for_ever(store: Store) -> None:
    """Each key of it expires, whatever became of it."""
    wish = Wish("billing", "billing", (), 5, 60_000, "r-1", b"1")
    id_ = await begun(store, wish)
    lock = await held(store, id_)
    await Broadcasts(store).step(id_, lock, 1, "0:s1", Sent(reached=("a",)))
    keys = store.keys
    names = (*keys.broadcast(id_), keys.broadcast_of("billing", "r-1"), *keys.lock(f"broadcast:{id_}"))
    assert [True] * 5 == [await store.redis.pttl(name) > 0 for name in names]
