"""Jittered exponential backoff: how long to wait before trying again, so that many waiters do not move in step."""

from __future__ import annotations

import random


class Backoff:
    """
    Delays in seconds: each is drawn evenly from [half, whole] of a bound that doubles from `first` to `most`.

    `reset` after a success.
    """

    __slots__ = ("_bound", "_first", "_most")

    def __init__(self, first: float = 0.1, most: float = 5.0) -> None:
        self._first = min(first, most)
        self._most = most
        self._bound = self._first

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        bound = self._bound
        self._bound = min(bound * 2, self._most)
        return bound * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin at `first` again."""
        self._bound = self._first
