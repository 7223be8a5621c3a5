"""
The dispatcher's HTTP interface as the commands call it: one answer of four fields, under /v1 JSON or a problem; or a
reason why there is no answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson

DEFAULT_URL = "http://127.0.0.1:8080"
_DEADLINE_S = 15.0


class NoAnswer(Exception):
    """Nobody answered, or not as a dispatcher does; the text says what to look at."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The four fields, and the text they came in."""

    success: bool
    status_code: int
    content: Any
    msg: str
    text: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class V1Answer:
    """The JSON of an answer; where the request failed `problem` says why, else it is ""."""

    status: int
    body: Any
    problem: str


def auth_headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


async def post_send(dispatcher: str, body: bytes, api_key: str | None) -> Answer:
    """`POST /message/send`. Raises NoAnswer."""
    return await _ask("POST", f"{dispatcher.rstrip('/')}/message/send", api_key, body)


async def get_node(dispatcher: str, client_id: str, api_key: str | None) -> Answer:
    """`GET /server/get`: the node a client should connect to, as content {"nodeId", "url"}. Raises NoAnswer."""
    query = urlencode({"clientId": client_id})
    return await _ask("GET", f"{dispatcher.rstrip('/')}/server/get?{query}", api_key)


async def ask_v1(method: str, dispatcher: str, path: str, api_key: str | None, body: object | None = None) -> V1Answer:
    """`path` begins with /v1; `body` becomes JSON. Raises NoAnswer."""
    url = dispatcher.rstrip("/") + path
    status, text, _ = await _exchange(method, url, api_key, None if body is None else orjson.dumps(body))
    try:
        fields = orjson.loads(text)
        return V1Answer(status, fields, str(fields["detail"]) if status >= 400 else "")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise NoAnswer(f"{url} answered {status}, but not as a dispatcher does; is this its address?") from None


async def _ask(method: str, url: str, api_key: str | None, body: bytes | None = None) -> Answer:
    return _answer(url, *await _exchange(method, url, api_key, body))


async def _exchange(method: str, url: str, api_key: str | None, body: bytes | None) -> tuple[int, str, str]:
    """Status, text, Retry-After. Raises NoAnswer."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    headers |= auth_headers(api_key)
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, data=body, headers=headers) as response,
        ):
            text = await response.text()
            return response.status, text, response.headers.get("Retry-After", "")
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error, aiohttp.InvalidURL):
            raise NoAnswer(f"{url} is not a URL; expected something like {DEFAULT_URL}") from None
        reason = str(error) or f"no answer within {_DEADLINE_S:g} s"
        raise NoAnswer(f"the dispatcher does not answer ({reason}); `pushfleet dev` starts one") from None


def _answer(url: str, status: int, text: str, retry_after: str) -> Answer:
    try:
        fields = orjson.loads(text)
        success, status_code, msg = bool(fields["success"]), int(fields["statusCode"]), str(fields["msg"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise NoAnswer(f"{url} answered {status}, but not as a dispatcher does; is this its address?") from None
    seconds = float(retry_after) if retry_after.isdecimal() else 0.0
    return Answer(success, status_code, fields.get("content"), msg, text, seconds)
