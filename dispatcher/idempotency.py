"""
Idempotency: a send that carries a requestId goes out once, however often its caller asks, for 24 hours.

A record in Redis, by (caller, requestId), goes through these states:

    (none) --begin--> working, claimed --end--> done: later calls get the same answer
                          |    ^
                   failed |    | the claim was given back or ran out: the next call sends again,
                          v    | under the same messageId and activeTime
                        unclaimed

Who comes while another is at it waits for the answer. What was asked is told apart by a fingerprint, so that the
same requestId with another body is refused.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from enum import IntEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from dispatcher.requests import Send
from shared.backoff import Backoff
from shared.batching import Batcher
from shared.errors import Unavailable
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_BEGIN = Script(_LUA / "begin.lua")
_END = Script(_LUA / "end.lua")
_LIFE_MS = 24 * 3_600_000
_CLAIM_MS = 10_000
_WAIT_S = 5.0


class State(IntEnum):
    MINE = 0
    DONE = 1
    WORKING = 2
    CONFLICT = 3


class Ask(msgspec.Struct, frozen=True):
    """A send that wants to begin. `message_id` and `active_time_ms` are taken if it is the first of its requestId."""

    caller: str
    request_id: str
    message_id: str
    active_time_ms: int
    fingerprint: bytes
    claim: str


class Begun(msgspec.Struct, frozen=True):
    """What the record says. `answer` is JSON text, when DONE. `again`: the send was begun before, and did not end."""

    state: State
    message_id: str
    active_time_ms: int
    answer: bytes
    again: bool = False


_encoder = msgspec.json.Encoder()


def fingerprint(send: Send, sender: str) -> bytes:
    """
    16 bytes that differ between sends that would not have the same effect.

    A client that sends again does so on another session, so who is left out (`but`) makes no difference.
    """
    rest = _encoder.encode((send.targets, send.everyone, sender, send.ttl_ms, send.durable, send.groups))
    return blake2b(rest + b"\n" + send.msg, digest_size=16).digest()


class Idempotency:
    """The records in Redis, in batches. All raise StoreUnavailable and Overloaded."""

    __slots__ = ("_begins", "_claims", "_ends", "_process", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._process = os.urandom(8).hex()
        self._claims = itertools.count(1)
        self._begins: Batcher[Ask, Begun] = Batcher("begin", self._begin)
        self._ends: Batcher[tuple[Ask, bytes], None] = Batcher("end", self._end)

    def claim(self) -> str:
        """A word for one send alone: of two sends in one process one waits for the other, too."""
        return f"{self._process}{next(self._claims)}"

    async def begin(self, asks: list[Ask]) -> list[Begun]:
        return await self._begins.submit(asks)

    async def wait(self, ask: Ask) -> Begun:
        """As `begin`, when another is at it: its outcome, or the send itself if it gave up. Raises Unavailable."""
        deadline = time.monotonic() + _WAIT_S
        pause = Backoff(0.01, 0.25)
        while time.monotonic() < deadline:
            await asyncio.sleep(pause.next_s())
            (begun,) = await self._begins.submit((ask,))
            if begun.state is not State.WORKING:
                return begun
        raise Unavailable("the first send of this requestId is still at work; ask again")

    async def end(self, ended: list[tuple[Ask, bytes]]) -> None:
        """Keep the answers (JSON text); b"" gives the claim back, so that the send may be tried again at once."""
        await self._ends.submit(ended)

    async def close(self) -> None:
        await self._begins.close()
        await self._ends.close()

    async def _begin(self, asks: list[Ask]) -> list[Begun]:
        return await self._store.split(asks, _name_of, self._begin_some)

    async def _end(self, ended: list[tuple[Ask, bytes]]) -> list[None]:
        await self._store.parts(ended, _name_of_ended, self._end_some)
        return [None] * len(ended)

    async def _begin_some(self, asks: Sequence[Ask]) -> list[Begun]:
        sent = self._store.keys.sent
        args: list[Any] = [_LIFE_MS, _CLAIM_MS]
        for ask in asks:
            args += (ask.message_id, ask.active_time_ms, ask.fingerprint, ask.claim)
        answers = await self._store.run(_BEGIN, [sent(ask.caller, ask.request_id) for ask in asks], args)
        return [
            Begun(State(state), id_.decode(), int(at), answer, again == 1) for state, id_, at, answer, again in answers
        ]

    async def _end_some(self, ended: Sequence[tuple[Ask, bytes]]) -> None:
        sent = self._store.keys.sent
        args: list[Any] = [_LIFE_MS]
        for ask, answer in ended:
            args += (ask.claim, answer)
        await self._store.run(_END, [sent(ask.caller, ask.request_id) for ask, _ in ended], args)


def _name_of(ask: Ask) -> str:
    """What the record's key is made of."""
    return f"{ask.caller}/{ask.request_id}"


def _name_of_ended(ended: tuple[Ask, bytes]) -> str:
    return _name_of(ended[0])
