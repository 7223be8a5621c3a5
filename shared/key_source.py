"""
Where the keys of connect tokens come from: a secret, a JWKS file, or a JWKS URL.

A file is read again when it changes. A URL is fetched at the start, then every five minutes, and when a token names a
key that is not known, at most every ten seconds. When reading fails the last good set stays, and the log says so. Until
a first set was read the process is not healthy, and tokens are answered 503.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiohttp

from shared.backoff import Backoff
from shared.errors import Unavailable
from shared.logs import OncePerSecond, get_log
from shared.tokens import Claims, KeySet, KeySetFault, TokenVerifier, UnknownKey, read_jwks

_LOOK_S = 2.0
_FETCH_EVERY_S = 300.0
_FETCH_AGAIN_S = 10.0
_FETCH_S = 5.0
_MOST_BYTES = 1 << 20
_log = get_log("keys")


class KeySource:
    """
    The key set, kept fresh, and the verifier over it. `await start()`, `await close()`.

    `jwks`: "" (the secret alone), a path, or an http(s) URL.
    """

    __slots__ = ("_asked", "_complaint", "_jwks", "_keys", "_read_at", "_secret", "_stamp", "_task", "_verifier")

    def __init__(self, secret: str, jwks: str, *, audience: str = "", issuer: str = "") -> None:
        self._secret = secret
        self._jwks = jwks
        self._keys = KeySet(secret)
        self._stamp: tuple[int, int] | None = None
        self._read_at = float("-inf")
        self._asked = asyncio.Event()
        self._complaint = OncePerSecond()
        self._task: asyncio.Task[None] | None = None
        self._verifier = TokenVerifier(lambda: self._keys, audience=audience, issuer=issuer)

    @property
    def ready(self) -> bool:
        """Whether there is a key to check a token with."""
        return len(self._keys) > 0 and (not self._jwks or self._read_at > float("-inf"))

    def verify(self, token: str) -> Claims:
        """Raises Unauthorized; Unavailable when there is no key yet, or the token's may be in a newer set."""
        if not self.ready:
            raise Unavailable("the keys of tokens could not be read yet; try again")
        try:
            return self._verifier.verify(token)
        except UnknownKey:
            if self._is_url and asyncio.get_running_loop().time() - self._read_at > _FETCH_AGAIN_S:
                self._asked.set()
                raise Unavailable("the token's key is not known yet; try again") from None
            raise

    async def start(self) -> None:
        """Read once, and keep reading. A file that cannot be read at the start is the settings' fault: KeySetFault."""
        if not self._jwks:
            return
        if not self._is_url:
            self._read_file()
        self._task = asyncio.create_task(self._run(), name="keys")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    @property
    def _is_url(self) -> bool:
        return self._jwks.startswith(("http://", "https://"))

    async def _run(self) -> None:
        if self._is_url:
            await self._keep_fetching()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                self._read_file()
            except (KeySetFault, OSError) as error:
                self._complain(str(error))

    def _read_file(self) -> None:
        """If it has changed. Raises KeySetFault, OSError."""
        path = Path(self._jwks)
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._use(path.read_bytes())
            self._stamp = stamp

    async def _keep_fetching(self) -> None:
        backoff = Backoff(0.5, 30.0)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_FETCH_S)) as http:
            while True:
                self._asked.clear()
                try:
                    await self._fetch(http)
                except (KeySetFault, aiohttp.ClientError, TimeoutError, ValueError) as error:
                    self._complain(str(error) or type(error).__name__)
                    await asyncio.sleep(backoff.next_s())
                    continue
                backoff.reset()
                try:
                    async with asyncio.timeout(_FETCH_EVERY_S * random.uniform(0.8, 1.0)):
                        await self._asked.wait()
                except TimeoutError:
                    continue

    async def _fetch(self, http: aiohttp.ClientSession) -> None:
        async with http.get(self._jwks, headers={"Accept": "application/json"}) as answer:
            if answer.status != 200:
                raise KeySetFault(f"answered {answer.status}")
            text = await answer.content.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise KeySetFault(f"more than {_MOST_BYTES} bytes")
        self._use(text)

    def _use(self, text: bytes) -> None:
        """Raises KeySetFault."""
        self._keys = read_jwks(text, self._secret)
        self._read_at = asyncio.get_running_loop().time()
        _log.info("keys_read", keys=len(self._keys))

    def _complain(self, reason: str) -> None:
        if self._complaint.due():
            _log.warning("keys_not_read", reason=reason[:200], effect="the last good set stays in use")
