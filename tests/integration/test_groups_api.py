"""/v1/groups as a business system sees it, and the member lines that nodes get of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pushfleet.local_valkey import LocalValkey
from tests.harness.dispatcher import Answer, Caller, FakeNode, Site, running_dispatcher

TEAM = "/v1/groups/team"
MEMBERS = f"{TEAM}/members"
MANY = [f"client-{number:05}" for number in range(10_000)]
FAR = 9_999_999_999_999


async def call(caller: Caller, method: str, path: str, body: Any = None) -> Answer:
    data = None if body is None else json.dumps(body).encode()
    return await caller.request(method, path, data=data)


async def make(caller: Caller, *members: str, group_id: str = "team") -> None:
    assert 201 == (await call(caller, "POST", "/v1/groups", {"groupId": group_id, "members": members})).status


def assert_problem(answer: Answer, status: int, code: str, field: str | None = None) -> str:
    """Gives the detail."""
    assert (status, "application/problem+json") == (answer.status, answer.headers["Content-Type"])
    assert (code, field) == (answer.fields["code"], answer.fields.get("field"))
    return str(answer.fields["detail"])


async def all_members(caller: Caller, path: str = MEMBERS, limit: int = 1000) -> list[list[str]]:
    """Page by page."""
    pages: list[list[str]] = []
    query = {"limit": str(limit)}
    while True:
        page = (await caller.get(path, **query)).fields
        pages.append(page["members"])
        if page["cursor"] is None:
            return pages
        query["cursor"] = page["cursor"]


# -- groups and their members --------------------------------------------------------------------------------------


async def test_a_group_from_its_beginning_to_its_end(caller: Caller, site: Site) -> None:
    """Made, seen, renamed, joined, left, deleted."""
    body = {"groupId": "team", "groupName": "Gruppe ☂", "owner": "alice", "members": ["alice", "bob"]}
    made = await call(caller, "POST", "/v1/groups", body)
    group = made.fields
    created = group["created"]
    team = {"groupId": "team", "groupName": "Gruppe ☂", "owner": "alice", "created": created, "members": 2}
    assert (201, {**team, "refused": []}) == (made.status, group)
    assert team == (await caller.get(TEAM)).fields
    assert {**team, "groupName": "n"} == (await call(caller, "PATCH", TEAM, {"groupName": "n"})).fields
    added = await call(caller, "POST", MEMBERS, {"members": ["bob", "carol", "carol"]})
    assert (200, {"groupId": "team", "changed": 1, "refused": []}) == (added.status, added.fields)
    removed = await call(caller, "DELETE", MEMBERS, {"members": ["alice", "nobody"]})
    assert {"groupId": "team", "changed": 1, "refused": []} == removed.fields
    assert [["bob", "carol"]] == [sorted(page) for page in await all_members(caller)]
    assert {**team, "groupName": "n", "members": 2} == (await caller.get(TEAM)).fields
    deleted = await call(caller, "DELETE", TEAM)
    assert (200, {"groupId": "team", "changed": 2, "refused": []}) == (deleted.status, deleted.fields)
    assert_problem(await caller.get(TEAM), 404, "not_found")
    assert 0 == await site.store.redis.exists(*site.store.keys.audience("team"))


async def test_a_group_without_an_id_gets_one(caller: Caller) -> None:
    """Everything else may be absent or null, too; no two are the same."""
    first = await call(caller, "POST", "/v1/groups")
    second = await call(caller, "POST", "/v1/groups", {"groupId": None, "groupName": None, "members": None})
    ids = [answer.fields["groupId"] for answer in (first, second)]
    assert ids[0] != ids[1]
    assert [(33, "g")] * 2 == [(len(group_id), group_id[0]) for group_id in ids]
    assert ("", "", 0) == tuple(first.fields[name] for name in ("groupName", "owner", "members"))
    assert 200 == (await caller.get(f"/v1/groups/{ids[0]}")).status


@pytest.mark.parametrize("server", ["valkey", "valkey_cluster"])
async def test_ten_thousand_members_in_one_call(
    request: pytest.FixtureRequest, http: aiohttp.ClientSession, namespace: str, server: str
) -> None:
    """Made with them, seen page by page, added to, taken out in one call; on one server and on a cluster."""
    url = request.getfixturevalue(server).url
    async with running_dispatcher(url, namespace) as dispatcher:
        await dispatcher.until("ready")
        caller = Caller(http, dispatcher.url)
        made = await call(caller, "POST", "/v1/groups", {"groupId": "team", "members": MANY})
        assert (201, 10_000, []) == (made.status, made.fields["members"], made.fields["refused"])
        pages = await all_members(caller)
        assert sorted(MANY) == sorted(member for page in pages for member in page)
        assert max(map(len, pages)) <= 1000
        others = [f"other-{number}" for number in range(10_000)]
        added = await call(caller, "POST", MEMBERS, {"members": others})
        assert (10_000, []) == (added.fields["changed"], added.fields["refused"])
        removed = await call(caller, "DELETE", MEMBERS, {"members": MANY})
        assert (200, 10_000) == (removed.status, removed.fields["changed"])
        assert sorted(others) == sorted(member for page in await all_members(caller) for member in page)
        assert 10_000 == (await call(caller, "DELETE", TEAM)).fields["changed"]


async def test_who_cannot_become_a_member_is_refused(
    valkey: LocalValkey, http: aiohttp.ClientSession, namespace: str
) -> None:
    """With the reason, in the order named; the others join all the same."""
    limits = {"PUSH_GROUP_MEMBERS": "3", "PUSH_CLIENT_GROUPS": "1"}
    async with running_dispatcher(valkey.url, namespace, **limits) as dispatcher:
        await dispatcher.until("ready")
        caller = Caller(http, dispatcher.url)
        await make(caller, "alice", group_id="first")
        made = await call(caller, "POST", "/v1/groups", {"groupId": "team", "members": ["alice", "bob"]})
        crowded = {"clientId": "alice", "reason": "in 1 groups, more are not allowed"}
        assert (201, 1, [crowded]) == (made.status, made.fields["members"], made.fields["refused"])
        added = await call(caller, "POST", MEMBERS, {"members": ["carol", "dave"]})
        assert (200, 2, []) == (added.status, added.fields["changed"], added.fields["refused"])
        added = await call(caller, "POST", MEMBERS, {"members": ["bob", "erin", "frank"]})
        full = [
            {"clientId": name, "reason": "the group has 3 members, more it cannot have"} for name in ("erin", "frank")
        ]
        assert (200, 0, full) == (added.status, added.fields["changed"], added.fields["refused"])
        many = await call(caller, "POST", "/v1/groups", {"members": ["a", "b", "c", "d"]})
        assert "at most 3" in assert_problem(many, 400, "bad_request", "members")


async def test_leaving_by_the_query(caller: Caller) -> None:
    """For HTTP clients that send no body with DELETE; it may be repeated, and go with a body."""
    await make(caller, "a", "b", "c:1@x", "d")
    removed = await caller.request("DELETE", f"{MEMBERS}?clientId=a&clientId=c%3A1%40x")
    assert (200, 2) == (removed.status, removed.fields["changed"])
    assert 1 == (await call(caller, "DELETE", f"{MEMBERS}?clientId=d", {"members": ["a"]})).fields["changed"]
    assert [["b"]] == await all_members(caller)


# -- bad input -----------------------------------------------------------------------------------------------------


BAD_INPUT: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/groups", {"groupId": "a b"}, "groupId"),
    ("POST", "/v1/groups", {"groupId": "*"}, "groupId"),
    ("POST", "/v1/groups", {"groupId": ""}, "groupId"),
    ("POST", "/v1/groups", {"groupId": 7}, "groupId"),
    ("POST", "/v1/groups", {"groupName": "a\u0000"}, "groupName"),
    ("POST", "/v1/groups", {"groupName": "x" * 129}, "groupName"),
    ("POST", "/v1/groups", {"owner": "a b"}, "owner"),
    ("POST", "/v1/groups", {"members": ["a", "b", "c", "d e"]}, "members[3]"),
    ("POST", "/v1/groups", {"members": ["a", None]}, "members[1]"),
    ("POST", "/v1/groups", {"members": "a"}, "members"),
    ("POST", "/v1/groups", {"members": [*MANY, "one"]}, "members"),
    ("POST", "/v1/groups", {"member": []}, "member"),
    ("PATCH", TEAM, {"groupName": "\u2028"}, "groupName"),
    ("PATCH", TEAM, {}, "groupName"),
    ("POST", MEMBERS, {}, "members"),
    ("POST", MEMBERS, {"members": ["good", ""]}, "members[1]"),
    ("POST", MEMBERS, {"members": [*MANY, "one"]}, "members"),
    ("DELETE", MEMBERS, None, "members"),
    ("DELETE", MEMBERS, {"members": ["alice", "é"]}, "members[1]"),
    ("DELETE", f"{MEMBERS}?clientId=alice&clientId=a+b", None, "clientId[1]"),
    ("GET", f"{MEMBERS}?limit=0", None, "limit"),
    ("GET", f"{MEMBERS}?limit=1001", None, "limit"),
    ("GET", f"{MEMBERS}?limit=many", None, "limit"),
    ("GET", f"{MEMBERS}?cursor=x", None, "cursor"),
]


async def test_bad_input_names_its_field(caller: Caller, site: Site) -> None:
    """400 with the path of what is wrong, and nothing is done."""
    await make(caller, "alice")
    before = sorted([key async for key in site.store.redis.scan_iter(f"{site.namespace}:*audience*")])
    for method, path, body, field in BAD_INPUT:
        detail = assert_problem(await call(caller, method, path, body), 400, "bad_request", field)
        assert detail.startswith(f"{field}: ")
    assert before == sorted([key async for key in site.store.redis.scan_iter(f"{site.namespace}:*audience*")])
    assert [["alice"]] == await all_members(caller)
    assert "" == (await caller.get(TEAM)).fields["groupName"]


async def test_an_unknown_group_is_not_found(caller: Caller) -> None:
    """Whatever is asked of it, also under a name that no group can have."""
    for group_id in ("nothing", "*", "a%20b", "a%2Fb", "%E4%B8%AD"):
        path = f"/v1/groups/{group_id}"
        for method, where, body in (
            ("GET", path, None),
            ("PATCH", path, {"groupName": "x"}),
            ("DELETE", path, None),
            ("GET", f"{path}/members", None),
            ("POST", f"{path}/members", {"members": ["a"]}),
            ("DELETE", f"{path}/members", {"members": ["a"]}),
        ):
            assert_problem(await call(caller, method, where, body), 404, "not_found")


async def test_a_group_that_is_there_is_not_made_again(caller: Caller, site: Site) -> None:
    """409, and it stays as it is; so while a delete of it is half done, until that is asked for again."""
    await make(caller, "alice")
    again = {"groupId": "team", "groupName": "other", "members": ["bob"]}
    assert "exists" in assert_problem(await call(caller, "POST", "/v1/groups", again), 409, "wrong_state")
    group = (await caller.get(TEAM)).fields
    assert ("", 1) == (group["groupName"], group["members"])
    await site.store.redis.hdel(site.store.keys.audience("team")[0], "created")
    assert_problem(await caller.get(TEAM), 404, "not_found")
    assert "delete it again" in assert_problem(await call(caller, "POST", "/v1/groups", again), 409, "wrong_state")
    assert 200 == (await call(caller, "DELETE", TEAM)).status
    assert 201 == (await call(caller, "POST", "/v1/groups", again)).status


async def test_without_redis_it_says_so(private_valkey: LocalValkey, http: aiohttp.ClientSession) -> None:
    """503, and the same call again does what is left."""
    async with running_dispatcher(private_valkey.url, "t") as dispatcher:
        caller = Caller(http, dispatcher.url)
        await dispatcher.until("ready")
        await make(caller, "alice")
        private_valkey.kill()
        assert_problem(await call(caller, "POST", MEMBERS, {"members": ["bob"]}), 503, "store_unavailable")
        await private_valkey.restart()
        assert 1 == (await call(caller, "POST", MEMBERS, {"members": ["bob"]})).fields["changed"]


async def test_scopes(site: Site, valkey: LocalValkey, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """`read` sees, `send` changes, `admin` does both, `broadcast` neither."""
    scopes = ("read", "send", "admin", "broadcast")
    keys = [{"name": scope, "key": f"{scope}-key", "scopes": [scope]} for scope in scopes]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(tmp_path / "keys.json")}
    async with running_dispatcher(valkey.url, site.namespace, **environ) as dispatcher:
        await dispatcher.until("ready")
        statuses = []
        for scope in scopes:
            caller = Caller(http, dispatcher.url, f"{scope}-key")
            body = json.dumps({"groupId": scope, "members": ["a"]}).encode()
            headers = {"X-API-Key": f"{scope}-key"}
            changes = [(await caller.post("/v1/groups", body)).status]
            path = f"/v1/groups/{scope if scope in ('send', 'admin') else 'send'}"
            for method, where, data in (
                ("PATCH", path, b'{"groupName":"x"}'),
                ("POST", f"{path}/members", b'{"members":["b"]}'),
                ("DELETE", f"{path}/members", b'{"members":["b"]}'),
            ):
                changes.append((await caller.request(method, where, data=data, headers=headers)).status)
            sees = [(await caller.get(where)).status for where in (path, f"{path}/members")]
            statuses.append((scope, changes, sees))
        assert [
            ("read", [403] * 4, [404] * 2),
            ("send", [201, 200, 200, 200], [403] * 2),
            ("admin", [201, 200, 200, 200], [200] * 2),
            ("broadcast", [403] * 4, [403] * 2),
        ] == statuses
        reader = {"headers": {"X-API-Key": "read-key"}}
        assert_problem(await caller.request("DELETE", "/v1/groups/send", **reader), 403, "forbidden")
        assert 200 == (await caller.request("GET", "/v1/groups/send", **reader)).status
        assert_problem(await call(Caller(http, dispatcher.url), "DELETE", "/v1/groups/send"), 401, "unauthorized")


async def test_the_document_tells_of_them(caller: Caller) -> None:
    """Paths with their methods, and what stands in a query."""
    document = json.loads((await caller.get("/openapi.json")).text)
    paths = document["paths"]
    assert {"post"} == set(paths["/v1/groups"])
    assert {"get", "patch", "delete"} == set(paths["/v1/groups/{groupId}"])
    members = paths["/v1/groups/{groupId}/members"]
    assert {"get", "post", "delete"} == set(members)
    places = {(one["name"], one["in"]) for one in members["get"]["parameters"]}
    assert {("groupId", "path"), ("cursor", "query"), ("limit", "query")} == places
    assert {"201", "400", "401", "403", "408", "409", "413", "429", "503"} == set(
        paths["/v1/groups"]["post"]["responses"]
    )


# -- member lines --------------------------------------------------------------------------------------------------


async def told(node: FakeNode, count: int) -> list[str]:
    """The sessionIds of the first member lines, sorted."""
    lines = await node.until("member", count)
    assert {(FAR, 0)} == {(line.expires_ms, line.place) for line in lines}
    assert {"sessionId"} == {name for line in lines for name in line.fields}
    return sorted(line.fields["sessionId"] for line in lines)


async def test_nodes_are_told_of_every_change(caller: Caller, site: Site) -> None:
    """A line for each session of whoever joins or leaves, on its node's topic; none where nothing changed."""
    near, far = await site.node(), await site.node()
    first, second = sorted([await near.connect("alice"), await near.connect("alice")])
    other, carol = await far.connect("alice"), await near.connect("carol")
    await make(caller, "alice", "bob")  # 1
    assert ([first, second], [other]) == (await told(near, 2), await told(far, 1))
    for method in ("POST", "POST", "DELETE", "DELETE"):  # 2 and 3, each with one that changes nothing
        await call(caller, method, MEMBERS, {"members": ["carol", "bob"]})
    await call(caller, "DELETE", TEAM)  # 4
    assert sorted([first, first, second, second, carol, carol]) == await told(near, 6)
    assert [other, other] == await told(far, 2)
    await make(caller, "carol")
    assert 7 == len(await told(near, 7))
    assert 2 == len(far.lines)


async def test_a_node_that_started_a_moment_ago_is_told(caller: Caller, site: Site) -> None:
    """The table of nodes is read again for it."""
    await make(caller)
    for number in range(5):
        node = await site.node()
        session_id = await node.connect(f"c{number}")
        await call(caller, "POST", MEMBERS, {"members": [f"c{number}"]})
        assert [session_id] == await told(node, 1)


async def test_sessions_of_dead_nodes_and_lost_topics_stop_nobody(caller: Caller, site: Site) -> None:
    """Members all the same; those on live nodes are told."""
    dead, without_topic, live = site.silent_node(), site.silent_node(), await site.node()
    await without_topic.lease()
    await dead.connect("alice")
    await without_topic.connect("bob")
    session_id = await live.connect("carol")
    made = await call(caller, "POST", "/v1/groups", {"groupId": "team", "members": ["alice", "bob", "carol"]})
    assert (201, 3) == (made.status, made.fields["members"])
    assert [session_id] == await told(live, 1)


async def test_many_sessions_are_told(caller: Caller, site: Site) -> None:
    """Two thousand on one node, in one call."""
    node = await site.node()
    sessions = sorted([await node.connect(client_id) for client_id in MANY[:2000]])
    await make(caller, *MANY)
    assert sessions == await told(node, 2000)
