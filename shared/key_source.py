"""
Where the keys of connect tokens come from: a secret, a JWKS file, or a JWKS URL.

A file is read again when it changes. A URL is fetched at the start, then every five minutes, and when a token names a
key that is not known, at most every ten seconds. Redirects are not followed: the keys are those of the URL that the
settings name, or none. When reading fails the last good set stays, and the log says so. Until a first set was read the
process is not healthy, and tokens are answered 503.

A set that has not changed stays the same object, so that the verifier goes on remembering what it was asked before.
"""

from __future__ import annotations

import asyncio
import random
import stat
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from shared.backoff import Backoff
from shared.errors import Unavailable
from shared.jwks import KeySet, KeySetFault, UnknownKey, read_jwks
from shared.logs import OncePerSecond, get_log
from shared.tokens import Claims, TokenVerifier

_MOST_BYTES = 1 << 20
_log = get_log("keys")


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How often keys are read, in seconds: a file is looked at every `look_s`; a URL is fetched every `fetch_every_s`, for
    unknown keys every `fetch_again_s` at most, each time within `fetch_s`; after failures it waits from `first_pause_s`
    to `last_pause_s`.
    """

    look_s: float = 2.0
    fetch_every_s: float = 300.0
    fetch_again_s: float = 10.0
    fetch_s: float = 5.0
    first_pause_s: float = 0.5
    last_pause_s: float = 30.0


class KeySource:
    """
    The key set, kept fresh, and the verifier over it. `await start()`, `await close()`.

    `jwks`: "" (the secret alone), a path, or an http(s) URL.
    """

    __slots__ = (
        "_asked",
        "_complaint",
        "_jwks",
        "_keys",
        "_pace",
        "_read_at",
        "_secret",
        "_stamp",
        "_task",
        "_text",
        "_verifier",
    )

    def __init__(
        self, secret: str, jwks: str, *, audience: str = "", issuer: str = "", pace: Pace | None = None
    ) -> None:
        self._secret = secret
        self._jwks = jwks
        self._keys = KeySet(secret)
        self._pace = pace or Pace()
        self._stamp: tuple[int, ...] = ()
        self._text = b""
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
            if self._is_url and asyncio.get_running_loop().time() - self._read_at >= self._pace.fetch_again_s:
                self._asked.set()
                raise Unavailable("the token's key is not known yet; try again") from None
            raise

    async def start(self) -> None:
        """Read once, and keep reading. A file that cannot be read at the start is the settings' fault: KeySetFault."""
        if not self._jwks:
            return
        if not self._is_url:
            self.read_file()
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
            timeout = aiohttp.ClientTimeout(total=self._pace.fetch_s)
            async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as http:
                await self._keep_fetching(http)
        while True:
            await asyncio.sleep(self._pace.look_s)
            self._look()

    def _look(self) -> None:
        try:
            self.read_file()
        except (KeySetFault, OSError) as error:
            self._complain(str(error))
        except Exception:
            _log.exception("keys_failed")

    def read_file(self) -> None:
        """If it has changed. Raises KeySetFault, OSError."""
        path = Path(self._jwks)
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
        if stamp == self._stamp:
            return
        if not stat.S_ISREG(status.st_mode):
            raise KeySetFault("not a file")
        with path.open("rb") as file:
            self._use(file.read(_MOST_BYTES + 1))
        self._stamp = stamp

    async def _keep_fetching(self, http: aiohttp.ClientSession) -> None:
        backoff = Backoff(self._pace.first_pause_s, self._pace.last_pause_s)
        while True:
            if not await self._fetched(http):
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            self._asked.clear()
            try:
                async with asyncio.timeout(self._pace.fetch_every_s * random.uniform(0.8, 1.0)):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _fetched(self, http: aiohttp.ClientSession) -> bool:
        try:
            self._use(await self._fetch(http))
        except (KeySetFault, aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            self._complain(str(error) or type(error).__name__)
            return False
        except Exception:
            _log.exception("keys_failed")
            return False
        return True

    async def _fetch(self, http: aiohttp.ClientSession) -> bytes:
        """No more than a byte too many. Raises KeySetFault, ClientError, TimeoutError."""
        headers = {"Accept": "application/jwk-set+json, application/json"}
        async with http.get(self._jwks, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise KeySetFault(f"answered {answer.status}")
            text = bytearray()
            async for part in answer.content.iter_any():
                text += part
                if len(text) > _MOST_BYTES:
                    break
        return bytes(text)

    def _use(self, text: bytes) -> None:
        """Raises KeySetFault."""
        if len(text) > _MOST_BYTES:
            raise KeySetFault(f"more than {_MOST_BYTES} bytes")
        if text != self._text:
            self._keys = read_jwks(text, self._secret)
            self._text = text
            _log.info("keys_read", keys=len(self._keys))
            if self._keys.was_private:
                _log.warning("private_keys", keys=self._keys.was_private, advice="give verifiers public keys alone")
        self._read_at = asyncio.get_running_loop().time()

    def _complain(self, reason: str) -> None:
        if self._complaint.due():
            _log.warning("keys_not_read", reason=reason[:200], effect="the last good set stays in use")
