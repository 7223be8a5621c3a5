"""The dispatcher's HTTP interface as the commands call it: one answer of four fields, or a reason why there is none."""

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


def auth_headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


async def post_send(dispatcher: str, body: bytes, api_key: str | None) -> Answer:
    """`POST /message/send`. Raises NoAnswer."""
    return await _ask("POST", f"{dispatcher.rstrip('/')}/message/send", api_key, body)


async def get_node(dispatcher: str, client_id: str, api_key: str | None) -> Answer:
    """`GET /server/get`: the node a client should connect to, as content {"nodeId", "url"}. Raises NoAnswer."""
    query = urlencode({"clientId": client_id})
    return await _ask("GET", f"{dispatcher.rstrip('/')}/server/get?{query}", api_key)


async def _ask(method: str, url: str, api_key: str | None, body: bytes | None = None) -> Answer:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    headers |= auth_headers(api_key)
    timeout = aiohttp.ClientTimeout(total=_DEADLINE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, data=body, headers=headers) as response,
        ):
            text = await response.text()
            return _answer(url, response.status, text, response.headers.get("Retry-After", ""))
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
