"""
The Lua files beside this module, and the names of keys.

All keys of a topic carry the topic as hash tag, so that they lie in one slot of a Redis Cluster:

    {namespace}:bus:{{topic}}            the marker: the number of queues. A topic exists when it does.
    {namespace}:bus:{{topic}}:0 …        a stream for each queue; an entry has the fields k (key) and b (body)
    {namespace}:bus:{{topic}}:most       how many records a queue keeps, for a topic that need not be read; else absent
    {namespace}:bus:{{topic}}:position   hash, queue -> id of the last record its lone reader dealt with
    {namespace}:bus:{{topic}}:delayed    sorted set by delivery time (epoch ms) of records that are not due
    {namespace}:bus:{{topic}}:sequence   counter that keeps those apart

Scripts get the marker as their only key and derive the others from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script; `sha` is how EVALSHA names it."""

    text: bytes
    sha: bytes


def _load(name: str) -> Script:
    text = files(__package__).joinpath(f"{name}.lua").read_bytes()
    return Script(text, sha1(text, usedforsecurity=False).hexdigest().encode())


PUBLISH = _load("publish")
DUE = _load("due")
DROP = _load("drop")
COMMIT = _load("commit")
JOIN = _load("join")
ACK = _load("ack")
LEAVE = _load("leave")
SWEEP = _load("sweep")

ALL = (PUBLISH, DUE, DROP, COMMIT, JOIN, ACK, LEAVE, SWEEP)


def marker_key(namespace: str, topic: str) -> bytes:
    """The key that says the topic exists; the others begin with it."""
    return f"{namespace}:bus:{{{topic}}}".encode()


def stream_keys(marker: bytes, queues: int) -> list[bytes]:
    """The streams of the queues, in order."""
    return [b"%b:%d" % (marker, queue) for queue in range(queues)]
