"""
/v1/groups: groups for business systems, and their members in bulk and page by page.

Up to 10,000 members go in one call. Who cannot become a member is in `refused` and spoils it for no other. When a call
fails half way (503) what was done stays done; the same call again does the rest, only that a group which is there
already gets its members by POST to `/members`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dispatcher.member_lines import MemberLines
from dispatcher.v1 import Call, Operation, Reply, page_limit
from shared.errors import BadRequest, NotFound
from shared.groups import Changed, Group, Groups
from shared.ids import MessageIdMint, client_id_fault, display_name_fault

_MOST_IN_CALL = 10_000
_MOST_ON_PAGE = 1_000
_PAGE = 100
_GROUPS = "/v1/groups"
_GROUP = f"{_GROUPS}/{{groupId}}"
_MEMBERS = f"{_GROUP}/members"
_READ = ("read", "admin")
_WRITE = ("send", "admin")


class GroupBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A group to be made."""

    group_id: str | None = None
    group_name: str | None = None
    owner: str | None = None
    members: list[str] | None = None


class RenameBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What a group is called from now on."""

    group_name: str


class MembersBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clients who join."""

    members: list[str]


class LeaversBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Clients who leave."""

    members: list[str] | None = None


class RefusedMember(msgspec.Struct, frozen=True, rename="camel"):
    """A client who did not become a member, and why."""

    client_id: str
    reason: str


class GroupAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """A group."""

    group_id: str
    group_name: str
    owner: str
    created: int
    members: int


class CreatedAnswer(GroupAnswer, frozen=True, rename="camel"):
    """A group that was made."""

    refused: list[RefusedMember]


class MembersChanged(msgspec.Struct, frozen=True, rename="camel"):
    """What came of it."""

    group_id: str
    changed: int
    refused: list[RefusedMember]


class MembersPage(msgspec.Struct, frozen=True):
    """Some of the members."""

    members: list[str]
    cursor: str | None


_MEMBERS_TEXT = f"clientIds, at most {_MOST_IN_CALL} in one call"
FIELDS = {
    "GroupBody": {
        "groupId": "1 to 128 of A-Z a-z 0-9 . _ - : @; default: one that is made up",
        "groupName": "at most 128 characters, no control characters",
        "owner": "a clientId; nothing follows from it, and it is no member unless it is among the members",
        "members": _MEMBERS_TEXT,
    },
    "MembersBody": {"members": _MEMBERS_TEXT},
    "LeaversBody": {"members": _MEMBERS_TEXT},
    "GroupAnswer": {"created": "epoch ms", "members": "how many"},
    "CreatedAnswer": {"created": "epoch ms", "members": "how many"},
    "MembersChanged": {"changed": "memberships that this changed; who was a member already is not among them"},
    "MembersPage": {"cursor": "names the next page; null: this is the last"},
}


class GroupsApi:
    """The operations on groups."""

    __slots__ = ("_groups", "_lines", "_mint")

    def __init__(self, groups: Groups, lines: MemberLines) -> None:
        self._groups = groups
        self._lines = lines
        self._mint = MessageIdMint()

    def operations(self) -> tuple[Operation[Any], ...]:
        return (*self._on_groups(), *self._on_members())

    def _on_groups(self) -> tuple[Operation[Any], ...]:
        group: dict[str, Any] = {"path": _GROUP, "statuses": (200, 404)}
        return (
            Operation(
                "POST",
                _GROUPS,
                _WRITE,
                "createGroup",
                "Make a group",
                self._create,
                CreatedAnswer,
                GroupBody,
                statuses=(201, 409, 413),
            ),
            Operation(
                **group,
                method="GET",
                scopes=_READ,
                name="getGroup",
                summary="What a group is",
                run=self._get,
                answer=GroupAnswer,
            ),
            Operation(
                **group,
                method="PATCH",
                scopes=_WRITE,
                name="renameGroup",
                summary="Call a group by another name",
                run=self._rename,
                answer=GroupAnswer,
                body=RenameBody,
            ),
            Operation(
                **group,
                method="DELETE",
                scopes=_WRITE,
                name="deleteGroup",
                summary="Take a group away, with what was sent to it",
                run=self._delete,
                answer=MembersChanged,
            ),
        )

    def _on_members(self) -> tuple[Operation[Any], ...]:
        change: dict[str, Any] = {"path": _MEMBERS, "scopes": _WRITE, "answer": MembersChanged}
        change["statuses"] = (200, 404, 413)
        return (
            Operation(
                "GET",
                _MEMBERS,
                _READ,
                "listMembers",
                "The members of a group, page by page, in no order",
                self._page,
                MembersPage,
                statuses=(200, 404),
                query=(
                    ("cursor", "that of the page before; none: the first page"),
                    ("limit", f"about how many, 1 to {_MOST_ON_PAGE}; default {_PAGE}"),
                ),
            ),
            Operation(
                **change,
                method="POST",
                name="addMembers",
                summary="Have clients join a group",
                run=self._add,
                body=MembersBody,
            ),
            Operation(
                **change,
                method="DELETE",
                name="removeMembers",
                summary="Have clients leave a group; they are named in the body or in the query",
                run=self._remove,
                body=LeaversBody,
                query=(("clientId", "one of those who leave; may be repeated"),),
            ),
        )

    async def _create(self, call: Call[GroupBody]) -> Reply:
        body = call.body
        group_id, name, owner = body.group_id, body.group_name or "", body.owner or ""
        if group_id is None:
            group_id = f"g{self._mint.mint()}"
        _check(client_id_fault(group_id), "groupId")
        _check(display_name_fault(name), "groupName")
        if owner:
            _check(client_id_fault(owner), "owner")
        members = _checked(body.members or [])
        changed = await self._groups.create(group_id, name=name, owner=owner, members=members)
        await self._lines.tell(changed.sessions)
        group = _found(group_id, await self._groups.get(group_id))
        answer = CreatedAnswer(*_fields(group), _refused(changed))
        return Reply(answer, 201)

    async def _get(self, call: Call[None]) -> Reply:
        group_id = call.params["groupId"]
        return Reply(GroupAnswer(*_fields(_found(group_id, await self._groups.get(group_id)))))

    async def _rename(self, call: Call[RenameBody]) -> Reply:
        return Reply(GroupAnswer(*_fields(await self._groups.rename(call.params["groupId"], call.body.group_name))))

    async def _delete(self, call: Call[None]) -> Reply:
        group_id, count = call.params["groupId"], 0
        async for changed in self._groups.delete(group_id):
            count += changed.count
            await self._lines.tell(changed.sessions)
        return Reply(MembersChanged(group_id, count, []))

    async def _page(self, call: Call[None]) -> Reply:
        limit = page_limit(call.query, usual=_PAGE, most=_MOST_ON_PAGE)
        members, following = await self._groups.members(call.params["groupId"], call.query.get("cursor", ""), limit)
        return Reply(MembersPage(members, following or None))

    async def _add(self, call: Call[MembersBody]) -> Reply:
        group_id, members = call.params["groupId"], _checked(call.body.members)
        return await self._changed(group_id, await self._groups.add(group_id, members))

    async def _remove(self, call: Call[LeaversBody]) -> Reply:
        named = call.query.getall("clientId", [])
        if call.body.members is None and not named:
            raise BadRequest("required, in the body or as clientId in the query", field="members")
        members = [*_checked(call.body.members or []), *_checked(named, "clientId")]
        group_id = call.params["groupId"]
        return await self._changed(group_id, await self._groups.remove(group_id, members))

    async def _changed(self, group_id: str, changed: Changed) -> Reply:
        await self._lines.tell(changed.sessions)
        return Reply(MembersChanged(group_id, changed.count, _refused(changed)))


def _checked(client_ids: list[str], name: str = "members") -> list[str]:
    """Raises BadRequest, with the path of the one that is wrong."""
    if len(client_ids) > _MOST_IN_CALL:
        raise BadRequest(f"{len(client_ids)}, at most {_MOST_IN_CALL} in one call", field=name)
    for place, client_id in enumerate(client_ids):
        _check(client_id_fault(client_id), f"{name}[{place}]")
    return client_ids


def _check(fault: str | None, name: str) -> None:
    if fault:
        raise BadRequest(fault, field=name)


def _found(group_id: str, group: Group | None) -> Group:
    if group is None:
        raise NotFound(f"there is no group {group_id[:128]}")
    return group


def _fields(group: Group) -> tuple[str, str, str, int, int]:
    return group.group_id, group.name, group.owner, group.created_ms, group.members


def _refused(changed: Changed) -> list[RefusedMember]:
    return [RefusedMember(client_id, reason) for client_id, reason in changed.refused]
