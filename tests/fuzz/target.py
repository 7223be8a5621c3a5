"""What a fuzz target is: a function over bytes that raises when a property is broken, and inputs to begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Target:
    """
    `run` returns for every input, in time that grows with its length; whatever it raises is a finding.

    `most` bounds the inputs that are made up, in bytes.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    most: int = 4096

    def kept(self) -> list[Path]:
        """Inputs that were findings once."""
        return sorted((CORPUS / self.name).glob("*"))


class Chooser:
    """Decisions drawn from the front of an input; zeros once it is used up."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, most: int) -> int:
        """From 0 to `most` - 1."""
        octet = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return octet % most

    def take(self, size: int) -> bytes:
        """Up to `size` of what follows."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))
