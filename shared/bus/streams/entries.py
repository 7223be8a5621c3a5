"""
From the replies of XREAD, XREADGROUP and XAUTOCLAIM to records.

An entry is `[id, [b"k", key, b"b", body]]`. One with other fields was not written by a publisher of this project:
it is set aside, that is noted and passed over, so that it does not stop those behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from shared.bus.port import Received
from shared.logs import OncePerSecond, get_log
from shared.metrics import BUS_RECORDS_SET_ASIDE

_log = get_log("bus")
_noisy = OncePerSecond()


class Place(NamedTuple):
    """Where a record lies: the handle of what this adapter hands out."""

    queue: int
    entry_id: bytes


def decode_entries(queue: int, entries: Iterable[Any]) -> tuple[list[Received], list[Place]]:
    """The records in order, and the places of entries that are none."""
    records: list[Received] = []
    foreign: list[Place] = []
    for entry_id, fields in entries:
        place = Place(queue, entry_id)
        record = _decode(place, fields)
        if record is None:
            foreign.append(place)
        else:
            records.append(record)
    return records, foreign


def note_foreign(topic: str, places: list[Place]) -> None:
    """Count and log entries that were set aside."""
    BUS_RECORDS_SET_ASIDE.labels(topic).inc(len(places))
    if _noisy.due():
        first = places[0]
        _log.warning("record set aside", topic=topic, queue=first.queue, id=first.entry_id.decode(), count=len(places))


def _decode(place: Place, fields: Any) -> Received | None:
    if fields is None or len(fields) != 4 or fields[0] != b"k" or fields[2] != b"b":
        return None
    try:
        key = fields[1].decode() if fields[1] else ""
    except UnicodeDecodeError:
        return None
    stored_ms = int(place.entry_id[: place.entry_id.index(b"-")])
    return Received(fields[3], key, f"{place.queue}/{place.entry_id.decode()}", place, stored_ms)
