"""
Rates a second that a peer must not exceed, each kept as one number. Pure.

Theory of operation. Everything that is counted costs its share of a second: a message 1 ms where 1,000 a second are
allowed. The number is the time up to which what came is paid for. It never lies before now, what comes moves it on,
and one who is more than `BURST_S` ahead of the clock is too fast. That is a token bucket of five seconds' worth which
nobody has to fill (in other words GCRA, the generic cell rate algorithm of ITU-T I.371), and a share of 0 is no limit.
The clock may be coarse, a second, since the burst is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

BURST_S: Final = 5.0
TOO_FAR_S: Final = BURST_S + 1e-6
"""Ahead of the clock by more is too fast; sums of shares are not exact to the last digit."""

FRAGMENT_BYTES: Final = 1024
"""
What a continuation frame counts for besides its bytes: an empty one has six, and costs as much as a message of this
size.
"""


def share_s(rate: float) -> float:
    """What one thing costs at so many a second; 0: nothing."""
    return 1.0 / rate if rate else 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What a connection's bytes and control frames cost, in seconds each."""

    byte_s: float = 0.0
    control_s: float = 0.0


def too_fast(limit: str, ahead_s: float) -> str:
    """The reason of a close frame 4029: the limit that was exceeded, and when (ms) to come back."""
    return f'{{"limit":"{limit}","reconnectIn":{ceil(ahead_s * 1000)}}}'
