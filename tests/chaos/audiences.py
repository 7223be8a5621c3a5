"""
The load on audiences: sends to groups and to everyone, and clients that join and leave while these fly.

Who must get a message is who was a member clearly before its send began and clearly after it was answered. A client
that joins is a member clearly once that was answered. One that leaves is none clearly when the page of the ledger was
turned after that and nodes have had the time for a sweep: what it gets until then counts neither way.

A client leaves a group only when nothing is missing that it must get, and changes a group at most once a page, so that
no old try of a call comes upon a new state.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from shared.backoff import Backoff
from shared.keys import EVERYONE
from shared.store import Store
from tests.chaos.ledger import Kind, Ledger
from tests.chaos.load import Sender

_SIZES = (2, 6, 15, 30, 60)
_PLAIN_IN_EACH = 2
_SWING = 3
_TO_EVERYONE = 0.15
_TO_TWO_GROUPS = 0.2
_TO_CLIENTS_TOO = 0.2
_TRY_S = 8.0
_GONE_S = 15.0  # the sweep is each 5 s; longer than a try at that


@dataclass(slots=True)
class Group:
    """
    Its members, those that are on their way in or out, those that left (and when), who `changed` in this page.
    """

    group_id: str
    size: int
    members: set[str]
    unclear: set[str] = field(default_factory=set)
    gone: dict[str, float] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    @property
    def may(self) -> set[str]:
        return self.unclear | self.gone.keys()


class Audiences:
    """`clients` acknowledge and must get what is sent; those that are `plain` may."""

    def __init__(self, sender: Sender, ledger: Ledger, clients: Sequence[str], plain: Sequence[str]) -> None:
        self._sender = sender
        self._ledger = ledger
        self._clients = clients
        self._plain = frozenset(plain)
        self._open: dict[str, tuple[tuple[Group, ...], frozenset[str]]] = {}
        name = f"{random.randrange(2**32):08x}"
        self.groups = [self._draw(f"g{name}-{size}", min(size, len(clients))) for size in _SIZES]

    def _draw(self, group_id: str, size: int) -> Group:
        plain = random.sample(sorted(self._plain), min(_PLAIN_IN_EACH, len(self._plain)))
        return Group(group_id, size + len(plain), {*random.sample(self._clients, size), *plain})

    async def create(self) -> None:
        """All groups, with their first members."""
        for group in self.groups:
            body = {"groupId": group.group_id, "members": sorted(group.members)}
            assert 201 == await self._call("POST", "/v1/groups", body)

    # -- sends ---------------------------------------------------------------------------------------------------

    async def send(self) -> None:
        """One send, to a group or two, to clients besides, or to everyone; until it is answered 200."""
        key = self._sender.next_key()
        item: dict[str, Any] = {"msg": {"key": key}, "requestId": key}
        groups: tuple[Group, ...] = ()
        to: frozenset[str] = frozenset()
        if random.random() < _TO_EVERYONE:
            item["sendToAll"] = True
            self._begun(key, {*self._clients}, self._plain, Kind.EVERYONE, EVERYONE)
        else:
            groups = tuple(random.sample(self.groups, 2 if random.random() < _TO_TWO_GROUPS else 1))
            item["toGroups"] = [group.group_id for group in groups]
            if random.random() < _TO_CLIENTS_TOO:
                to = frozenset(random.sample(self._clients, 2))
                item["to"] = sorted(to)
            must = set(to).union(*(group.members for group in groups)) - self._plain
            may = set().union(*(group.may | group.members for group in groups)) - must
            self._begun(key, must, may, Kind.GROUP, " ".join(sorted((*item["toGroups"], *to))))
        self._open[key] = groups, to
        try:
            await self._sender.send({key: item}, one_by_one=random.random() < 0.5)
        finally:
            del self._open[key]

    def _begun(self, key: str, must: set[str], may: frozenset[str] | set[str], kind: Kind, lane: str) -> None:
        self._ledger.begun(key, must, asyncio.get_running_loop().time(), may=may, kind=kind, lane=lane)

    # -- members -------------------------------------------------------------------------------------------------

    async def change(self) -> None:
        """One client joins or leaves a group, which stays about as large as it was."""
        group = random.choice(self.groups)
        joins = len(group.members) - group.size + random.randrange(-_SWING, _SWING) < 0
        able = [each for each in self._clients if joins != (each in group.members)]
        client_id = random.choice(able) if able else ""
        if not client_id or client_id in group.changed or client_id in group.may:
            return
        if joins:
            await self._join(group, client_id)
        elif not self._ledger.missing_of(client_id):
            await self._leave(group, client_id)

    def page_turned(self) -> None:
        """All that was sent has come, and nothing is under way: who left long enough ago is gone."""
        now = asyncio.get_running_loop().time()
        for group in self.groups:
            group.changed = {*group.unclear}
            group.gone = {client_id: at for client_id, at in group.gone.items() if now - at < _GONE_S}

    async def _join(self, group: Group, client_id: str) -> None:
        self._unclear(group, client_id)
        await self._until_done("POST", group, client_id)
        group.unclear.discard(client_id)
        group.members.add(client_id)

    async def _leave(self, group: Group, client_id: str) -> None:
        group.members.discard(client_id)
        self._unclear(group, client_id)
        await self._until_done("DELETE", group, client_id)
        group.unclear.discard(client_id)
        group.gone[client_id] = asyncio.get_running_loop().time()

    def _unclear(self, group: Group, client_id: str) -> None:
        """Of what is being sent to the group nobody knows whether it gets it, unless it does otherwise."""
        group.unclear.add(client_id)
        group.changed.add(client_id)
        for key, (groups, to) in self._open.items():
            others = [other for other in groups if other is not group and client_id in other.members]
            if group in groups and client_id not in to and not others:
                self._ledger.may(key, client_id)

    async def _until_done(self, method: str, group: Group, client_id: str) -> None:
        backoff = Backoff(0.1, 1.0)
        path = f"/v1/groups/{group.group_id}/members"
        while await self._call(method, path, {"members": [client_id]}) != 200:  # noqa: ASYNC110 - a retry
            await asyncio.sleep(backoff.next_s())

    async def _call(self, method: str, path: str, body: object) -> int:
        """The status; 0: none came."""
        url = random.choice(self._sender.urls()) + path
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(_TRY_S),
                self._sender.http.request(method, url, data=orjson.dumps(body), headers=headers) as answer,
            ):
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0


async def behind(store: Store, client_ids: Sequence[str]) -> list[str]:
    """Of each client the audiences whose newest message it has not acknowledged, in words."""
    redis, keys = store.redis, store.keys
    newest: dict[str, int] = {}
    found = []
    for client_id in client_ids:
        cursors = await redis.hgetall(keys.audiences(client_id))
        for field_, value in cursors.items():
            name = str(field_, "utf-8") if isinstance(field_, bytes) else field_
            if name == "#":
                continue
            if name not in newest:
                newest[name] = int(await redis.hget(keys.audience(name)[0], "last") or 0)
            if int(value) < newest[name]:
                found.append(f"{client_id} in {name}: {int(value)} of {newest[name]}")
    return found
