"""
Pages of a set, and the cursors that name them: `s` and where SSCAN goes on, on which server; or `b` and the member
behind which a small set goes on in the alphabet. "" is the first page, and what follows the last.

Whoever is in the set all the while is on a page, also when Redis is restarted or another server takes over in between:
then the pages begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from shared.errors import BadRequest

PAGE = Path(__file__).parent / "lua" / "page.lua"
_CURSOR = re.compile(r"s([0-9]{1,20}(?:\.[0-9a-f]{8})?)|b([A-Za-z0-9._\-:@]{1,128})")


def read_cursor(cursor: str) -> tuple[str, str]:
    """Where the scan goes on, and behind which member. Raises BadRequest for a cursor that is none."""
    match = _CURSOR.fullmatch(cursor or "s0")
    if match is None or int((match[1] or "0").partition(".")[0]) >= 1 << 64:
        raise BadRequest("no cursor of a page", field="cursor")
    return match[1] or "0", match[2] or ""


def read_page(answer: Sequence[bytes]) -> tuple[list[str], str]:
    """The members of a page and the cursor of the next, from a script's answer."""
    scan, last, *found = (part.decode() for part in answer)
    return found, f"b{last}" if last else f"s{scan}" if scan else ""
