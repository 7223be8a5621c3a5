"""
Logs: JSON lines on stderr (`timestamp`, `level`, `event`, fields), coloured text when stderr is a terminal.

One canonical line for each unit of work (a session's end, a send that failed, a drain), never one for each
message. Message bodies, tokens and secrets are never passed to a logger.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import orjson
import structlog


def set_up_logs(level: str = "info") -> None:
    """Configure structlog for the process."""
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
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


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
