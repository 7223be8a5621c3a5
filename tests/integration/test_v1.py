"""The paths under /v1 as a caller sees them: routing, keys and scopes, problems; nodes and drains without a gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from yarl import URL

from dispatcher.callers import Callers
from dispatcher.v1 import V1, Call, Operation, Reply
from pushfleet.local_valkey import LocalValkey
from shared.errors import PushfleetError
from shared.registry import DrainRequest, DrainState
from tests.harness.dispatcher import Answer, Caller, Site, running_dispatcher

NODE = "10.0.0.7:9000"
PATH = f"/v1/nodes/{NODE}/drain"


def fields(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.text)
    return found


def assert_problem(answer: Answer, status: int, code: str) -> str:
    """RFC 9457: media type, the standard members, ours; gives the detail."""
    assert (status, "application/problem+json") == (answer.status, answer.headers["Content-Type"])
    problem = fields(answer)
    assert {"type", "title", "status", "detail", "code"} <= set(problem)
    assert ("about:blank", status, code) == (problem["type"], problem["status"], problem["code"])
    return str(problem["detail"])


async def requested(site: Site) -> DrainRequest | None:
    """What the node would be told."""
    told = await site.store.redis.get(site.store.keys.drain(NODE))
    return None if told is None else msgspec.json.decode(told, type=DrainRequest)


# -- nodes and drains ----------------------------------------------------------------------------------------------


async def test_nodes_are_listed_with_their_drains(caller: Caller, site: Site) -> None:
    """All that live, by name, as their leases say; a node that has just started is there."""
    assert {"nodes": []} == fields(await caller.get("/v1/nodes"))
    drain = DrainState("signal", 12.5, 100, 40)
    await site.silent_node("10.0.0.8:9000", "e8").lease(connections=40, weight=2, draining=True, drain=drain)
    await site.silent_node(NODE, "e7").lease(connections=3)
    serving = {"nodeId": NODE, "epoch": "e7", "url": f"ws://{NODE}/websocket", "connections": 3, "weight": 1}
    draining = {"nodeId": "10.0.0.8:9000", "epoch": "e8", "url": "ws://10.0.0.8:9000/websocket", "connections": 40}
    answer = await caller.get("/v1/nodes")
    assert (200, "application/json") == (answer.status, answer.headers["Content-Type"])
    assert [
        {**serving, "state": "serving", "drain": None},
        {
            **draining,
            "weight": 2,
            "state": "draining",
            "drain": {"by": "signal", "seconds": 12.5, "sessions": 100, "left": 40},
        },
    ] == fields(answer)["nodes"]


async def test_a_drain_is_asked_for_and_taken_back(caller: Caller, site: Site) -> None:
    """202 when something changes, 200 when not; the request is for the epoch that the node has."""
    await site.silent_node(NODE, "e7").lease()
    asked = await caller.post(PATH, b'{"seconds":30}')
    request = await requested(site)
    assert request is not None
    assert (202, "e7", 30) == (asked.status, request.epoch, request.seconds)
    assert (NODE, "serving") == (fields(asked)["nodeId"], fields(asked)["state"])  # it has not noticed yet
    assert 200 == (await caller.post(PATH, b'{"seconds":5}')).status
    assert request == await requested(site)
    withdrawn = [(await caller.request("DELETE", PATH)).status for _ in range(2)]
    assert ([202, 200], None) == (withdrawn, await requested(site))
    assert 202 == (await caller.post(PATH, b"")).status
    request = await requested(site)
    assert request is not None
    assert None is request.seconds


async def test_a_drain_by_signal_cannot_be_taken_back(caller: Caller, site: Site) -> None:
    """409 that says why; asking for what happens anyway is no error."""
    await site.silent_node(NODE, "e7").lease(draining=True, drain=DrainState("signal", 10.0, 2, 1))
    asked = await caller.post(PATH, b"{}")
    assert (200, "signal") == (asked.status, fields(asked)["drain"]["by"])
    assert "told to end" in assert_problem(await caller.request("DELETE", PATH), 409, "wrong_state")


async def test_a_node_that_does_not_live_is_not_found(caller: Caller, site: Site) -> None:
    """Nothing is left for a node that may come one day."""
    for answer in (await caller.post(PATH, b"{}"), await caller.request("DELETE", PATH)):
        assert NODE in assert_problem(answer, 404, "not_found")
    assert None is await requested(site)


async def test_an_ipv6_node_is_found_whichever_way_it_is_written(caller: Caller, site: Site) -> None:
    """With its brackets as they are, or percent-encoded."""
    await site.silent_node("[2001:db8::7]:9000", "e7").lease()
    for written in ("[2001:db8::7]:9000", "%5B2001%3Adb8%3A%3A7%5D%3A9000"):
        answer = await caller.post(f"/v1/nodes/{written}/drain", b"{}")
        assert "[2001:db8::7]:9000" == fields(answer)["nodeId"]


# -- what all paths share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"seconds":-1}', "seconds"),
        (b'{"seconds":3601}', "seconds"),
        (b'{"seconds":"soon"}', "seconds"),
        (b'{"second":1}', "second"),
        (b"[]", "the body"),
        (b"{", None),
        (b'{"seconds":"\xff"}', None),
        (b"[" * 100, None),
    ],
)
async def test_a_bad_body_names_its_field(caller: Caller, site: Site, body: bytes, field: str | None) -> None:
    """400, and nothing is asked for."""
    await site.silent_node(NODE, "e7").lease()
    answer = await caller.post(PATH, body)
    assert_problem(answer, 400, "bad_request")
    assert field == fields(answer).get("field")
    assert None is await requested(site)


async def test_scopes(site: Site, valkey: LocalValkey, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    """`read` sees, `admin` acts, a key without them does neither, nobody without a key."""
    keys = [
        {"name": name, "key": f"{name}-key", "scopes": [scope]}
        for name, scope in (("audit", "read"), ("ops", "admin"), ("billing", "send"))
    ]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    environ = {"PUSH_AUTH": "jwt", "PUSH_API_KEYS": str(tmp_path / "keys.json")}
    async with running_dispatcher(valkey.url, site.namespace, **environ) as dispatcher:
        await dispatcher.until("ready")
        await site.silent_node(NODE, "e7").lease()
        audit, ops, billing = (Caller(http, dispatcher.url, f"{name}-key") for name in ("audit", "ops", "billing"))
        assert [200, 200] == [(await one.get("/v1/nodes")).status for one in (audit, ops)]
        assert "'read'" in assert_problem(await billing.get("/v1/nodes"), 403, "forbidden")
        for one in (audit, billing):
            assert "'admin'" in assert_problem(await one.post(PATH, b"{}"), 403, "forbidden")
        assert None is await requested(site)
        assert 202 == (await ops.post(PATH, b"{}")).status
        line = await dispatcher.until("drain_asked")
        nobody = await Caller(http, dispatcher.url).get("/v1/nodes")
    assert (NODE, "ops") == (line["node_id"], line["caller"])
    assert_problem(nobody, 401, "unauthorized")
    assert "Bearer" == nobody.headers["WWW-Authenticate"]


async def test_a_path_or_method_that_is_not_there(caller: Caller) -> None:
    """404; 405 with the methods that are. Outside of /v1 the answer has four fields as ever."""
    for path in ("/v1/nothing", "/v1/nodes/", "/v1/nodes//drain", "/v1/nodes/a/drain/b", "/v1/"):
        assert_problem(await caller.get(path), 404, "not_found")
    answer = await caller.get(PATH)
    assert_problem(answer, 405, "method_not_allowed")
    assert "POST, DELETE" == answer.headers["Allow"]
    for path, status in (("/v1", 404), ("/nothing", 404), ("/message/send", 405)):
        answer = await caller.get(path)
        assert (status, status, False) == (answer.status, answer.fields["statusCode"], answer.fields["success"])


async def test_without_redis_it_says_so(private_valkey: LocalValkey, http: aiohttp.ClientSession) -> None:
    """503 with Retry-After, as a problem."""
    async with running_dispatcher(private_valkey.url, "t") as dispatcher:
        caller = Caller(http, dispatcher.url)
        await dispatcher.until("ready")
        private_valkey.kill()
        for answer in (await caller.get("/v1/nodes"), await caller.post(PATH, b"{}")):
            assert_problem(answer, 503, "store_unavailable")
            assert int(answer.headers["Retry-After"]) > 0


async def test_the_document_tells_of_them(caller: Caller) -> None:
    """Paths, parameters, bodies, answers and problems."""
    document = json.loads((await caller.get("/openapi.json")).text)
    drain = document["paths"]["/v1/nodes/{nodeId}/drain"]
    assert {"post", "delete"} == set(drain)
    assert ["nodeId"] == [parameter["name"] for parameter in drain["delete"]["parameters"]]
    assert {"200", "202", "400", "401", "403", "404", "409", "429", "503"} == set(drain["delete"]["responses"])
    assert "requestBody" in drain["post"]
    assert ["application/problem+json"] == list(drain["post"]["responses"]["404"]["content"])


# -- the lookup of paths -------------------------------------------------------------------------------------------


class Found(msgspec.Struct):
    """Which operation it was, and with which parameters."""

    name: str
    params: dict[str, str]


def operation(method: str, path: str) -> Operation[None]:
    name = f"{method} {path}"

    async def run(call: Call[None]) -> Reply:
        return Reply(Found(name, dict(call.params)))

    return Operation(method, path, ("read",), name, "", run, Found)


OPERATIONS = [
    operation("GET", "/v1/clients/{clientId}"),
    operation("DELETE", "/v1/clients/{clientId}/sessions"),
    operation("POST", "/v1/clients/online"),
    operation("DELETE", "/v1/groups/{groupId}/members/{clientId}"),
]


@pytest.mark.parametrize(
    ("method", "path", "found", "params"),
    [
        ("GET", "/v1/clients/a", 0, {"clientId": "a"}),
        ("DELETE", "/v1/clients/a/sessions", 1, {"clientId": "a"}),
        ("POST", "/v1/clients/online", 2, {}),
        ("GET", "/v1/clients/online", 0, {"clientId": "online"}),
        ("DELETE", "/v1/clients/online/sessions", 1, {"clientId": "online"}),
        ("DELETE", "/v1/groups/a%2Fb/members/%E4%B8%AD", 3, {"groupId": "a/b", "clientId": "中"}),
        ("POST", "/v1/clients/a", "method_not_allowed", {}),
        ("PUT", "/v1/clients/online", "method_not_allowed", {}),
        ("GET", "/v1/clients", "not_found", {}),
        ("GET", "/v1/clients/a/sessions/b", "not_found", {}),
    ],
)
async def test_a_path_leads_to_its_operation(
    serve_v1: Callable[[str, str], Awaitable[Found | str]],
    method: str,
    path: str,
    found: int | str,
    params: dict[str, str],
) -> None:
    """Fixed segments before parameters, but no name of a client hides another path; parameters are decoded."""
    answer = await serve_v1(method, path)
    expected = Found(OPERATIONS[found].name, params) if isinstance(found, int) else found
    assert expected == answer


@pytest.fixture
async def serve_v1() -> AsyncIterator[Callable[[str, str], Awaitable[Found | str]]]:
    """Ask a V1 with `OPERATIONS` over HTTP: what was found, or the code of the error."""
    anybody = Callers(None)

    async def no_body(_: web.BaseRequest) -> bytes:
        return b""

    v1 = V1(OPERATIONS, lambda _: anybody.identify(""), no_body)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await v1.answer(request)
        except PushfleetError as error:
            return web.json_response(error.code, status=error.status)

    server = web.ServerRunner(web.Server(handler))
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    host, port = server.addresses[0][:2]

    async with aiohttp.ClientSession() as http:

        async def ask(method: str, path: str) -> Found | str:
            url = URL(f"http://{host}:{port}{path}", encoded=True)
            async with http.request(method, url) as answer:
                fields = await answer.json()
                return msgspec.convert(fields, Found) if answer.status == 200 else str(fields)

        yield ask
    await server.cleanup()


def test_two_names_for_one_parameter_are_refused() -> None:
    """So is an operation that is there twice: both would hide something."""
    for path, method in (("/v1/clients/{id}/x", "GET"), ("/v1/clients/{clientId}", "GET")):
        with pytest.raises(ValueError, match="/v1/clients"):
            V1([*OPERATIONS, operation(method, path)], lambda _: pytest.fail("asked"), lambda _: pytest.fail("read"))
