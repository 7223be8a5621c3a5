"""How a broadcast is cut into pages."""

from __future__ import annotations

import pytest

from dispatcher.broadcasts import most_on_page


@pytest.mark.parametrize(
    ("rate", "size", "most"),
    [
        (1, 10, 1),
        (9, 10, 1),
        (10, 10, 1),
        (1_000, 10, 100),
        (100_000, 10, 2_000),
        (100_000, 1 << 20, 8),
        (1, 1 << 24, 1),
    ],
)
def test_a_page_is_a_tenth_of_a_second(rate: int, size: int, most: int) -> None:
    """At least one target, at most 2,000, and not more than 8 MiB of messages."""
    assert most == most_on_page(rate, size)
