"""
A lock in Redis for work that one dispatcher does at a time, with a fencing token.

The lock expires, so its holder may have lost it without knowing. Each holder has a token, counted up; every script that
acts under the lock is given the token and does nothing when the lock's value is another.
"""

from __future__ import annotations

from pathlib import Path

from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_LOCK = Script(_LUA / "lock.lua")
_UNLOCK = Script(_LUA / "unlock.lua")


class Lock:
    """`token` is 0 while it is not held. All raise StoreUnavailable."""

    __slots__ = ("_fence", "_store", "key", "life_s", "token")

    def __init__(self, store: Store, name: str, *, life_s: float) -> None:
        self.key, self._fence = store.keys.lock(name)
        self.token = 0
        self._store = store
        self.life_s = life_s

    async def hold(self) -> bool:
        """Take it, or keep it for another life; whether it is ours."""
        self.token = await self._store.run(_LOCK, (self.key, self._fence), (self.token, int(self.life_s * 1000)))
        return self.token != 0

    async def release(self) -> None:
        token, self.token = self.token, 0
        if token:
            await self._store.run(_UNLOCK, (self.key,), (token,))
