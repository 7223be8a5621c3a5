"""
Cross-origin requests (CORS, the Fetch standard section 3.2): which pages of other origins may read answers.

None, unless PUSH_CORS_ORIGINS names some. Then a preflight of such an origin is answered here, and answers to it name
it; others get what they get without CORS, and their browser keeps it from them. `*` and credentials are never allowed:
a caller's key or token is put into a header by who holds it, and never by the browser.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from shared.origins import is_allowed

_METHODS = "GET, POST, PATCH, DELETE"
_HEADERS = "Authorization, Content-Type, X-API-Key"
_EXPOSED = "X-Request-Id, X-Message-Id, Retry-After"
_REMEMBER_S = "600"


class Cors:
    """The rules; `origins` are patterns (shared.origins)."""

    __slots__ = ("_origins",)

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = tuple(origins)

    def origin_of(self, request: web.BaseRequest) -> str:
        """The request's origin if it is allowed, else ""."""
        origin = request.headers.get("Origin", "")
        return origin if origin.isascii() and origin.isprintable() and is_allowed(origin, self._origins) else ""

    def preflight(self, request: web.BaseRequest, origin: str) -> web.Response | None:
        """The answer to a preflight of an allowed origin; None when the request is none."""
        if request.method != "OPTIONS" or not origin or "Access-Control-Request-Method" not in request.headers:
            return None
        headers = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _HEADERS,
            "Access-Control-Max-Age": _REMEMBER_S,
        }
        return web.Response(status=204, headers=headers)

    def fields(self, origin: str) -> dict[str, str]:
        """What an answer has besides; `origin` as `origin_of` gave it."""
        if not origin:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }
