"""The states of a connection, in the order in which it goes through them (connection.py tells what each means)."""

from __future__ import annotations

from typing import Final

OPENING: Final = 0
OPEN: Final = 1
CLOSING: Final = 2
ENDING: Final = 3
CLOSED: Final = 4
