"""
The registry: which nodes live, and which session of a client is where.

A node holds a *lease* in Redis that it renews; when it stops, the lease expires. Each time a node takes its lease, at
its start and when the lease was lost, it has a new *epoch*. A *route* says that a session is on a node of an epoch; it
counts only while that node has a live lease with the same epoch, so a node that died takes its routes with it without
anybody removing them, and a node that was cut off owns nothing until it has registered its sessions again.

Lua files in `lua/` hold the layout. Whatever takes something away compares first: a session is removed by its
sessionId, which is never used again, and by who is not its node only with the epoch it was seen with; a lease only by
its epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec

from shared.cursors import Memberships, read_memberships
from shared.errors import StoreUnavailable
from shared.inbox import SLICE, Slice, read_slice
from shared.presence import Change, read_changes
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_REGISTER = Script(_LUA / "register.lua", SLICE, _LUA / "presence.lua")
_UNREGISTER = Script(_LUA / "unregister.lua", _LUA / "presence.lua")
_CHECK = Script(_LUA / "check.lua")
_RENEW = Script(_LUA / "renew.lua")
_RELEASE = Script(_LUA / "release.lua")
_ASK_DRAIN = Script(_LUA / "ask_drain.lua")
_WITHDRAW_DRAIN = Script(_LUA / "withdraw_drain.lua")
_DRAIN_REQUEST_S = 86_400
_MOST_IN_DOUBT = 100_000
MOST_SESSIONS = 100
"""Of a client, unless the settings say otherwise."""
_EMPTY = Slice(0, ())
_NO_AUDIENCES = Memberships(0, {})


class DrainState(msgspec.Struct, frozen=True):
    """
    How far a node's drain is: `left` of the `sessions` it had are still here.

    `by`: "signal" or "request"; `seconds`: how long closing them takes in all.
    """

    by: str
    seconds: float
    sessions: int
    left: int


class DrainRequest(msgspec.Struct, frozen=True):
    """A request to drain. It is for one epoch of a node; `seconds` None: as the node's settings say."""

    id: str
    epoch: str = ""
    seconds: float | None = None


class Lease(msgspec.Struct, frozen=True):
    """What a node tells of itself with each renewal. `lag_ms`: how far it is behind with its topic."""

    epoch: str
    url: str
    connections: int = 0
    weight: int = 1
    draining: bool = False
    drain: DrainState | None = None
    lag_ms: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A node with a live lease."""

    node_id: str
    lease: Lease


class Held(IntEnum):
    """How a renewal went."""

    YES = 1
    LOST = 0
    BURIAL = -1


@dataclass(frozen=True, slots=True)
class Renewal:
    """
    `drain` is the request to drain (JSON), b"" without one. `store_id` stays for as long as Redis keeps its data.
    """

    held: Held
    drain: bytes
    store_id: bytes


@dataclass(frozen=True, slots=True)
class DrainAnswer:
    """The node's lease as it is, and whether what was asked for changed anything."""

    lease: Lease
    changed: bool


class Joining(msgspec.Struct, frozen=True):
    """
    A session to be registered. `start`: where its client's cursor for everyone begins if it has none.

    `issued_s` (epoch s, 0: not said, None: it has no token): since when its token is good, for revocations.
    """

    client_id: str
    session_id: str
    device: str = ""
    start: int = 0
    issued_s: float | None = None


class Joined(msgspec.Struct, frozen=True):
    """
    A session that was registered: its inbox, its client's audiences, the sessions it replaced as (sessionId, epoch).

    `crowded` of these were replaced since the client had too many. `outdated`: it was to be registered again, and newer
    sessions have taken its place; `revoked`: its token was revoked; nothing was done.
    """

    inbox: Slice
    audiences: Memberships
    replaced: tuple[tuple[str, str], ...] = ()
    crowded: int = 0
    outdated: bool = False
    revoked: bool = False


class Checked(msgspec.Struct, frozen=True):
    """What the sweep finds: how often the client's memberships have changed, and messageIds of its inbox."""

    version: int
    message_ids: list[bytes]


def _client_of(item: tuple[str, object]) -> str:
    return item[0]


def _joined(answer: list[Any]) -> Joined:
    inbox, others, audiences, crowded, _ = answer
    if isinstance(inbox, int):
        return Joined(_EMPTY, _NO_AUDIENCES, outdated=inbox == -1, revoked=inbox == -2)
    replaced = tuple((others[i].decode(), others[i + 1].decode()) for i in range(0, len(others), 2)) if others else ()
    return Joined(read_slice(inbox), read_memberships(audiences), replaced, crowded)


class Registry:
    """Leases and routes in Redis. Calls for clients take a batch; all raise StoreUnavailable."""

    __slots__ = ("_changed", "_in_doubt", "_most_sessions", "_policy", "_store")

    def __init__(
        self,
        store: Store,
        *,
        policy: str = "multi",
        most_sessions: int = MOST_SESSIONS,
        changed: Callable[[Sequence[Change]], None] | None = None,
    ) -> None:
        """
        `policy`: which older sessions a new one replaces; multi (none), device, client.

        `most_sessions` of a client: beyond it the oldest are replaced, too.

        `changed` is told what this registry changed in routes, in the order of the stamps for each client.
        """
        self._store = store
        self._policy = policy
        self._most_sessions = most_sessions
        self._changed = changed
        self._in_doubt: set[str] = set()  # sessions of this node that may be removed: no answer came

    # -- leases ----------------------------------------------------------------------------------------------

    async def renew(self, node_id: str, lease: Lease, *, life_s: float) -> Renewal:
        """Renew the lease, if its epoch holds it."""
        return await self._renew(node_id, lease, life_s, take=False)

    async def take(self, node_id: str, lease: Lease, *, life_s: float) -> Renewal:
        """Take the lease, also from a predecessor; not while a janitor cleans up behind one."""
        return await self._renew(node_id, lease, life_s, take=True)

    async def release(self, node_id: str, epoch: str, *, clean: bool) -> None:
        """
        Give the lease back; nobody is sent to this node from now on.

        `clean`: neither routes nor a topic are left, so a janitor has nothing to do.
        """
        keys = self._store.keys
        names = (keys.lease(node_id), keys.node_ids, keys.starts, keys.drain(node_id))
        await self._store.run(_RELEASE, names, (node_id, epoch, int(clean)))

    async def _renew(self, node_id: str, lease: Lease, life_s: float, *, take: bool) -> Renewal:
        keys = self._store.keys
        names = (
            *(keys.lease(node_id), keys.node_ids, keys.starts),
            *(keys.burial(node_id), keys.drain(node_id), keys.store_id),
        )
        args = (node_id, lease.epoch, int(life_s * 1000), msgspec.json.encode(lease), int(take))
        held, drain, store_id = await self._store.run(_RENEW, names, args)
        return Renewal(Held(held), drain, store_id)

    # -- drains ----------------------------------------------------------------------------------------------

    async def ask_drain(self, node_id: str, request: DrainRequest) -> DrainAnswer | None:
        """
        Ask a node to drain, under the epoch it has now; it sees that with its next renewal.

        Nothing changes when it drains already, or was asked to. None: it has no lease.
        """
        args = (msgspec.json.encode(request), _DRAIN_REQUEST_S)
        return await self._drain_call(_ASK_DRAIN, node_id, args)

    async def withdraw_drain(self, node_id: str) -> DrainAnswer | None:
        """Take a request to drain back. Nothing changes when there is none, or a signal has it drain."""
        return await self._drain_call(_WITHDRAW_DRAIN, node_id, ())

    async def _drain_call(self, script: Script, node_id: str, args: Sequence[bytes | int]) -> DrainAnswer | None:
        keys = self._store.keys
        answer = await self._store.run(script, (keys.lease(node_id), keys.drain(node_id)), args)
        if answer is None:
            return None
        return DrainAnswer(msgspec.json.decode(answer[0], type=Lease), bool(answer[1]))

    # -- sessions --------------------------------------------------------------------------------------------

    async def register(
        self,
        node_id: str,
        epoch: str,
        sessions: Sequence[Joining],
        *,
        most: int,
        most_bytes: int,
        again: bool = False,
    ) -> Sequence[Joined]:
        """Register sessions and read their inboxes, in one step. `again`: they were registered before."""
        head = (node_id, epoch, most, most_bytes, self._policy, int(again), self._most_sessions)

        async def register_some(some: Sequence[Joining]) -> list[Joined]:
            names: list[str] = []
            args: list[str | int | float] = [*head]
            for session in some:
                names += self._store.keys.session(session.client_id)
                issued = "" if session.issued_s is None else session.issued_s
                args += (session.session_id, session.device, f"{session.start:016d}", issued)
            answers = await self._store.run(_REGISTER, names, args)
            self._tell(answer[-1] for answer in answers)
            return [_joined(answer) for answer in answers]

        return await self._store.split(sessions, lambda session: session.client_id, register_some)

    async def unregister(self, sessions: Sequence[tuple[str, str, str]]) -> int:
        """
        Remove sessions (clientId, sessionId, epoch) from their clients' routes; how many were there.

        Only where they are still those of the epoch; "" is for the session's own node, which need not tell.
        """
        return sum(await self._store.split(sessions, lambda session: session[0], self._unregister_some))

    async def check(
        self, epoch: str, sessions: Sequence[tuple[str, str]], *, grace_s: float
    ) -> Sequence[Checked | None]:
        """
        Each session (clientId, sessionId) and the messages in its inbox older than `grace_s`.

        None: it is not registered with this epoch.
        """

        async def check_some(some: Sequence[tuple[str, str]]) -> list[Checked | None]:
            names: list[str] = []
            for client_id, _ in some:
                route, inbox, _, _, audiences = self._store.keys.session(client_id)
                names += (route, inbox, audiences)
            args = (epoch, int(grace_s * 1000), *(session_id for _, session_id in some))
            answers = await self._store.run(_CHECK, names, args)
            return [None if answer == -1 else Checked(answer[0], answer[1:]) for answer in answers]

        return await self._store.split(sessions, _client_of, check_some)

    async def _unregister_some(self, sessions: Sequence[tuple[str, str, str]]) -> list[int]:
        names: list[str] = []
        args: list[str] = []
        for client_id, session_id, epoch in sessions:
            route, _, _, device, _ = self._store.keys.session(client_id)
            names += (route, device)
            args += (session_id, epoch)
        try:
            answers = await self._store.run(_UNREGISTER, names, args)
        except StoreUnavailable:
            if self._changed is not None and len(self._in_doubt) < _MOST_IN_DOUBT:
                self._in_doubt.update(session_id for _, session_id, epoch in sessions if not epoch)
            raise
        self._tell(
            changes
            for (removed, changes), (_, session_id, _) in zip(answers, sessions, strict=True)
            if removed or session_id in self._in_doubt
        )
        self._in_doubt.difference_update(session_id for _, session_id, _ in sessions)
        return [removed for removed, _ in answers]

    def _tell(self, answers: Iterable[list[Any]]) -> None:
        """What presence.lua noted in a call."""
        if self._changed is not None:
            self._changed([change for flat in answers if flat for change in read_changes(flat)])
