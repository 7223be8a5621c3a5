"""
The bus as the roles see it: topics that hold records in queues, whatever carries them.

A *topic* has one or more queues. Order holds inside a queue. A record is *published* when the call returns: it
then arrives at least once, also when the broker is killed and restarted in between.

A topic is consumed in one of two ways:

- *alone* (`TopicReader`): one process reads every queue of a topic and remembers how far it came. A node reads
  its own topic like this. `commit` says "all that I fetched so far is dealt with"; a reader that is opened again
  goes on behind the last commit.
- *shared* (`SharedReader`): any number of processes take records from one topic; a record that was fetched and
  not acknowledged within the invisible time comes back to one of them. Dispatchers share `push-upstream`.

Adapters connect when first used and reconnect by themselves. While the broker is away every call raises
BusUnavailable when its deadline has passed, except `fetch`, which goes on trying (with jittered backoff) until
it is cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """
    A record to publish.

    `queue` is an index below `queue_count(topic)`; records of one queue keep their order. `key` lets an
    operator find it (RocketMQ's KEYS). `deliver_at_ms` (epoch ms) holds it back until then; 0 is now.
    """

    body: bytes
    key: str = ""
    queue: int = 0
    deliver_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """
    A record as fetched. `record_id` is the bus's own id of it; `handle` belongs to the adapter.

    `stored_ms` (epoch ms) is when the bus stored it, by the bus's clock.
    """

    body: bytes
    key: str
    record_id: str
    handle: object
    stored_ms: int


class TopicReader(Protocol):
    """One process reading a whole topic, from where it stopped."""

    async def fetch(self) -> list[Received]:
        """At least one record, in order within each queue; waits for as long as there is none."""

    def commit(self) -> None:
        """All fetched so far is dealt with. Written to the bus in the background, about once a second."""

    async def close(self) -> None:
        """Write the last commit and stop."""


class SharedReader(Protocol):
    """One of several processes that take records from a topic."""

    async def fetch(self, most: int) -> list[Received]:
        """Between 1 and `most` records; waits for as long as there is none."""

    async def ack(self, records: Sequence[Received]) -> None:
        """These are done and must not come again. A failed ack is no loss: they come again."""

    async def close(self) -> None:
        """Stop; what was fetched and not acknowledged comes back to the others."""


class Bus(Protocol):
    """See the module. Topic and group names are whole (the namespace is already in them)."""

    @property
    def max_record_bytes(self) -> int:
        """The largest body that `publish` takes."""

    @property
    def connected(self) -> bool:
        """Whether the last exchange with the bus went well; for /healthz."""

    async def ensure_topic(self, topic: str, *, queues: int = 1, most_records: int = 0) -> None:
        """
        Create the topic with `queues` queues (on RocketMQ: a broker master) if it is not there.

        `most_records`: for a topic that may be without readers. Where records otherwise stay until they were dealt
        with, a queue keeps about so many, the newest; 0: all. A broker that removes records by age does so anyway.
        """

    async def drop_topic(self, topic: str) -> None:
        """Delete the topic, what is in it and the read position of its lone reader; no error if it is not there."""

    async def queue_count(self, topic: str) -> int:
        """How many queues `publish` may choose from now. Cached; raises TopicMissing."""

    async def publish(self, topic: str, records: Sequence[Record]) -> None:
        """
        Return when the bus holds all of them. On an error some may have been stored.

        Raises TopicMissing, RecordTooLarge (nothing was sent), BusUnavailable.
        """

    async def open_reader(self, topic: str) -> TopicReader:
        """Read a topic alone. The first reader of a topic starts at its beginning. Raises TopicMissing."""

    async def open_shared(self, topic: str, group: str, *, invisible_s: float = 60.0) -> SharedReader:
        """Share a topic with other members of `group`. The group starts at the topic's beginning."""

    async def close(self) -> None:
        """Close readers and connections; publishes under way are given up."""
