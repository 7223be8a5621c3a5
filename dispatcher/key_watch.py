"""
The file of API keys, read again when it changes.

Every two seconds its times, size and inode are looked at; when they are others, or it changed so lately that a second
change could hide behind the first one's stamp, it is read. A file that is bad, half written or gone is named in the log
once for each state of it, and counted; the last good set stays in use.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Sequence

from dispatcher.key_file import KeyEntry, KeysFault, plain_names, read_file, read_keys
from dispatcher.metrics import API_KEYS, API_KEYS_NOT_READ
from shared.logs import get_log

_LOOK_S = 2.0
_UNSURE_S = 2.0
_log = get_log("callers")


class KeyWatch:
    """Gives `use` each new set of keys. `start()`, `await close()`. `least_key`: characters of a key in plain."""

    __slots__ = ("_failed", "_good", "_least_key", "_path", "_stamp", "_sure", "_task", "_use")

    def __init__(self, path: str, use: Callable[[Sequence[KeyEntry]], None], *, least_key: int) -> None:
        self._path = path
        self._use = use
        self._least_key = least_key
        self._stamp: tuple[int, int, int] | None = None
        self._sure = False
        self._good = b""
        self._failed: tuple[str, bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Read it now, and keep looking."""
        self._take(self._look())
        self._task = asyncio.create_task(self._run(), name="api keys")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                self._take(await asyncio.to_thread(self._look))  # the disk may be slow, the set large
            except Exception:
                _log.exception("api_keys_not_read")

    def _look(self) -> list[KeyEntry] | None:
        """The keys, if they are others than those in use."""
        text = b""
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp and self._sure:
                return None
            text = read_file(self._path)
            self._stamp = stamp
            self._sure = time.time() - status.st_mtime > _UNSURE_S
            digest = hashlib.sha256(text).digest()
            keys = None if digest == self._good else read_keys(text, least_key=self._least_key)
        except OSError as error:
            self._complain(f"cannot be read ({error.strerror})", text)
            return None
        except KeysFault as fault:
            self._complain(str(fault), text)
            return None
        self._failed = None
        self._good = digest
        return keys

    def _take(self, keys: list[KeyEntry] | None) -> None:
        if keys is None:
            return
        self._use(keys)
        API_KEYS.set(len(keys))
        _log.info("api_keys_read", keys=len(keys))
        plain, weak = plain_names(keys)
        if plain:
            advice = "put the key's SHA-256 as `sha256` instead of `key`; pushfleet key new mints one"
            _log.warning("plain_api_keys", names=plain, weak=weak, advice=advice)

    def _complain(self, fault: str, text: bytes) -> None:
        state = (fault, hashlib.sha256(text).digest())
        if state != self._failed:
            self._failed = state
            API_KEYS_NOT_READ.inc()
            _log.error(
                "api_keys_not_read", file=self._path, reason=fault[:300], effect="the last good set stays in use"
            )
