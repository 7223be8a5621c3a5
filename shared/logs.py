"""
Logs: JSON lines on stderr (`timestamp`, `level`, `event`, fields), coloured text when stderr is a terminal.

One canonical line for each unit of work (a session's end, a send that failed, a drain), never one for each
message. Message bodies, tokens and secrets are never passed to a logger. As a last resort, for errors whose text is
made elsewhere, each line is searched for the secrets of the settings, which are taken out of it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

import orjson
import structlog


def set_up_logs(level: str = "info", hide: Iterable[str] = ()) -> None:
    """Configure structlog for the process. `hide`: texts that no line may hold."""
    terminal = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if terminal:
        shared += [structlog.dev.ConsoleRenderer()]
        factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    else:
        shared += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ]
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    if hidden := sorted({form for text in hide for form in _forms(text)}, key=len, reverse=True):
        shared.append(_Hide(hidden))
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def _forms(text: str) -> tuple[str, str]:
    """As it is, and as it stands in JSON."""
    return text, orjson.dumps(text)[1:-1].decode()


class _Hide:
    """Takes texts out of a line that is ready to be written."""

    __slots__ = ("_bytes", "_texts")

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._bytes = [text.encode() for text in texts]

    def __call__(self, _logger: Any, _method: str, line: Any) -> Any:
        if isinstance(line, bytes):
            for secret in self._bytes:
                line = line.replace(secret, b"(not shown)")
        else:
            for text in self._texts:
                line = line.replace(text, "(not shown)")
        return line


def get_log(role: str) -> Any:
    """A logger whose lines carry the part of the program they come from."""
    return structlog.get_logger(part=role)


class OncePerSecond:
    """Lets through one log line a second of a kind, so that a lasting fault does not flood the log."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 1.0
        return True
