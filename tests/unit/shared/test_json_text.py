"""How deep JSON text nests, counted without decoding it."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.json_text import field_and_fault, is_too_deep


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(
    st.recursive(
        st.text(alphabet='[]{}"\\a') | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ),
    st.integers(0, 5),
)
@example([[["]"]]], 2)
@example(['\\"[', []], 1)
def test_too_deep_agrees_with_a_parser(value: Any, most: int) -> None:
    """The bracket count gives the depth that json.loads finds."""
    assert (depth_of(value) > most) == is_too_deep(json.dumps(value).encode(), most)


@given(st.integers(55, 75), st.text('[]{}"\\', max_size=90), st.booleans())
def test_the_bound_is_64(levels: int, text: str, pretty: bool) -> None:
    """64 is allowed, 65 is not."""
    value: Any = text
    for level in range(levels):
        value = [value, []] if level % 2 and level < levels - 1 else {text: value}
    assert (depth_of(value) > 64) == is_too_deep(json.dumps(value, indent=1 if pretty else None).encode())


@pytest.mark.parametrize("end", [b"", b"\\", b'"', b'"]'])
def test_a_string_that_does_not_end_is_read_once(end: bytes) -> None:
    """Its escaped quotes start no strings of their own: with the square of its length this would take an hour."""
    brackets = b"[" * 64 + b'"' + b'\\"' * 500_000 + end
    assert is_too_deep(b"[" + brackets)
    assert not is_too_deep(brackets)


def test_a_fault_is_no_echo() -> None:
    """What was sent is not sent back at its full length."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(b'["%b"]' % (b"x" * 100_000), type=list[Literal["a"]])
    field, words = field_and_fault(caught.value)
    assert "[0]" == field
    assert "invalid enum value 'xxx" == words[:23]
    assert len(words) < 256
