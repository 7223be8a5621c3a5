"""
Callers: who sends, what it may, and how fast.

A request presents an API key (key_file.py) or a JWT in `Authorization: Bearer`, a key also in `X-API-Key`.

    presented -> its SHA-256 is a key's? -> that caller
              -> a JWT (two dots) that verifies, with `exp` and a scope of ours -> the caller named by its `sub`
              -> nobody: 401, and counted against the address (auth_failures.py)

A JWT's `scope` is a list with spaces between (RFC 8693 section 4.2). A client's connect token has none, so it is no
caller's. The callers of keys are `key:<name>`, those of JWTs `jwt:<sub>`, so neither can stand in for the other.

`rate` (sends/s) is a token bucket of one second in this process; `quota` (sends a UTC day) is counted in Redis, over
all dispatchers. A caller whose entry is read again keeps its bucket.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Sequence
from copy import copy

from dispatcher.auth_failures import AuthFailures
from dispatcher.key_file import SCOPES, KeyEntry, digest_of
from dispatcher.metrics import REFUSED
from shared.errors import Forbidden, Overloaded, Unauthorized
from shared.key_source import KeySource
from shared.tokens import Claims

_MOST_TOKEN_CALLERS = 10_000
_MOST_GOOD_TOKENS = 20_000
_SCOPES = frozenset(SCOPES)


class Bucket:
    """A token bucket of one second. `rate` in tokens/s; None is no bound."""

    __slots__ = ("_filled_at", "_now", "level", "rate")

    def __init__(self, rate: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.level = max(rate or 0.0, 1.0)
        self._now = now
        self._filled_at = now()

    def change(self, rate: float | None) -> None:
        """What was used up stays used up."""
        if rate == self.rate:
            return
        self._fill()
        self.level = min(self.level, max(rate or 0.0, 1.0)) if self.rate is not None else max(rate or 0.0, 1.0)
        self.rate = rate

    def wait_s(self) -> float:
        """How long until there is a token; 0: there is one now."""
        if self.rate is None:
            return 0.0
        self._fill()
        return 0.0 if self.level >= 1.0 else (1.0 - self.level) / self.rate

    def _fill(self) -> None:
        now = self._now()
        if self.rate is not None:
            self.level = min(max(self.rate, 1.0), self.level + (now - self._filled_at) * self.rate)
        self._filled_at = now


class Caller:
    """A business system: its name, what it may, and how much it may send now. `id` is never another caller's."""

    __slots__ = ("_bucket", "id", "may_send", "name", "quota", "scopes")

    def __init__(
        self,
        name: str,
        scopes: frozenset[str],
        *,
        kind: str = "key",
        rate: float | None = None,
        quota: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = f"{kind}:{name}"
        self.name = name
        self._bucket = Bucket(rate, now)
        self.change(scopes, rate, quota)

    def with_scopes(self, scopes: frozenset[str]) -> Caller:
        """The same caller with a token that says otherwise: one bucket for both."""
        other = copy(self)
        other.change(scopes, self._bucket.rate, self.quota)
        return other

    def change(self, scopes: frozenset[str], rate: float | None, quota: int | None) -> None:
        """What it may from now on."""
        self.scopes = scopes
        self.may_send = not scopes.isdisjoint(("send", "broadcast"))
        self.quota = quota
        self._bucket.change(rate)

    def require(self, scope: str) -> None:
        """Raises Forbidden."""
        if scope not in self.scopes:
            raise Forbidden(f"{self.name} has no scope {scope!r}")

    def check(self) -> None:
        """Raises Overloaded if a send would be, without counting one."""
        if self._bucket.rate is not None and (wait_s := self._bucket.wait_s()):
            REFUSED.labels("rate").inc()
            raise Overloaded(f"{self.name}: over {self._bucket.rate:g} sends a second", retry_after_s=math.ceil(wait_s))

    def take(self) -> None:
        """Count one send. Raises Overloaded with when the next has room."""
        if self._bucket.rate is not None:
            self.check()
            self._bucket.level -= 1.0


class Callers:
    """
    Who presents which key or token. With no keys (PUSH_AUTH=off) everybody is `system` and may do everything.

    `tokens` checks those of callers, `client_tokens` those that clients connect with, if others: where an end user's
    token may say `scope` as well, `aud` has to tell the two apart (PUSH_CALLER_AUDIENCE). `rate`: of JWT callers and of
    keys that name none, sends/s; 0 is no bound.
    """

    __slots__ = (
        "_anybody",
        "_by_digest",
        "_by_name",
        "_by_sub",
        "_client_tokens",
        "_failures",
        "_good_tokens",
        "_rate",
        "_tokens",
    )

    def __init__(
        self,
        keys: Sequence[KeyEntry] | None,
        *,
        tokens: KeySource | None = None,
        client_tokens: KeySource | None = None,
        failures: AuthFailures | None = None,
        rate: float = 0.0,
    ) -> None:
        self._anybody = Caller("system", frozenset(SCOPES)) if keys is None else None
        self._tokens = tokens
        self._client_tokens = client_tokens or tokens
        self._failures = AuthFailures(0.0) if failures is None else failures
        self._rate = rate or None
        self._by_digest: dict[bytes, tuple[bytes, Caller, float]] = {}
        self._by_name: dict[str, Caller] = {}
        self._by_sub: dict[str, Caller] = {}
        self._good_tokens: dict[bytes, None] = {}
        self.use(keys or ())

    def use(self, keys: Sequence[KeyEntry]) -> None:
        """These are the keys from now on. A caller whose name stays keeps its bucket; whose name is gone is nobody."""
        by_digest: dict[bytes, tuple[bytes, Caller, float]] = {}
        by_name: dict[str, Caller] = {}
        for entry in keys:
            rate = self._rate if entry.rate is None else entry.rate
            caller = self._by_name.get(entry.name)
            if caller is None:
                caller = Caller(entry.name, frozenset(entry.scopes), rate=rate, quota=entry.quota)
            else:
                caller.change(frozenset(entry.scopes), rate, entry.quota)
            by_name[entry.name] = caller
            expires_s = entry.expires_s()
            for digest in entry.digests():
                by_digest[digest] = (digest, caller, expires_s)
        self._by_digest, self._by_name = by_digest, by_name

    def find(self, presented: str) -> Caller | None:
        """The caller with this API key, if there is one and it is still good."""
        if self._anybody is not None:
            return self._anybody
        digest = digest_of(presented)
        known = self._by_digest.get(digest)
        # The look-up tells a guesser at most something of the digests of keys, from which no key follows; the
        # comparison in constant time tells nothing more.
        if known is None or not hmac.compare_digest(known[0], digest):
            return None
        return None if known[2] and known[2] <= time.time() else known[1]

    def identify(self, presented: str, address: str = "") -> Caller:
        """
        The caller with this key or token; `address` is where the request came from.

        Raises Unauthorized; Overloaded when too many came from there before; Unavailable while a key of tokens is
        not known yet.
        """
        caller = self.find(presented)
        if caller is not None:
            return caller
        try:
            caller = self._of_claims(self._verified(self._tokens, presented, address))
        except Unauthorized as error:
            self._failures.count(address, str(error))
            raise
        if caller is None:  # a good token all the same: no failure to count
            raise Unauthorized(f"the token is no caller's: it has to have an exp and a scope of {', '.join(SCOPES)}")
        return caller

    def check_reader(self, presented: str, address: str, client_ids: Sequence[str]) -> float | None:
        """
        Whether this key or token may ask about these clients: any caller's may, a client's connect token only about
        itself. Gives the `iat` of a client's token (0: not said), else None. Raises Forbidden, and as `identify` does.
        """
        if self.find(presented) is not None:
            return None
        try:
            claims = self._verified(self._client_tokens, presented, address)
        except Unauthorized:
            self.identify(presented, address)
            return None
        if self._client_tokens is self._tokens and self._of_claims(claims) is not None:
            return None
        if [claims.client_id] != client_ids:
            raise Forbidden("this token is another client's", field="clientId")
        return claims.issued_s

    def _of_claims(self, claims: Claims) -> Caller | None:
        """The caller that a good token names, if it names one."""
        scopes = _SCOPES.intersection(claims.scopes)
        return self._token_caller(claims.client_id, scopes) if scopes and claims.expires_s else None

    def _verified(self, tokens: KeySource | None, presented: str, address: str) -> Claims:
        """Raises as `identify` does."""
        if tokens is None or not tokens.ready or presented.count(".") != 2:
            raise Unauthorized(self._unknown(presented))
        digest = digest_of(presented)
        if digest not in self._good_tokens:  # who guesses a lot makes no signatures be checked
            self._failures.check(address)
        try:
            claims = tokens.verify(presented)
        except Unauthorized:
            self._good_tokens.pop(digest, None)  # it has expired, or its key is gone
            raise
        self._remember(digest)
        return claims

    def _remember(self, digest: bytes) -> None:
        if digest not in self._good_tokens:
            if len(self._good_tokens) >= _MOST_GOOD_TOKENS:
                del self._good_tokens[next(iter(self._good_tokens))]
            self._good_tokens[digest] = None

    def _unknown(self, presented: str) -> str:
        if not presented:
            return "present an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`"
        return "the API key has expired" if digest_of(presented) in self._by_digest else "unknown API key"

    def _token_caller(self, sub: str, scopes: frozenset[str]) -> Caller:
        caller = self._by_sub.pop(sub, None)
        if caller is None:
            caller = Caller(sub, scopes, kind="jwt", rate=self._rate)
            if len(self._by_sub) >= _MOST_TOKEN_CALLERS:
                del self._by_sub[next(iter(self._by_sub))]  # the one that was seen the longest ago
        self._by_sub[sub] = caller
        return caller if caller.scopes == scopes else caller.with_scopes(scopes)


def presented_key(authorization: str | None, api_key: str | None) -> str:
    """The key or token in a request's headers; "" when there is none."""
    if authorization is not None and authorization[:7].lower() == "bearer ":
        return authorization[7:].strip()
    return api_key or ""
