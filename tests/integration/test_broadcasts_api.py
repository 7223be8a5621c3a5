"""/v1/broadcasts as a business system sees it: what it may ask for, and what waits, fails and expires."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.dispatcher import Answer, Caller, Site, running_dispatcher

BROADCASTS = "/v1/broadcasts"
DEADLINE_S = 30.0


@pytest.fixture
async def caller(site: Site, valkey: LocalValkey, http: aiohttp.ClientSession) -> AsyncIterator[Caller]:
    """Of a dispatcher that asks for no keys."""
    environ = {"PUSH_BROADCAST_RATE": "50", "PUSH_INBOX_MESSAGES": "1", "PUSH_MAX_LAG": "1"}
    async with running_dispatcher(valkey.url, site.namespace, **environ) as dispatcher:
        await dispatcher.until("ready")
        yield Caller(http, dispatcher.url)


async def begin(caller: Caller, **fields: Any) -> Answer:
    body = {"msg": "hello", **{name.rstrip("_"): value for name, value in fields.items()}}
    return await caller.request("POST", BROADCASTS, data=json.dumps(body).encode())


async def until(caller: Caller, broadcast_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while not holds(seen := (await caller.get(f"{BROADCASTS}/{broadcast_id}")).fields):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return seen


async def until_ended(caller: Caller, broadcast_id: str) -> dict[str, Any]:
    return await until(caller, broadcast_id, lambda now: now["state"] != "running")


def assert_problem(answer: Answer, status: int, code: str, field: str | None = None) -> str:
    """Gives the detail."""
    assert (status, "application/problem+json") == (answer.status, answer.headers["Content-Type"])
    assert (code, field) == (answer.fields["code"], answer.fields.get("field"))
    return str(answer.fields["detail"])


async def make(caller: Caller, *members: str, group_id: str = "team") -> None:
    body = json.dumps({"groupId": group_id, "members": members}).encode()
    assert 201 == (await caller.post("/v1/groups", body)).status


# -- what it is ----------------------------------------------------------------------------------------------------


async def test_a_broadcast_from_its_beginning_to_its_end(caller: Caller, site: Site) -> None:
    """What is answered at first and at last; the targets get a direct message with all its fields."""
    node = await site.node()
    session_id = await node.connect("alice")
    await make(caller, "alice", "bob")
    answer = await begin(caller, toGroups="team", from_="news", requestId="r-1", ttl=60, rate=10)
    begun = answer.fields
    created, id_, message_id = begun["created"], begun["broadcastId"], begun["messageId"]
    assert abs(time.time() * 1000 - created) < 60_000
    expected = {
        **{"broadcastId": id_, "messageId": message_id, "state": "running", "toAll": False, "toGroups": ["team"]},
        **{"rate": 10, "targets": 2, "reached": 0, "online": 0, "offline": 0, "failed": 0},
        **{"created": created, "ended": None},
    }
    assert (201, expected) == (answer.status, begun)
    done = await until_ended(caller, id_)
    assert {**expected, "state": "done", "reached": 2, "online": 1, "offline": 1, "ended": done["ended"]} == done
    assert done["ended"] >= created
    (line,) = await node.lines_of(message_id)
    assert ("direct", created + 60_000) == (line.kind, line.expires_ms)
    sent = {
        **{"activeTime": created, "from": "news", "messageId": message_id, "msg": "hello", "requestId": "r-1"},
        **{"sessionId": session_id, "to": "alice", "trigger": 1, "msgType": 1},
    }
    assert sent == line.fields
    assert [message_id] == await site.held("bob")


async def test_nobody_is_known(caller: Caller) -> None:
    """To everyone of none: it ends at once. A group's rate is the default without one."""
    answer = await begin(caller, toAll=True)
    assert (201, 0, 50, True) == (answer.status, *(answer.fields[name] for name in ("targets", "rate", "toAll")))
    done = await until_ended(caller, answer.fields["broadcastId"])
    assert ("done", 0) == (done["state"], done["reached"])


async def test_the_same_request_id_gives_the_same_broadcast(caller: Caller) -> None:
    """201, then 200, also when it has ended and its group is gone; another body is a conflict."""
    await make(caller, "alice")
    fields: dict[str, Any] = {"toGroups": ["team"], "requestId": "r-1", "rate": 5}
    first = await begin(caller, **fields)
    second = await begin(caller, **fields)
    assert (201, 200) == (first.status, second.status)
    assert first.fields["broadcastId"] == second.fields["broadcastId"]
    await until_ended(caller, first.fields["broadcastId"])
    await caller.request("DELETE", "/v1/groups/team")
    third = await begin(caller, **fields)
    assert (200, "done", first.fields["messageId"]) == (
        third.status,
        third.fields["state"],
        third.fields["messageId"],
    )
    for other in ({"msg": "other"}, {"rate": 6}, {"from_": "x"}, {"ttl": 5}, {"toGroups": ["other"]}):
        assert_problem(await begin(caller, **{**fields, **other}), 409, "request_id_conflict", "requestId")


async def test_the_newest_are_listed_first(caller: Caller) -> None:
    """Page by page, as each of them is by itself."""
    begun = [(await begin(caller, toAll=True)).fields["broadcastId"] for _ in range(5)]
    for broadcast_id in begun:
        await until_ended(caller, broadcast_id)
    pages, query = [], {"limit": "2"}
    while True:
        page = (await caller.get(BROADCASTS, **query)).fields
        pages.append([each["broadcastId"] for each in page["broadcasts"]])
        if page["cursor"] is None:
            break
        query["cursor"] = page["cursor"]
    assert [begun[:2:-1], begun[2:0:-1], begun[:1]] == pages
    everything = (await caller.get(BROADCASTS)).fields
    assert (begun[::-1], None) == ([each["broadcastId"] for each in everything["broadcasts"]], everything["cursor"])
    assert (await caller.get(f"{BROADCASTS}/{begun[2]}")).fields == everything["broadcasts"][2]


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "toGroups"),
        ({"toAll": False}, "toGroups"),
        ({"toGroups": []}, "toGroups"),
        ({"toAll": True, "toGroups": ["team"]}, "toGroups"),
        ({"toGroups": ["team", "a b"]}, "toGroups[1]"),
        ({"toGroups": [f"g{number}" for number in range(101)]}, "toGroups"),
        ({"toGroups": 7}, "toGroups"),
        ({"toAll": "yes"}, "toAll"),
        ({"toAll": True, "rate": 0}, "rate"),
        ({"toAll": True, "rate": -1}, "rate"),
        ({"toAll": True, "rate": 100_001}, "rate"),
        ({"toAll": True, "rate": 0.5}, "rate"),
        ({"toAll": True, "rate": "fast"}, "rate"),
        ({"toAll": True, "from_": ""}, "from"),
        ({"toAll": True, "ttl": 0}, "ttl"),
        ({"toAll": True, "requestId": "x" * 65}, "requestId"),
        ({"toAll": True, "to": ["alice"]}, "to"),
    ],
)
async def test_bad_input_names_its_field(caller: Caller, fields: dict[str, Any], field: str) -> None:
    """400 with the path of what is wrong, and nothing begins."""
    await make(caller, "alice")
    assert_problem(await begin(caller, **fields), 400, "bad_request", field)
    assert [] == (await caller.get(BROADCASTS)).fields["broadcasts"]


async def test_what_is_not_there(caller: Caller) -> None:
    """404 for groups, with their place, and for broadcasts; 400 for a body without msg and for bad pages."""
    await make(caller, "alice")
    assert_problem(await begin(caller, toGroups=["team", "nobody"]), 404, "not_found", "toGroups[1]")
    assert_problem(await begin(caller, toGroups="nobody"), 404, "not_found", "toGroups")
    for name in ("x", "0" * 32, "a%2Fb"):
        for method in ("GET", "DELETE"):
            assert_problem(await caller.request(method, f"{BROADCASTS}/{name}"), 404, "not_found")
    assert_problem(await caller.post(BROADCASTS, b'{"toAll":true}'), 400, "bad_request", "msg")
    limits = ("0", "1001", "", "000000001999", "000000001" + 5000 * "9")
    for query, field in (*(({"limit": limit}, "limit") for limit in limits), ({"cursor": "x"}, "cursor")):
        assert_problem(await caller.get(BROADCASTS, **query), 400, "bad_request", field)


async def test_a_full_inbox_is_a_failed_target(caller: Caller, site: Site) -> None:
    """The others get it."""
    await make(caller, "alice", "bob", "carol")
    assert 200 == (await caller.send(["bob"])).status
    begun = (await begin(caller, toGroups="team")).fields
    done = await until_ended(caller, begun["broadcastId"])
    assert ("done", 2, 0, 2, 1) == tuple(done[name] for name in ("state", "reached", "online", "offline", "failed"))
    assert begun["messageId"] not in await site.held("bob")
    assert [begun["messageId"]] == await site.held("carol")


async def test_a_node_that_is_behind_is_waited_for(caller: Caller, site: Site) -> None:
    """Nothing is stored or sent until it has caught up; then all are reached, each once."""
    node = await site.node(lag_ms=60_000)
    await node.connect("alice")
    await make(caller, "alice", "bob")
    answer = await caller.send(["alice"])
    assert 429 == answer.status
    begun = (await begin(caller, toGroups="team", rate=100)).fields
    metrics = ""
    async with asyncio.timeout(DEADLINE_S):
        while "push_broadcasts_running 1.0" not in metrics:
            metrics = (await caller.get("/metrics")).text
    assert 0 == (await caller.get(f"{BROADCASTS}/{begun['broadcastId']}")).fields["reached"]
    assert [] == await site.held("bob")
    await node.lease()
    done = await until_ended(caller, begun["broadcastId"])
    assert ("done", 1, 1, 0) == tuple(done[name] for name in ("state", "online", "offline", "failed"))
    await node.lines_of(begun["messageId"])
    assert 1 == len([line for line in node.lines if line.kind == "direct"])
    metrics = (await caller.get("/metrics")).text
    assert 'push_broadcast_targets_total{state="online"} 1.0' in metrics
    assert 'push_broadcast_targets_total{state="offline"} 1.0' in metrics


async def test_an_abort_ends_what_waits(caller: Caller, site: Site) -> None:
    """A broadcast whose page cannot be sent reaches nobody after it, not even when it could be."""
    node = await site.node(lag_ms=60_000)
    await node.connect("alice")
    await make(caller, "alice")
    assert 429 == (await caller.send(["alice"])).status
    begun = (await begin(caller, toGroups="team")).fields
    path = f"{BROADCASTS}/{begun['broadcastId']}"
    assert "aborted" == (await caller.request("DELETE", path)).fields["state"]
    async with asyncio.timeout(DEADLINE_S):
        while await site.store.redis.exists(site.store.keys.lock(f"broadcast:{begun['broadcastId']}")[0]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await node.lease()
    async with asyncio.timeout(DEADLINE_S):
        while (await caller.send(["alice"])).status != 200:  # noqa: ASYNC110 - leases are read each second
            await asyncio.sleep(0.02)
    await node.until("direct", 1)
    assert [] == [line for line in node.lines if begun["messageId"].encode() in line.envelope]
    final = (await caller.get(path)).fields
    assert ("aborted", 0) == (final["state"], final["reached"])
    assert_problem(await caller.request("DELETE", path), 409, "wrong_state")


async def test_it_expires_with_its_message(caller: Caller) -> None:
    """Whoever was not reached within the ttl does not get it."""
    await make(caller, *(f"c{number}" for number in range(100)))
    begun = (await begin(caller, toGroups="team", rate=1, ttl=2)).fields
    ended = await until_ended(caller, begun["broadcastId"])
    assert "expired" == ended["state"]
    assert 1 <= ended["reached"] <= 3
    assert ended["ended"] - ended["created"] >= 2000


async def test_redis_may_be_away_meanwhile(private_valkey: LocalValkey, http: aiohttp.ClientSession) -> None:
    """What was reached is known when it is back, and the rest is reached then."""
    site = Site(private_valkey.url, "t")
    async with running_dispatcher(private_valkey.url, "t") as dispatcher:
        await dispatcher.until("ready")
        caller = Caller(http, dispatcher.url)
        names = [f"c{number}" for number in range(200)]
        await make(caller, *names)
        begun = (await begin(caller, toGroups="team", rate=100)).fields
        before = await until(caller, begun["broadcastId"], lambda now: now["reached"] >= 20)
        private_valkey.kill()
        assert_problem(await caller.get(f"{BROADCASTS}/{begun['broadcastId']}"), 503, "store_unavailable")
        await private_valkey.restart()
        done = await until_ended(caller, begun["broadcastId"])
        assert ("done", 200, 200) == tuple(done[name] for name in ("state", "reached", "offline"))
        assert before["reached"] < 200
        assert [[begun["messageId"]]] * 200 == [await site.held(name) for name in names]
    await site.close()


async def test_scopes(site: Site, valkey: LocalValkey, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """`broadcast` and `admin` may do all of it, `read` may look, `send` may not. The key's name is the sender."""
    scopes = ("send", "read", "broadcast", "admin")
    keys = [{"name": scope, "key": f"{scope}-key", "scopes": [scope]} for scope in scopes]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [*keys, {**keys[2], "name": "q", "key": "q", "quota": 1}]}))
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(tmp_path / "keys.json")}
    async with running_dispatcher(valkey.url, site.namespace, **environ) as dispatcher:
        await dispatcher.until("ready")
        node = await site.node()
        await node.connect("alice")
        statuses = []
        for scope in scopes:
            headers = {"X-API-Key": f"{scope}-key"}
            caller = Caller(http, dispatcher.url, f"{scope}-key")
            begun = await caller.post(BROADCASTS, b'{"toAll":true,"msg":1}', **headers)
            path = f"{BROADCASTS}/{begun.fields.get('broadcastId', '0' * 32)}"
            if begun.status == 201:
                await until_ended(caller, begun.fields["broadcastId"])
                (line,) = await node.lines_of(begun.fields["messageId"])
                assert scope == line.fields["from"]
            looks = [(await caller.get(where)).status for where in (BROADCASTS, path)]
            statuses.append(
                (scope, begun.status, looks, (await caller.request("DELETE", path, headers=headers)).status)
            )
        assert [
            ("send", 403, [403, 403], 403),
            ("read", 403, [200, 404], 403),
            ("broadcast", 201, [200, 200], 409),
            ("admin", 201, [200, 200], 409),
        ] == statuses
        limited = Caller(http, dispatcher.url, "q")
        answers = [await limited.post(BROADCASTS, b'{"toAll":true,"msg":1}') for _ in range(2)]
        assert [201, 429] == [answer.status for answer in answers]
        assert_problem(await Caller(http, dispatcher.url).get(BROADCASTS), 401, "unauthorized")


async def test_the_document_tells_of_them(caller: Caller) -> None:
    """Paths with their methods and statuses."""
    paths = json.loads((await caller.get("/openapi.json")).text)["paths"]
    assert {"post", "get"} == set(paths[BROADCASTS])
    assert {"get", "delete"} == set(paths[f"{BROADCASTS}/{{broadcastId}}"])
    statuses = {"200", "201", "400", "401", "403", "404", "408", "409", "413", "429", "503"}
    assert statuses == set(paths[BROADCASTS]["post"]["responses"])
