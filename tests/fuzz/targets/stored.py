"""
What Redis gives back: answers of the scripts and entries of streams, with values that nobody of ours wrote.

A value that cannot be read raises ValueError, which the caller of a batch sees as a fault of that call; what can be
read is of the types that are declared.
"""

from __future__ import annotations

from typing import Any

from dispatcher.broadcast_records import _about_decoder, _broadcast
from dispatcher.outbox import _decoder as outbox_decoder
from shared.bus.streams.entries import decode_entries
from shared.cursors import read_memberships
from shared.inbox import _target, read_slice
from shared.paging import read_page
from shared.presence import read_changes
from shared.timeline import _added, _part
from tests.fuzz.target import Chooser, Target


def run(data: bytes) -> None:
    chooser = Chooser(data)
    reading = (_inbox, _route, _audiences, _timeline, _nodes, _page, _presence, _stream, _broadcasts)[chooser.below(9)]
    try:
        reading(chooser)
    except ValueError:
        return


def _values(chooser: Chooser, count: int) -> list[bytes]:
    return [chooser.take(chooser.below(64)) for _ in range(count)]


def _inbox(chooser: Chooser) -> None:
    """Value: order, expiry, template."""
    count = chooser.below(4)
    answer: list[Any] = [count, *_values(chooser, 2 * count)]
    read = read_slice(answer)
    assert read.held == count
    assert all(isinstance(message.template, bytes) and isinstance(message.order, int) for message in read.messages)


def _route(chooser: Chooser) -> None:
    target = _target([chooser.below(3) - 1, *_values(chooser, 2 * chooser.below(4))])
    assert all(isinstance(word, str) for session in target.sessions for word in session)


def _audiences(chooser: Chooser) -> None:
    read = read_memberships(_values(chooser, 2 * chooser.below(5)))
    assert all(isinstance(order, int) for order in read.cursors.values())


def _timeline(chooser: Chooser) -> None:
    part = _part([1, 0, *_values(chooser, 5 * chooser.below(4))])
    assert all(isinstance(entry.expires_ms, int) for entry in part.entries)


def _nodes(chooser: Chooser) -> None:
    added = _added([1, 0, *_values(chooser, 2 * chooser.below(4))])
    assert all(isinstance(word, str) for node in added.nodes for word in node)


def _page(chooser: Chooser) -> None:
    found, _ = read_page(_values(chooser, 2 + chooser.below(4)))
    assert all(isinstance(member, str) for member in found)


def _presence(chooser: Chooser) -> None:
    flat: list[Any] = []
    for _ in range(chooser.below(4)):
        flat += [chooser.below(2), *_values(chooser, 2), chooser.below(9), chooser.below(9)]
    assert len(list(read_changes(flat))) == len(flat) // 5


def _stream(chooser: Chooser) -> None:
    """Entries of any shape under ids as Redis makes them: never an error, since one would stop those behind it."""
    entries: list[Any] = []
    for number in range(chooser.below(6)):
        fields: list[bytes] | None = _values(chooser, chooser.below(6))
        if chooser.below(2):
            fields = [b"k", *_values(chooser, 1), b"b", *_values(chooser, 1)]
        entries.append((b"%d-%d" % (1_700_000_000_000 + number, number), None if chooser.below(7) == 6 else fields))
    try:
        records, foreign = decode_entries(3, entries)
    except ValueError as error:
        raise AssertionError("an entry stops those behind it") from error
    assert len(records) + len(foreign) == len(entries)


def _broadcasts(chooser: Chooser) -> None:
    about, state, *numbers = _values(chooser, 6)
    for text in (about, chooser.rest()):
        for decoder in (_about_decoder, outbox_decoder):
            try:
                decoder.decode(text)
            except ValueError:
                continue
    _broadcast("id", (about, state, *numbers))


_VALUE = b"17640000000000001764000000000{}"
_SEEDS = (
    b"\0\1\2id" + bytes((len(_VALUE),)) + _VALUE,
    b"\1\2\1\7session\5epoch",
    b"\2\2\1#\0013\1g\x0216",
    b"\3\1\x0216\2id\x0d1764000000000\1s\2{}",
    b"\4\1\4node\5epoch",
    b"\5\2\x020.\1b\1a\1b",
    b"\6\1\1\7session\3web\1\1",
    b"\7\2\4\1k\1a\1b\1b\0\0\2\1x\1y\1\1a\1b\1",
    b"\x08\3\x93\xa1a\xc0\7running\1\0\1\0\1\0\1\0",
)

TARGET = Target("stored", run, _SEEDS, most=1024)
