"""
Groups: who is a member of which, on both sides.

A group's partition holds its `members`; a client's partition holds its `audiences`, each with the client's cursor in
it. The two may lie on different masters, so a membership changes in steps, up to 500 clients a call:

    join    the group: a member?, room?, last order -> the client: cursor = last, version + 1 -> compare
    leave   the group: no member                    -> the client: no cursor, version + 1     -> compare

*Compare* asks the group again whether what the client's side was told is so still, and tells it anew if not: whatever
calls about the same client meet, the last of them to write has looked afterwards, so both sides agree when all are
done. Each step is carried out for every client that is named, also for one that is a member already, so a call that
broke half way (its dispatcher was killed, Redis went away) is mended by asking again.

A group exists for as long as its hash has `created`. Deleting takes that away first; the members stay in the set until
each has left, so a delete that broke is finished by asking again, and until it is no group of that id can be made.

The audiences of a client in no group are kept for 30 days: they hold the version, which must not begin anew while
somebody remembers the old one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

from shared.errors import BadRequest, NotFound, Unavailable, WrongState
from shared.ids import client_id_fault, display_name_fault
from shared.paging import PAGE, read_cursor, read_page
from shared.store import Script, Store

_LUA = Path(__file__).parent / "lua"
_CREATE = Script(_LUA / "group_create.lua")
_READ = Script(_LUA / "group_read.lua")
_JOIN = Script(_LUA / "group_join.lua")
_LEAVE = Script(_LUA / "group_leave.lua")
_ENTER = Script(_LUA / "group_enter.lua")
_QUIT = Script(_LUA / "group_quit.lua")
_STANDING = Script(_LUA / "group_standing.lua")
_MARK = Script(_LUA / "group_mark.lua")
_CLEAR = Script(_LUA / "group_clear.lua")
_PAGE = Script(_LUA / "group_page.lua", PAGE)
_KEPT_S = 60 * 86_400  # longer than any message is kept
_MOST_COMPARISONS = 16


class Standing(IntEnum):
    NO_GROUP = 0
    NOT_MEMBER = 1
    MEMBER = 2


@dataclass(frozen=True, slots=True)
class Group:
    """`created_ms`: epoch ms; `owner`: a clientId or ""; `members`: how many."""

    group_id: str
    name: str
    owner: str
    created_ms: int
    members: int


@dataclass(frozen=True, slots=True)
class Changed:
    """
    What a call did: how many memberships changed, who was refused (clientId, reason), and the sessions (clientId,
    sessionId, epoch) of those whose audiences changed, which are to be told.
    """

    count: int
    refused: tuple[tuple[str, str], ...]
    sessions: tuple[tuple[str, str, str], ...]


@dataclass(slots=True)
class _Tally:
    """A `Changed` while it grows."""

    changed: set[str] = field(default_factory=set)
    refused: list[tuple[str, str]] = field(default_factory=list)
    sessions: dict[tuple[str, str, str], None] = field(default_factory=dict)

    def result(self) -> Changed:
        return Changed(len(self.changed), tuple(self.refused), tuple(self.sessions))


def _client_of(item: tuple[str, ...]) -> str:
    return item[0]


class Groups:
    """
    Groups in Redis. All raise StoreUnavailable.

    Of the ids of members it is the caller who checks the form (shared.ids.client_id_fault): it knows where they stood.
    `refused` is called with the limit, `group_members` or `client_groups`, and for how many clients it was met.
    """

    __slots__ = ("_most_groups", "_most_in_call", "_most_members", "_refused", "_store")

    def __init__(
        self,
        store: Store,
        *,
        most_members: int = 100_000,
        most_groups: int = 1_000,
        most_in_call: int = 500,
        refused: Callable[[str, int], None] = lambda limit, count: None,
    ) -> None:
        self._store = store
        self._refused = refused
        self._most_members = most_members
        self._most_groups = most_groups
        self._most_in_call = most_in_call

    async def create(self, group_id: str, *, name: str, owner: str, members: Sequence[str]) -> Changed:
        """
        Raises WrongState when it exists or is being deleted, BadRequest for a bad id or name or too many members.

        When it raises StoreUnavailable the group may be there with some of its members: `add` the others.
        """
        self._check(client_id_fault(group_id), "groupId")
        self._check(display_name_fault(name), "groupName")
        self._check_count(members)
        about, _, key, _ = self._store.keys.audience(group_id)
        created = await self._store.run(_CREATE, (about, key), (name, owner, uuid4().hex))
        if created == 0:
            raise WrongState(f"the group {group_id} exists already")
        if created < 0:
            raise WrongState(f"the group {group_id} is being deleted; delete it again to finish that")
        return await self.add(group_id, members)

    async def get(self, group_id: str) -> Group | None:
        """None: it does not exist."""
        found = None if client_id_fault(group_id) else await self._read(group_id)
        return None if found is None else found[0]

    async def rename(self, group_id: str, name: str) -> Group:
        """The group as it is now. Raises NotFound, BadRequest."""
        self._keys(group_id)
        self._check(display_name_fault(name), "groupName")
        found = await self._read(group_id, name)
        if found is None:
            raise _not_found(group_id)
        return found[0]

    async def add(self, group_id: str, client_ids: Sequence[str]) -> Changed:
        """
        Have clients join. They get what is sent to the group from here on.

        Refused, each with the reason: for whom the group has no room, and who is in too many groups. Raises NotFound,
        BadRequest when more are named than a group may have.
        """
        self._keys(group_id)
        self._check_count(client_ids)
        tally = _Tally()
        for some in self._slices(client_ids):
            await self._add_some(group_id, some, tally)
        return tally.result()

    async def remove(self, group_id: str, client_ids: Sequence[str]) -> Changed:
        """Have clients leave; who is no member is passed over. Raises NotFound."""
        self._keys(group_id)
        tally = _Tally()
        for some in self._slices(client_ids):
            tally.changed |= await self._leave(group_id, some, tally)
        return tally.result()

    async def delete(self, group_id: str) -> AsyncIterator[Changed]:
        """
        Delete a group, a slice of its members at a time. Raises NotFound.

        When it is not gone through to its end the group is gone all the same, but its id is not free: delete it again.
        """
        keys = self._keys(group_id)
        about, _, members, _ = keys
        if not await self._store.run(_MARK, (about, members), ()):
            raise _not_found(group_id)
        left: list[str] = []
        while True:
            answer = await self._store.run(_CLEAR, keys, (self._most_in_call, *left))
            tally = _Tally()
            if answer is None:  # another call has finished this, and a group was made since
                await self._compare(group_id, left, False, tally)
                yield tally.result()
                return
            if not answer:
                return
            left = [client_id.decode() for client_id in answer]
            await self._quit(group_id, left, tally)
            tally.changed.update(left)
            yield tally.result()

    async def members(self, group_id: str, cursor: str, limit: int) -> tuple[list[str], str]:
        """
        A page of about `limit` members, and the cursor of the next: "" at first, and after the last.

        Whoever is a member all the while is on a page; who joins or leaves meanwhile may be on one, or on two. Raises
        NotFound, BadRequest for a cursor that is none.
        """
        about, _, key, _ = self._keys(group_id)
        scan, behind = read_cursor(cursor)
        answer = await self._store.run(_PAGE, (about, key), (scan, limit, behind))
        if answer is None:
            raise _not_found(group_id)
        return read_page(answer)

    async def standing(self, asked: Sequence[tuple[str, str]]) -> list[Standing]:
        """For each (groupId, clientId) whether it is a member, in order."""
        answers: list[Standing] = []
        for start in range(0, len(asked), self._most_in_call):
            some = asked[start : start + self._most_in_call]
            answers += await self._store.split(some, _client_of, self._standing_of_some)
        return answers

    # -- joining and leaving -----------------------------------------------------------------------------------

    async def _add_some(self, group_id: str, client_ids: Sequence[str], tally: _Tally) -> None:
        about, _, members, _ = self._store.keys.audience(group_id)
        answer = await self._store.run(_JOIN, (about, members), (self._most_members, *client_ids))
        if answer is None:
            raise _not_found(group_id)
        start, *joined = answer
        fresh = {client_id for client_id, done in zip(client_ids, joined, strict=True) if done == 1}
        full = [client_id for client_id, done in zip(client_ids, joined, strict=True) if done == -1]
        if full:
            self._refused("group_members", len(full))
            reason = f"the group has {self._most_members} members, more it cannot have"
            tally.refused += ((client_id, reason) for client_id in full)
        refused = set(full)
        inside = [client_id for client_id in client_ids if client_id not in refused]
        crowded = await self._enter(group_id, inside, start, fresh, tally)
        if crowded:
            self._refused("client_groups", len(crowded))
            with suppress(NotFound):  # deleted meanwhile: those who are inside are compared all the same
                await self._leave(group_id, crowded, _Tally())  # who was taken in above and cannot stay
            reason = f"in {self._most_groups} groups, more are not allowed"
            tally.refused += ((client_id, reason) for client_id in crowded)
            refused.update(crowded)
            inside = [client_id for client_id in inside if client_id not in refused]
        tally.changed |= fresh - refused
        await self._compare(group_id, inside, True, tally)

    async def _leave(self, group_id: str, client_ids: Sequence[str], tally: _Tally) -> set[str]:
        """Both steps; who was a member, on either side. Raises NotFound."""
        about, _, members, _ = self._store.keys.audience(group_id)
        answer = await self._store.run(_LEAVE, (about, members), client_ids)
        if answer is None:
            raise _not_found(group_id)
        await self._quit(group_id, client_ids, tally)
        await self._compare(group_id, client_ids, False, tally)
        return {client_id for client_id, left in zip(client_ids, answer, strict=True) if left}

    async def _compare(self, group_id: str, client_ids: Sequence[str], members: bool, tally: _Tally) -> None:
        """See to it that the clients' side, which was told `members`, is told what the group's says after that."""
        for _ in range(_MOST_COMPARISONS):
            standing = await self.standing([(group_id, client_id) for client_id in client_ids])
            client_ids = [
                client_id
                for client_id, found in zip(client_ids, standing, strict=True)
                if (found is Standing.MEMBER) is not members
            ]
            if not client_ids:
                return
            members = not members
            found = await self._read(group_id) if members else None
            if found is not None:
                crowded = await self._enter(group_id, client_ids, found[1], (), tally)
                if crowded:
                    with suppress(NotFound):
                        await self._leave(group_id, crowded, tally)
            else:
                members = False
                await self._quit(group_id, client_ids, tally)
        raise Unavailable(f"too many others change the members of {group_id} now; try again")

    async def _enter(
        self, group_id: str, client_ids: Sequence[str], start: bytes, fresh: Iterable[str], tally: _Tally
    ) -> list[str]:
        """The clients' side of joining; those who are in too many groups."""
        if not client_ids:
            return []
        audiences_and_route = self._audiences_and_route
        fresh = frozenset(fresh)

        async def enter_some(some: Sequence[str]) -> list[list[Any]]:
            args: list[Any] = [group_id, self._most_groups]
            for client_id in some:
                args += (start, int(client_id in fresh))
            answer: list[list[Any]] = await self._store.run(_ENTER, audiences_and_route(some), args)
            return answer

        answers = await self._store.split(client_ids, str, enter_some)
        _count(client_ids, answers, tally)
        return [client_id for client_id, answer in zip(client_ids, answers, strict=True) if answer[0] == -1]

    async def _quit(self, group_id: str, client_ids: Sequence[str], tally: _Tally) -> None:
        """The clients' side of leaving."""
        if not client_ids:
            return

        async def quit_some(some: Sequence[str]) -> list[list[Any]]:
            names = self._audiences_and_route(some)
            answer: list[list[Any]] = await self._store.run(_QUIT, names, (group_id, _KEPT_S))
            return answer

        _count(client_ids, await self._store.split(client_ids, str, quit_some), tally)

    # -- the rest ----------------------------------------------------------------------------------------------

    async def _read(self, group_id: str, *name: str) -> tuple[Group, bytes] | None:
        """The group and the order of its newest message; it is called `name` from now on, if that is given."""
        about, _, members, _ = self._store.keys.audience(group_id)
        answer = await self._store.run(_READ, (about, members), name)
        if answer is None:
            return None
        created, called, owner, count, last = answer
        return Group(group_id, called.decode(), owner.decode(), int(created), count), last

    async def _standing_of_some(self, asked: Sequence[tuple[str, str]]) -> list[Standing]:
        names: list[str] = []
        for group_id, _ in asked:
            about, _, members, _ = self._store.keys.audience(group_id)
            names += (about, members)
        answers = await self._store.run(_STANDING, names, [client_id for _, client_id in asked])
        return [Standing(answer) for answer in answers]

    def _audiences_and_route(self, client_ids: Sequence[str]) -> list[str]:
        names: list[str] = []
        for client_id in client_ids:
            route, _, _, _, audiences = self._store.keys.session(client_id)
            names += (audiences, route)
        return names

    def _slices(self, client_ids: Sequence[str]) -> Iterable[list[str]]:
        """Each client once; at least one slice, which asks whether there is such a group."""
        distinct, most = list(dict.fromkeys(client_ids)), self._most_in_call
        return (distinct[start : start + most] for start in range(0, len(distinct) or 1, most))

    def _keys(self, group_id: str) -> tuple[str, str, str, str]:
        """Raises NotFound for what no group is called: `*` above all, everyone's."""
        if client_id_fault(group_id):
            raise _not_found(group_id)
        return self._store.keys.audience(group_id)

    def _check_count(self, client_ids: Sequence[str]) -> None:
        if len(client_ids) > self._most_members:
            self._refused("group_members", len(client_ids) - self._most_members)
            raise BadRequest(f"{len(client_ids)}, a group has at most {self._most_members}", field="members")

    @staticmethod
    def _check(fault: str | None, name: str) -> None:
        if fault:
            raise BadRequest(fault, field=name)


def _count(client_ids: Sequence[str], answers: Sequence[list[Any]], tally: _Tally) -> None:
    """Whose audiences changed, and their sessions."""
    for client_id, (done, *sessions) in zip(client_ids, answers, strict=True):
        if done == 1:
            tally.changed.add(client_id)
            for place in range(0, len(sessions), 2):
                tally.sessions[client_id, sessions[place].decode(), sessions[place + 1].decode()] = None


def _not_found(group_id: str) -> NotFound:
    return NotFound(f"there is no group {group_id[:128]}")
