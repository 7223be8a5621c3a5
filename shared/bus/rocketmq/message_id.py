"""
Unique keys of messages, of the form that RocketMQ's tools read a time from.

32 hexadecimal digits: 10 bytes that are the process's own, 4 bytes of milliseconds since the month began (local
time, as RocketMQ's own clients count), 2 bytes of a counter. `mqadmin queryMsgById` finds a message by it.
"""

from __future__ import annotations

import os
import time


class MessageIds:
    """Draws them; unique as long as fewer than 65,536 are drawn in a millisecond."""

    __slots__ = ("_counter", "_month_end_ms", "_month_start_ms", "_prefix")

    def __init__(self) -> None:
        self._prefix = os.urandom(10).hex().upper()
        self._counter = 0
        self._month_start_ms = 0
        self._month_end_ms = 0

    def draw(self, now_ms: int) -> str:
        if now_ms >= self._month_end_ms:
            self._start_month(now_ms)
        self._counter = counter = (self._counter + 1) & 0xFFFF
        return f"{self._prefix}{max(0, now_ms - self._month_start_ms):08X}{counter:04X}"

    def _start_month(self, now_ms: int) -> None:
        now = time.localtime(now_ms / 1000)
        start = (now.tm_year, now.tm_mon, 1, 0, 0, 0, 0, 0, -1)
        end = (now.tm_year + now.tm_mon // 12, now.tm_mon % 12 + 1, 1, 0, 0, 0, 0, 0, -1)
        self._month_start_ms = int(time.mktime(start) * 1000)
        self._month_end_ms = int(time.mktime(end) * 1000)
