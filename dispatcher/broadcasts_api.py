"""
/v1/broadcasts: begin a paced broadcast, see how far it is, abort it.

Whichever dispatcher is asked, any of them runs it (broadcasts.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from dispatcher.broadcast_records import Broadcast, Broadcasts, Wish
from dispatcher.broadcasts import BroadcastRunner
from dispatcher.quota import Quotas, used_up
from dispatcher.requests import DEFAULT_TTL_S, MOST_GROUPS, MOST_TTL_S, SendBody, checked_send
from dispatcher.v1 import Call, Operation, Reply, page_limit
from shared.clients import KnownClients
from shared.errors import BadRequest, NotFound
from shared.groups import Groups
from shared.ids import is_message_id, mint_request_id
from shared.logs import get_log

MOST_RATE = 100_000
_MOST_ON_PAGE = 1_000
_PAGE = 100
_BROADCASTS = "/v1/broadcasts"
_BROADCAST = f"{_BROADCASTS}/{{broadcastId}}"
_log = get_log("broadcasts")


class BroadcastBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A broadcast as its caller asks for it."""

    msg: msgspec.Raw
    to_all: bool | None = None
    to_groups: str | list[str] | None = None
    rate: float | None = None
    sender: str | None = msgspec.field(default=None, name="from")
    ttl: float | None = None
    request_id: str | None = None


class BroadcastAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A broadcast and how far it is."""

    broadcast_id: str
    message_id: str
    state: str
    to_all: bool
    to_groups: list[str]
    rate: int
    targets: int
    reached: int
    online: int
    offline: int
    failed: int
    created: int
    ended: int | None


class BroadcastsPage(msgspec.Struct, frozen=True):
    """Some of the broadcasts, the newest first."""

    broadcasts: list[BroadcastAnswer]
    cursor: str | None


FIELDS = {
    "BroadcastBody": {
        "msg": "any JSON value; it reaches the clients byte for byte",
        "toAll": "true: to everyone who is known, online or not",
        "toGroups": f"or a groupId, or up to {MOST_GROUPS} of them: to their members",
        "rate": f"targets a second, 1 to {MOST_RATE}; default: PUSH_BROADCAST_RATE",
        "from": "the name that clients see; default: the API key's",
        "ttl": f"seconds until the message expires, 1 to {MOST_TTL_S}; default {DEFAULT_TTL_S}",
        "requestId": "idempotency key: the same again gives the same broadcast, for as long as it is kept",
    },
    "BroadcastAnswer": {
        "messageId": "the same for all targets",
        "state": "`running`, `done`, `aborted`, or `expired`: its ttl was over before all were reached",
        "targets": "how many there were when it began; a client in two groups counts twice",
        "reached": "online and offline ones together",
        "online": "targets that had a session it was sent to",
        "offline": "targets that get it when they connect",
        "failed": "targets that do not get it, as their inbox was full",
        "created": "epoch ms",
        "ended": "epoch ms; null while it runs",
    },
    "BroadcastsPage": {"cursor": "names the next page; null: this is the last"},
}


class BroadcastsApi:
    """The operations on broadcasts. `rate`: of those that name none, targets/s."""

    __slots__ = ("_clients", "_groups", "_quotas", "_rate", "_records", "_runner")

    def __init__(
        self,
        records: Broadcasts,
        runner: BroadcastRunner,
        groups: Groups,
        clients: KnownClients,
        quotas: Quotas,
        *,
        rate: int,
    ) -> None:
        self._records = records
        self._runner = runner
        self._groups = groups
        self._clients = clients
        self._quotas = quotas
        self._rate = rate

    def operations(self) -> tuple[Operation[Any], ...]:
        read: dict[str, Any] = {"method": "GET", "scopes": ("read", "broadcast", "admin")}
        write: dict[str, Any] = {"scopes": ("broadcast", "admin"), "answer": BroadcastAnswer}
        return (
            Operation(
                **write,
                method="POST",
                path=_BROADCASTS,
                name="beginBroadcast",
                summary="Send to everyone or to groups, at so many targets a second",
                run=self._begin,
                body=BroadcastBody,
                statuses=(200, 201, 404, 409, 413),
            ),
            Operation(
                **read,
                path=_BROADCASTS,
                name="listBroadcasts",
                summary="The broadcasts that run or ended in the last 7 days, the newest first",
                run=self._list,
                answer=BroadcastsPage,
                query=(
                    ("cursor", "that of the page before; none: the first page"),
                    ("limit", f"how many at most, 1 to {_MOST_ON_PAGE}; default {_PAGE}"),
                ),
            ),
            Operation(
                **read,
                path=_BROADCAST,
                name="getBroadcast",
                summary="How far a broadcast is",
                run=self._get,
                answer=BroadcastAnswer,
                statuses=(200, 404),
            ),
            Operation(
                **write,
                method="DELETE",
                path=_BROADCAST,
                name="abortBroadcast",
                summary="Abort a broadcast: whoever it has not reached does not get it",
                run=self._abort,
                statuses=(200, 404, 409),
            ),
        )

    async def _begin(self, call: Call[BroadcastBody]) -> Reply:
        caller = call.caller
        caller.check()
        wish = self._wish(call.body, caller.id, caller.name)
        known = await self._records.begun_before(wish)
        if known is not None:
            return Reply(_answer(known))
        targets = await self._count(wish.groups, listed=isinstance(call.body.to_groups, list))
        caller.take()
        if caller.quota is not None and not await self._quotas.take(caller, 1):
            raise used_up(caller)
        broadcast, is_new = await self._records.begin(wish, wish.request_id or mint_request_id(), targets)
        if is_new:
            _log.info("broadcast_begun", broadcast_id=broadcast.id, caller=caller.name, targets=targets, rate=wish.rate)
            self._runner.wake()
        return Reply(_answer(broadcast), 201 if is_new else 200)

    def _wish(self, body: BroadcastBody, caller: str, name: str) -> Wish:
        """Raises BadRequest."""
        if bool(body.to_all) == bool(body.to_groups):
            raise BadRequest("expected either toAll or toGroups", field="toGroups")
        send = checked_send(
            SendBody(
                body.msg,
                send_to_all=body.to_all,
                to_groups=body.to_groups,
                sender=body.sender,
                ttl=body.ttl,
                request_id=body.request_id,
            )
        )
        rate = self._rate if body.rate is None else body.rate
        if not 1 <= rate <= MOST_RATE or rate != int(rate):
            raise BadRequest(f"expected a whole number from 1 to {MOST_RATE}, targets a second", field="rate")
        return Wish(caller, send.sender or name, send.groups, int(rate), send.ttl_ms, send.request_id, send.msg)

    async def _count(self, groups: Sequence[str], *, listed: bool) -> int:
        """Raises NotFound."""
        if not groups:
            return await self._clients.count()
        targets = 0
        for place, group in enumerate(await asyncio.gather(*map(self._groups.get, groups))):
            if group is None:
                raise NotFound(
                    f"there is no group {groups[place]}", field=f"toGroups[{place}]" if listed else "toGroups"
                )
            targets += group.members
        return targets

    async def _get(self, call: Call[None]) -> Reply:
        return Reply(_answer(await self._records.get(_id(call))))

    async def _list(self, call: Call[None]) -> Reply:
        cursor, limit = call.query.get("cursor", ""), page_limit(call.query, usual=_PAGE, most=_MOST_ON_PAGE)
        if cursor and not is_message_id(cursor):
            raise BadRequest("no cursor of a page", field="cursor")
        found = await self._records.newest(cursor, limit + 1)
        page = found[:limit]
        return Reply(BroadcastsPage([*map(_answer, page)], page[-1].id if len(found) > len(page) else None))

    async def _abort(self, call: Call[None]) -> Reply:
        broadcast = await self._records.abort(_id(call))
        _log.info("broadcast_aborted", broadcast_id=broadcast.id, caller=call.caller.name)
        return Reply(_answer(broadcast))


def _id(call: Call[None]) -> str:
    """Raises NotFound for what no broadcast is called."""
    broadcast_id = call.params["broadcastId"]
    if not is_message_id(broadcast_id):
        raise NotFound(f"there is no broadcast {broadcast_id[:64]}")
    return broadcast_id


def _answer(broadcast: Broadcast) -> BroadcastAnswer:
    about = broadcast.about
    return BroadcastAnswer(
        broadcast_id=broadcast.id,
        message_id=about.message_id,
        state=broadcast.state,
        to_all=not about.groups,
        to_groups=list(about.groups),
        rate=about.rate,
        targets=about.targets,
        reached=broadcast.online + broadcast.offline,
        online=broadcast.online,
        offline=broadcast.offline,
        failed=broadcast.failed,
        created=about.created_ms,
        ended=broadcast.ended_ms or None,
    )
