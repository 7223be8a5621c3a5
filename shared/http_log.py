"""What aiohttp's server logs by itself, faults of connections, as lines of our log."""

from __future__ import annotations

import logging

from shared.logs import get_log


class _AsJson(logging.Handler):
    def __init__(self, part: str) -> None:
        super().__init__(logging.WARNING)
        self._log = get_log(part)

    def emit(self, record: logging.LogRecord) -> None:
        # Of an error the class alone: what a request that cannot be parsed is refused with quotes it, keys and all.
        error = record.exc_info[0] if record.exc_info else None
        self._log.warning("http_connection", reason=record.getMessage(), error=error.__name__ if error else None)


def server_log(part: str) -> logging.Logger:
    """The logger for a server of this part of the program."""
    logger = logging.getLogger(f"{part}.http")
    logger.propagate = False
    logger.handlers = [_AsJson(part)]
    return logger
