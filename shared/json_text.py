"""
JSON text as callers and clients send it: how deep it nests, and msgspec's faults in the project's words. Pure.

`msg` is never decoded, so depth is counted on the text.
"""

from __future__ import annotations

import re
from itertools import accumulate

import msgspec

DEEPEST = 64
"""By default."""
MOST_DEEP = 256
"""Decoders recurse: beyond some hundreds of levels they fail."""

_AT = re.compile(r" - at `\$\.?([^`]*)`\Z")
_UNKNOWN = "Object contains unknown field `"
_MISSING = "Object missing required field `"
_TYPES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_MOST_WORDS = 200
_TYPE = re.compile("|".join(_TYPES))
_QUOTED_TYPES = re.compile(r"`([a-z |]+)`")


def field_and_fault(error: msgspec.ValidationError) -> tuple[str, str]:
    """msgspec's words in ours: "Expected `str`, got `int` - at `$.to[3]`" is the field `to[3]` and what is expected."""
    text = str(error)
    at = _AT.search(text)
    field = at[1] if at else ""
    words = text[: at.start()] if at else text
    if len(words) > _MOST_WORDS and not words.startswith(_UNKNOWN):  # a value that was sent is among the words
        words = words[:_MOST_WORDS] + "..."
    if words.startswith(_UNKNOWN):
        return words[len(_UNKNOWN) : -1][:64], "unknown field"
    if words.startswith(_MISSING):
        name = words[len(_MISSING) : -1]
        return f"{field}.{name}" if field else name, "required"
    words = _QUOTED_TYPES.sub(
        lambda types: _TYPE.sub(lambda name: _TYPES[name[0]], types[1]).replace(" | ", " or "), words
    )
    return field, words[:1].lower() + words[1:]


# A string that does not end goes to the end of the text: were it no match, each quote in it would be tried as the
# start of another, which takes the square of its length.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def is_too_deep(text: bytes, most: int = DEEPEST) -> bool:
    """Whether JSON text is nested deeper than `most`. Of text that is not JSON: whether a parser would get as deep."""
    if text.count(b"{") + text.count(b"[") <= most:
        return False
    steps = _STRING.sub(b"", text).translate(_BRACKETS, _NOT_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > most
