"""From the messages of a response to records of the port."""

from __future__ import annotations

from shared.bus.port import Received
from shared.bus.rocketmq.wire import BrokenMessage, Message, decode_messages, property_of
from shared.logs import OncePerSecond, get_log
from shared.metrics import BUS_RECORDS_SET_ASIDE

log = get_log("bus")
_once = OncePerSecond()


def received_of(topic: str, body: bytes) -> list[Received]:
    """The records of a pull's body; what cannot be decoded is counted, logged and left out."""
    messages, broken = decode_messages(body)
    if broken:
        set_aside(topic, broken)
    return [as_received(message, None) for message in messages]


def as_received(message: Message, handle: object) -> Received:
    """The record id is the unique key, or, if a foreign producer set none, the place in the queue."""
    properties = message.properties
    record_id = property_of(properties, "UNIQ_KEY") or f"{message.queue_id}-{message.queue_offset}"
    return Received(message.body, property_of(properties, "KEYS"), record_id, handle, message.stored_ms)


def set_aside(topic: str, broken: list[BrokenMessage]) -> None:
    BUS_RECORDS_SET_ASIDE.labels(topic).inc(len(broken))
    if _once.due():
        log.error("record set aside", topic=topic, offset=broken[0].queue_offset, reason=broken[0].reason)
