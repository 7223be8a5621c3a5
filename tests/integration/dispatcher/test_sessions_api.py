"""/v1/clients and /v1/sessions against nodes that are only leases and routes: who counts, who may ask, bad input."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from pushfleet.local_valkey import LocalValkey
from shared.ids import client_of_session
from shared.keys import partition_of
from shared.registry import Joining
from tests.harness.dispatcher import Answer, Caller, FakeNode, Site, running_dispatcher

pytestmark = pytest.mark.asyncio(loop_scope="module")
Name = Callable[[str], str]
_addresses = itertools.count(1)
SESSION = "10.0.0.9:9000_a_20260101000000000"


def problem(answer: Answer) -> tuple[int, str, str | None]:
    """Status, code and field."""
    assert "application/problem+json" == answer.headers["Content-Type"]
    return answer.status, answer.fields["code"], answer.fields.get("field")


async def fresh_node(site: Site) -> FakeNode:
    """One that lives, at an address that no other test has sessions at."""
    node = dead_node(site)
    await node.lease()
    return node


def dead_node(site: Site) -> FakeNode:
    return site.silent_node(f"10.7.0.{next(_addresses)}:9000")


async def test_a_session_of_a_dead_node_is_not_there(caller: Caller, site: Site, node: FakeNode, name: Name) -> None:
    """Nor one with an epoch that its node had before: neither to look at nor to kick."""
    client_id = name("alice")
    living = await node.connect(client_id)
    dead = await dead_node(site).connect(client_id)
    earlier = await site.silent_node(node.node_id, "earlier").connect(client_id)
    answer = (await caller.get(f"/v1/clients/{client_id}")).fields
    assert [living] == [session["sessionId"] for session in answer["sessions"]]
    for session_id in (dead, earlier):
        for method in ("GET", "DELETE"):
            answered = await caller.request(method, f"/v1/sessions/{session_id}")
            assert (404, "not_found", None) == problem(answered)
    kicked = await caller.request("DELETE", f"/v1/clients/{client_id}/sessions")
    assert {"kicked": 1} == kicked.fields


async def test_a_client_with_dead_sessions_alone_is_offline(caller: Caller, site: Site, name: Name) -> None:
    """Whatever its route says."""
    client_id = name("bob")
    await dead_node(site).connect(client_id)
    answer = await caller.post("/v1/clients/online", json.dumps({"clientIds": [client_id]}).encode())
    assert {"online": {client_id: False}} == answer.fields


async def test_a_thousand_clients_in_one_call(caller: Caller, node: FakeNode, name: Name) -> None:
    """Each is answered."""
    names = [name("many") for _ in range(1000)]
    for client_id in names[::100]:
        await node.connect(client_id)
    answer = await caller.post("/v1/clients/online", json.dumps({"clientIds": names}).encode())
    online = answer.fields["online"]
    assert names == list(online)
    assert names[::100] == [client_id for client_id in names if online[client_id]]


async def test_a_node_that_started_a_moment_ago_counts(caller: Caller, site: Site, name: Name) -> None:
    """Its sessions are there though the table of nodes was read before."""
    node = await fresh_node(site)
    client_id = name("early")
    session_id = await node.connect(client_id)
    assert session_id == (await caller.get(f"/v1/sessions/{session_id}")).fields["sessionId"]
    page = (await caller.get(f"/v1/nodes/{node.node_id}/sessions")).fields
    assert ([session_id], None) == ([session["sessionId"] for session in page["sessions"]], page["cursor"])


async def test_pages_of_a_crowded_partition(caller: Caller, site: Site, name: Name) -> None:
    """So many that Redis gives them slice by slice: each is there, pages are about as long as asked, and end."""
    node = await fresh_node(site)
    crowd = (client_id for number in itertools.count() if partition_of(client_id := f"p{number}") == 7)
    names = list(itertools.islice(crowd, 600))
    stamp = "20260101000000000"
    joining = [Joining(client_id, f"{node.node_id}_{client_id}_{stamp}") for client_id in names]
    await site.registry.register(node.node_id, node.epoch, joining, most=1, most_bytes=1)
    found: list[str] = []
    cursor: str | None = ""
    count = 0
    while cursor is not None:
        page = (await caller.get(f"/v1/nodes/{node.node_id}/sessions", limit="20", cursor=cursor)).fields
        found += [session["clientId"] for session in page["sessions"]]
        assert len(page["sessions"]) <= 40
        cursor, count = page["cursor"], count + 1
    assert set(names) == set(found)
    assert 15 <= count <= 31


async def test_a_page_holds_that_nodes_sessions_alone(caller: Caller, site: Site, name: Name) -> None:
    """Not those that its clients have on others, nor what its index names though it has ended."""
    node, other = await fresh_node(site), await fresh_node(site)
    client_id, gone = name("both"), name("gone")
    here, _ = await node.connect(client_id), await other.connect(client_id)
    ended = await node.connect(gone)
    await site.store.redis.hdel(site.store.keys.route(gone), ended)
    page = (await caller.get(f"/v1/nodes/{node.node_id}/sessions")).fields
    assert [here] == [session["sessionId"] for session in page["sessions"]]


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", "/v1/clients/a%20b", None, "clientId"),
        ("GET", f"/v1/clients/{'a' * 129}", None, "clientId"),
        ("DELETE", "/v1/clients/a%2Fb/sessions", None, "clientId"),
        ("POST", "/v1/clients/online", b"{}", "clientIds"),
        ("POST", "/v1/clients/online", b'{"clientIds":"a"}', "clientIds"),
        ("POST", "/v1/clients/online", b'{"clientIds":["a",""]}', "clientIds[1]"),
        ("POST", "/v1/clients/online", json.dumps({"clientIds": ["a"] * 1001}).encode(), "clientIds"),
        ("POST", "/v1/clients/online", b'{"clientIds":[],"x":1}', "x"),
        ("GET", "/v1/sessions/a", None, "sessionId"),
        ("GET", f"/v1/sessions/{SESSION}0", None, "sessionId"),
        ("DELETE", "/v1/sessions/10.0.0.9:9000_a%20b_20260101000000000", None, "sessionId"),
        ("GET", "/v1/nodes/x/sessions", None, "nodeId"),
        ("GET", "/v1/nodes/10.0.0.1:9000/sessions?limit=0", None, "limit"),
        ("GET", "/v1/nodes/10.0.0.1:9000/sessions?limit=1001", None, "limit"),
        ("GET", "/v1/nodes/10.0.0.1:9000/sessions?limit=ten", None, "limit"),
        ("GET", "/v1/nodes/10.0.0.1:9000/sessions?cursor=64:0", None, "cursor"),
        ("GET", "/v1/nodes/10.0.0.1:9000/sessions?cursor=1", None, "cursor"),
        ("GET", "/v1/nodes/10.0.0.1:9000/sessions?cursor=1:-1", None, "cursor"),
        ("GET", f"/v1/nodes/10.0.0.1:9000/sessions?cursor=1:{1 << 64}", None, "cursor"),
    ],
)
async def test_bad_input_is_named(
    caller: Caller, node: FakeNode, method: str, path: str, body: bytes | None, field: str
) -> None:
    """400 with the field's path."""
    answer = await caller.request(method, path, data=body)
    assert (400, "bad_request", field) == problem(answer)


async def test_a_session_that_is_not_registered(caller: Caller, name: Name) -> None:
    """404, to look at and to kick; a client that nobody knows has none."""
    for method in ("GET", "DELETE"):
        assert (404, "not_found", None) == problem(await caller.request(method, f"/v1/sessions/{SESSION}"))
    kicked = await caller.request("DELETE", f"/v1/clients/{name('nobody')}/sessions")
    assert (200, {"kicked": 0}) == (kicked.status, kicked.fields)


async def test_a_kick_is_a_line_on_the_nodes_topic(caller: Caller, node: FakeNode, name: Name) -> None:
    """It says which session, the code and the reason, and does not expire."""
    client_id = name("carol")
    session_id = await node.connect(client_id)
    await caller.request("DELETE", f"/v1/sessions/{session_id}")
    (line,) = await node.lines_with(f'"sessionId":"{session_id}"')
    assert ("close", {"sessionId": session_id, "code": 4002, "reason": "kicked"}) == (line.kind, line.fields)
    assert line.expires_ms == 9_999_999_999_999


async def test_a_revocation_takes_the_sessions_out(caller: Caller, site: Site, node: FakeNode, name: Name) -> None:
    """At once, also those of nodes that do nothing or are dead; a line says 4001; an old token comes no more."""
    client_id = name("dave")
    session_id = await node.connect(client_id)
    await dead_node(site).connect(client_id)
    other = await node.connect(name("eve"))
    answer = await caller.post(f"/v1/clients/{client_id}/revoke", b"")
    assert (200, 1) == (answer.status, answer.fields["closed"])
    (line,) = await node.lines_with(f'"sessionId":"{session_id}"')
    expected = {"sessionId": session_id, "code": 4001, "reason": "the token was revoked"}
    assert ("close", expected) == (line.kind, line.fields)
    assert set() == await site.routes(client_id)
    assert {other} == await site.routes(client_of_session(other))
    before_s = answer.fields["before"] / 1000
    for issued_s, revoked in ((before_s - 1, True), (before_s, False)):
        joining = [Joining(client_id, session_id, issued_s=issued_s)]
        (joined,) = await site.registry.register(node.node_id, node.epoch, joining, most=1, most_bytes=1)
        assert joined.revoked is revoked


async def test_scopes(valkey: LocalValkey, namespace: str, tmp_path: Path) -> None:
    """`read` sees, `admin` sees and kicks, `send` does neither."""
    keys = [{"name": scope, "key": f"{scope}-key", "scopes": [scope]} for scope in ("read", "admin", "send")]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(tmp_path / "keys.json")}
    reads = [
        ("GET", "/v1/clients/a", None, 200),
        ("POST", "/v1/clients/online", b'{"clientIds":["a"]}', 200),
        ("GET", f"/v1/sessions/{SESSION}", None, 404),
        ("GET", "/v1/nodes/10.0.0.9:9000/sessions", None, 404),
    ]
    kicks = [("DELETE", "/v1/clients/a/sessions", None, 200), ("DELETE", f"/v1/sessions/{SESSION}", None, 404)]
    async with (
        running_dispatcher(valkey.url, namespace, **environ) as dispatcher,
        aiohttp.ClientSession() as http,
    ):
        await dispatcher.until("ready")
        caller = Caller(http, dispatcher.url)

        async def statuses(scope: str, asked: list[tuple[str, str, bytes | None, int]]) -> list[int]:
            headers = {"X-API-Key": f"{scope}-key"}
            answers = [
                await caller.request(method, path, data=body, headers=headers) for method, path, body, _ in asked
            ]
            return [answer.status for answer in answers]

        good, bad = [status for *_, status in (*reads, *kicks)], [403] * 6
        assert good == await statuses("admin", [*reads, *kicks])
        assert good[:4] + bad[:2] == await statuses("read", [*reads, *kicks])
        assert bad == await statuses("send", [*reads, *kicks])
        line = await dispatcher.until("client_kicked")
        document = json.loads((await caller.get("/openapi.json")).text)
    assert ("a", 0, "admin") == (line["client_id"], line["sessions"], line["caller"])
    for method, path in (("delete", "/v1/sessions/{sessionId}"), ("delete", "/v1/clients/{clientId}/sessions")):
        assert "Scope: admin." == document["paths"][path][method]["description"]
    listing = document["paths"]["/v1/nodes/{nodeId}/sessions"]["get"]
    assert "Scope: read or admin." == listing["description"]
    assert ["nodeId", "cursor", "limit"] == [parameter["name"] for parameter in listing["parameters"]]
