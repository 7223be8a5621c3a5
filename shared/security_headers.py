"""
Headers that plain HTTP answers of both roles have, against what a browser might make of them. Pure.

No answer is a page: nothing may be guessed to be one, run, framed or kept (OWASP's list of secure headers).
"""

from __future__ import annotations

from typing import Final

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
