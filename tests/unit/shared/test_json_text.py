"""How deep JSON text nests, counted without decoding it."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.json_text import is_too_deep


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(
    st.recursive(st.text('[]{}"\\ab'), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner))
)
def test_shallow_json_is_never_too_deep(value: Any) -> None:
    """However many brackets it has, also inside strings."""
    assert (depth(value) > 64) == is_too_deep(json.dumps(value).encode())


@given(st.integers(55, 75), st.text('[]{}"\\', max_size=90), st.booleans())
def test_the_bound_is_64(levels: int, text: str, pretty: bool) -> None:
    """64 is allowed, 65 is not."""
    value: Any = text
    for level in range(levels):
        value = [value, []] if level % 2 and level < levels - 1 else {text: value}
    assert (depth(value) > 64) == is_too_deep(json.dumps(value, indent=1 if pretty else None).encode())
