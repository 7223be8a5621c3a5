"""
What Redis knows of broadcasts, and the scripts that change it.

A broadcast is a hash: what was asked for, which never changes; its message; and how far it is, which its *runner*
writes after each page under the broadcast's lock. It is kept for 7 days after its end, without the message.

    running --last page--> done
       |---- DELETE -----> aborted
       '-- ttl is over --> expired

All lie in one partition with the lock, so a page is counted, and its end seen, in one step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from shared.errors import Conflict, NotFound, Overloaded, WrongState
from shared.ids import MessageIdMint
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_BEGIN = Script(_LUA / "broadcast_begin.lua")
_READ = Script(_LUA / "broadcast_read.lua")
_LIST = Script(_LUA / "broadcast_list.lua")
_RUNNING = Script(_LUA / "broadcast_running.lua")
_STEP = Script(_LUA / "broadcast_step.lua")
_ABORT = Script(_LUA / "broadcast_abort.lua")
_FRESH = Script(_LUA / "broadcast_fresh.lua")
_KEPT_MS = 7 * 86_400_000
MOST_RUNNING = 100
RUNNING = "running"
DONE = "done"
EXPIRED = "expired"


class Wish(msgspec.Struct, frozen=True):
    """
    What a caller asks for. `groups` is empty when it goes to everyone; `rate` in targets/s; `request_id` may be "".
    """

    caller: str
    sender: str
    groups: tuple[str, ...]
    rate: int
    ttl_ms: int
    request_id: str
    msg: bytes

    def fingerprint(self) -> bytes:
        """16 bytes that differ between wishes that would not have the same effect."""
        return blake2b(_encoder.encode(self), digest_size=16).digest()


class About(msgspec.Struct, frozen=True):
    """What is settled when it begins. Times in epoch ms; `targets`: how many there were."""

    message_id: str
    caller: str
    sender: str
    request_id: str
    groups: tuple[str, ...]
    rate: int
    targets: int
    created_ms: int
    expires_ms: int


class Broadcast(msgspec.Struct, frozen=True):
    """A broadcast and how far it is; `ended_ms` 0: it runs. `failed`: targets whose inbox was full."""

    id: str
    about: About
    state: str
    online: int
    offline: int
    failed: int
    ended_ms: int


class Work(msgspec.Struct, frozen=True):
    """What a runner needs: where it goes on, and how many pages were counted."""

    about: About
    state: str
    msg: bytes
    place: str
    pages: int


class Sent(msgspec.Struct, frozen=True):
    """
    What came of a page. `reached`: the clients to be remembered as reached; with `forget` in place of those before.
    """

    online: int = 0
    offline: int = 0
    failed: int = 0
    reached: tuple[str, ...] = ()
    forget: bool = False


_encoder = msgspec.msgpack.Encoder()
_about_decoder = msgspec.msgpack.Decoder(About)
_VIEW = ("about", "state", "online", "offline", "failed", "ended")
_WORK = ("about", "state", "msg", "place", "pages")


class Broadcasts:
    """In Redis. All raise StoreUnavailable."""

    __slots__ = ("_mint", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._mint = MessageIdMint()

    # -- for callers -----------------------------------------------------------------------------------------

    async def begun_before(self, wish: Wish) -> Broadcast | None:
        """The broadcast of the same requestId, if there is one still. Raises Conflict when it is another."""
        return None if not wish.request_id else await self._begun(wish)

    async def begin(self, wish: Wish, request_id: str, targets: int) -> tuple[Broadcast, bool]:
        """
        The broadcast, and whether it is new; `request_id` is the one that clients see.

        Raises Conflict, Overloaded when too many run.
        """
        now_ms = time.time_ns() // 1_000_000
        about = About(
            *(self._mint.mint(), wish.caller, wish.sender, request_id, wish.groups, wish.rate, targets),
            *(now_ms, now_ms + wish.ttl_ms),
        )
        id_ = self._mint.mint()
        answer = await self._begin(id_, wish, about)
        if answer[0] == -1:
            raise Conflict("the same requestId was used with another body", field="requestId")
        if answer[0] == -2:
            raise Overloaded(f"{MOST_RUNNING} broadcasts are running")
        return await self.get(answer[1].decode()), answer[0] == 1

    async def get(self, broadcast_id: str) -> Broadcast:
        """Raises NotFound."""
        hash_, _ = self._store.keys.broadcast(broadcast_id)
        fields = await self._store.run(_READ, (hash_,), _VIEW)
        if fields is None:
            raise NotFound(f"there is no broadcast {broadcast_id[:64]}")
        return _broadcast(broadcast_id, fields)

    async def newest(self, behind: str, limit: int) -> list[Broadcast]:
        """From the newest on, or from the one that began before `behind`."""
        keys = self._store.keys
        answer = await self._store.run(_LIST, (keys.broadcasts[0],), (keys.broadcast("")[0], limit, behind, *_VIEW))
        return [_broadcast(id_.decode(), fields) for id_, fields in answer]

    async def abort(self, broadcast_id: str) -> Broadcast:
        """Raises NotFound, WrongState when it has ended."""
        hash_, reached = self._store.keys.broadcast(broadcast_id)
        _, running = self._store.keys.broadcasts
        args = (broadcast_id, self._mint.mint(), time.time_ns() // 1_000_000, _KEPT_MS)
        done = await self._store.run(_ABORT, (hash_, running, reached), args)
        broadcast = await self.get(broadcast_id)
        if not done:
            raise WrongState(f"the broadcast has ended: it is {broadcast.state}")
        return broadcast

    # -- for runners -----------------------------------------------------------------------------------------

    async def running(self) -> list[str]:
        """The ids of those that run, whoever runs them."""
        keys = self._store.keys
        answer = await self._store.run(_RUNNING, (keys.broadcasts[1],), (keys.broadcast("")[0],))
        return [id_.decode() for id_ in answer]

    async def work(self, broadcast_id: str) -> Work | None:
        """None: nothing is known of it."""
        hash_, _ = self._store.keys.broadcast(broadcast_id)
        fields = await self._store.run(_READ, (hash_,), _WORK)
        if fields is None:
            return None
        about, state, msg, place, pages = fields
        return Work(_about_decoder.decode(about), state.decode(), msg or b"", place.decode(), int(pages))

    async def fresh(self, broadcast_id: str, client_ids: Sequence[str]) -> list[str]:
        """Those of the clients who are not remembered as reached."""
        _, reached = self._store.keys.broadcast(broadcast_id)
        return [client_id.decode() for client_id in await self._store.run(_FRESH, (reached,), client_ids)]

    async def step(
        self, broadcast_id: str, lock: tuple[str, int], page: int, place: str, sent: Sent, end: str = ""
    ) -> str:
        """
        Page number `page` (from 1) was sent, and the next one begins at `place`; with `end` there is none.

        `lock`: its key and the token it is held with. The broadcast's state; "" when the lock is another's.
        """
        hash_, reached = self._store.keys.broadcast(broadcast_id)
        _, running = self._store.keys.broadcasts
        key, token = lock
        now_ms = time.time_ns() // 1_000_000
        args = (
            *(token, broadcast_id, page, place, sent.online, sent.offline, sent.failed),
            *(end, now_ms, _KEPT_MS, int(sent.forget), *sent.reached),
        )
        state = await self._store.run(_STEP, (hash_, running, key, reached), args)
        return "" if state is None else str(state.decode())

    # -- the rest --------------------------------------------------------------------------------------------

    async def _begun(self, wish: Wish) -> Broadcast | None:
        """Asked by beginning it with no room for another, so that one script alone compares."""
        answer = await self._begin(self._mint.mint(), wish, None)
        if answer[0] == -1:
            raise Conflict("the same requestId was used with another body", field="requestId")
        return None if answer[0] == -2 else await self.get(answer[1].decode())

    async def _begin(self, broadcast_id: str, wish: Wish, about: About | None) -> list[Any]:
        """Without `about` nothing begins."""
        keys = self._store.keys
        hash_, _ = keys.broadcast(broadcast_id)
        names = (
            *(hash_, *keys.broadcasts, keys.broadcast_of(wish.caller, wish.request_id)),
            keys.lock(f"broadcast:{broadcast_id}")[1],
        )
        args: list[Any] = [broadcast_id, wish.fingerprint(), int(bool(wish.request_id)), wish.ttl_ms + _KEPT_MS]
        args += (0 if about is None else MOST_RUNNING, "about", _encoder.encode(about), "msg", wish.msg)
        args += ("state", RUNNING, "online", 0, "offline", 0, "failed", 0, "ended", 0, "place", "", "pages", 0)
        answer: list[Any] = await self._store.run(_BEGIN, names, args)
        return answer


def _broadcast(broadcast_id: str, fields: Sequence[bytes]) -> Broadcast:
    about, state, online, offline, failed, ended = fields
    return Broadcast(
        broadcast_id,
        _about_decoder.decode(about),
        state.decode(),
        *(int(online), int(offline), int(failed), int(ended)),
    )
