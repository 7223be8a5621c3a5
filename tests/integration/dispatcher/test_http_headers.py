"""What every answer of the HTTP port carries, and which pages of other origins may read it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from multidict import CIMultiDictProxy

from dispatcher.app import Dispatcher
from dispatcher.settings import DispatcherSettings
from pushfleet.local_valkey import LocalValkey
from shared.security_headers import SECURITY_HEADERS
from shared.settings import load
from tests.harness.dispatcher import running_dispatcher

pytestmark = pytest.mark.asyncio(loop_scope="module")
SEND = '{"to":"alice","msg":1}'
PAGE = "https://console.example.com"
STRANGE = (
    "https://evil.example",
    "http://console.example.com",
    "https://a.b.example.com",
    "null",
    "https://ü.example.com",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(valkey: LocalValkey) -> AsyncIterator[str]:
    """The URL of a dispatcher as it comes."""
    async with running_dispatcher(valkey.url, "headers-plain") as running:
        await running.until("ready")
        yield running.url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cross(valkey: LocalValkey) -> AsyncIterator[str]:
    """Of one that lets pages read."""
    origins = "https://app.example.org, https://*.example.com"
    async with running_dispatcher(valkey.url, "headers-cors", PUSH_CORS_ORIGINS=origins) as running:
        await running.until("ready")
        yield running.url


async def ask(
    url: str, method: str, path: str, body: str | None = None, **headers: str
) -> tuple[int, CIMultiDictProxy[str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as http, http.request(method, url + path, data=body, headers=named) as answer:
        await answer.read()
        return answer.status, answer.headers


def cors_of(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith("access-control-")}


# -- security headers ------------------------------------------------------------------------------------------------


async def test_every_operation_answers_with_them(plain: str) -> None:
    """All that is served, whatever the answer: nothing is sniffed or kept, and no version is told."""
    dispatcher = Dispatcher(load(DispatcherSettings, {"PUSH_AUTH": "off"}))
    for method, path in dispatcher.api.paths():
        for body in (None, SEND, "["):
            _, headers = await ask(plain, method, path.replace("{", "").replace("}", ""), body)
            assert ("nosniff", "no-store") == (headers["X-Content-Type-Options"], headers["Cache-Control"])
            assert "pushfleet" == headers.get("Server", "pushfleet")
    await dispatcher.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nodes"), ("GET", "/v1/none"), ("GET", "/openapi.json"), ("GET", "/none"), ("PUT", "/healthz")],
)
async def test_no_answer_is_a_page(plain: str, method: str, path: str) -> None:
    """/v1, the document and errors also say that nothing in them is to be run or framed."""
    _, headers = await ask(plain, method, path)
    assert SECURITY_HEADERS == {name: headers.get(name) for name in SECURITY_HEADERS}


# -- CORS ------------------------------------------------------------------------------------------------------------


async def test_by_default_no_page_may_read(plain: str) -> None:
    """Nothing of CORS is in any answer, and a preflight is a method that is not there."""
    for method, path in (("POST", "/message/send"), ("GET", "/v1/nodes"), ("OPTIONS", "/message/send")):
        body = SEND if method == "POST" else None
        status, headers = await ask(plain, method, path, body, Origin=PAGE, Access_Control_Request_Method="POST")
        assert {} == cors_of(headers)
        assert (405 if method == "OPTIONS" else 200) == status


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/message/send", SEND), ("POST", "/message/send", "["), ("GET", "/v1/nodes", None), ("GET", "/no", None)],
)
@pytest.mark.parametrize("origin", [PAGE, "https://app.example.org", "HTTPS://Console.Example.Com"])
async def test_an_allowed_page_may_read(cross: str, method: str, path: str, body: str | None, origin: str) -> None:
    """The answer names its origin and no other, errors too, and lets it see the ids; never with credentials."""
    _, headers = await ask(cross, method, path, body, Origin=origin)
    exposed = "X-Request-Id, X-Message-Id, Retry-After"
    assert {"access-control-allow-origin": origin, "access-control-expose-headers": exposed} == cors_of(headers)
    assert "Origin" == headers["Vary"]


@pytest.mark.parametrize("origin", STRANGE)
async def test_any_other_page_may_not(cross: str, origin: str) -> None:
    """It gets what it would get without CORS; a cache is told that it depends on the origin."""
    for method, path in (("POST", "/message/send"), ("GET", "/v1/nodes")):
        body = SEND if method == "POST" else None
        status, headers = await ask(cross, method, path, body, Origin=origin)
        assert (200, {}, "Origin") == (status, cors_of(headers), headers["Vary"])
    status, headers = await ask(cross, "OPTIONS", "/v1/nodes", Origin=origin, Access_Control_Request_Method="GET")
    assert (405, {}) == (status, cors_of(headers))


async def test_a_preflight_is_answered(cross: str) -> None:
    """For an allowed origin, without a key as browsers send none; an OPTIONS that is no preflight is not."""
    asked = {"Origin": PAGE, "Access_Control_Request_Method": "DELETE", "Access_Control_Request_Headers": "x-api-key"}
    for path in ("/message/send", "/v1/nodes/x/drain"):
        status, headers = await ask(cross, "OPTIONS", path, **asked)
        assert 204 == status
        assert {
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": "GET, POST, PATCH, DELETE",
            "access-control-allow-headers": "Authorization, Content-Type, X-API-Key",
            "access-control-expose-headers": "X-Request-Id, X-Message-Id, Retry-After",
            "access-control-max-age": "600",
        } == cors_of(headers)
        assert "nosniff" == headers["X-Content-Type-Options"]
    assert 405 == (await ask(cross, "OPTIONS", "/message/send", Origin=PAGE))[0]
