"""
JSON text as callers and clients send it: how deep it nests, and msgspec's faults in the project's words. Pure.

`msg` is never decoded, so its depth is counted on the text.
"""

from __future__ import annotations

import re

import msgspec

DEEPEST = 64
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_BRACKET = re.compile(rb"[^\[\]{}]+")


def is_too_deep(text: bytes) -> bool:
    """Whether valid JSON text nests deeper than 64. Text with 64 opening brackets or fewer is not looked at closely."""
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return False
    depth = 0
    for bracket in _NOT_BRACKET.sub(b"", _STRING.sub(b"", text)):
        if bracket in b"[{":
            depth += 1
            if depth > DEEPEST:
                return True
        else:
            depth -= 1
    return False


def field_and_fault(error: msgspec.ValidationError) -> tuple[str, str]:
    """msgspec says "Expected `str`, got `int` - at `$.to[3]`"; we say the path `to[3]` and what was expected."""
    text, _, path = str(error).partition(" - at `$")
    return path.rstrip("`").lstrip("."), text[:1].lower() + text[1:].replace("`", "")
