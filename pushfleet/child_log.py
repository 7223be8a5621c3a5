"""
What a child process writes: kept in a file, its last lines in memory, its warnings and errors passed on.

The file is bounded: a full one becomes `NAME.log.1` in place of the one before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

_MOST_BYTES = 10 << 20
_MOST_LINE = 1 << 20
_MOST_KINDS = 200
_TAIL_LINES = 12
_SHOW_EACH_S = 5.0
_SHOWN_LEVELS = frozenset({"warning", "error", "critical"})
_NOT_SHOWN = frozenset({"timestamp", "level", "event", "part"})


class ChildLog:
    """
    Takes the bytes as they come. `on_event` gets each JSON line's event, `show` what a person should see: of warnings
    and errors of one kind one in five seconds, the file has all. Events in `told` are not shown, because whoever
    runs the child tells of them itself.
    """

    __slots__ = ("_file", "_on_event", "_partial", "_path", "_quiet_until", "_show", "_size", "_tail", "_told")

    def __init__(
        self,
        path: Path,
        *,
        show: Callable[[str], None],
        on_event: Callable[[str], None],
        told: frozenset[str] = frozenset(),
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab")
        self._size = self._file.tell()
        self._partial = b""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._show = show
        self._on_event = on_event
        self._told = told
        self._quiet_until: dict[str, float] = {}

    @property
    def path(self) -> Path:
        return self._path

    def tail(self) -> str:
        """The last lines, for a person."""
        return "\n".join(f"    {line}" for line in self._tail)

    def feed(self, data: bytes) -> None:
        self._write(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _MOST_LINE:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._take(line)

    def end_of_output(self) -> None:
        """The process is gone; what it wrote without an end of line is a line."""
        if self._partial:
            self._take(self._partial)
            self._partial = b""

    def close(self) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        if self._size > _MOST_BYTES:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab")
            self._size = 0
        self._file.write(data)
        self._file.flush()
        self._size += len(data)

    def _take(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()
        if not line:
            return
        fields = _fields(raw)
        text = line if fields is None else readable(fields)
        self._tail.append(text)
        if fields is None:
            self._show(text)  # a traceback, a warning of the interpreter
            return
        event = str(fields["event"])
        if fields.get("level") in _SHOWN_LEVELS and event not in self._told and self._due(event):
            self._show(text)
        self._on_event(event)

    def _due(self, event: str) -> bool:
        now = time.monotonic()
        if now < self._quiet_until.get(event, 0.0):
            return False
        if len(self._quiet_until) > _MOST_KINDS:
            self._quiet_until.clear()
        self._quiet_until[event] = now + _SHOW_EACH_S
        return True


def _fields(raw: bytes) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) and "event" in fields else None


def readable(fields: dict[str, Any]) -> str:
    """`warning: bus unreachable (url=..., attempt=3)` of a JSON log line's fields."""
    rest = ", ".join(f"{name}={value}" for name, value in fields.items() if name not in _NOT_SHOWN)
    return f"{fields.get('level', 'info')}: {fields['event']}" + (f" ({rest})" if rest else "")
