"""
What JSON Schema can say of requests beyond the types that they are decoded into: forms, lengths, counts, what goes with
what. For the OpenAPI document alone; the checks themselves stand where the requests are read.
"""

from __future__ import annotations

from typing import Any

from dispatcher.requests import MOST_GROUPS, MOST_TARGETS, MOST_TTL_S

Schema = dict[str, Any]

_ID = r"^[A-Za-z0-9._:@-]{1,128}$"
_ID_OR_NONE = r"^[A-Za-z0-9._:@-]{0,128}$"
_PAGE = r"^(s[0-9]{1,19}(\.[0-9a-f]{8})?|b[A-Za-z0-9._:@-]{1,128}|)$"
_MOST_ON_PAGE = 1_000

_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_NODE = rf"([A-Za-z0-9.-]{{1,64}}|\[[0-9a-fA-F:.]{{2,45}}\]):{_PORT}"

CLIENT_ID: Schema = {"type": "string", "pattern": _ID}
_NAME: Schema = {"type": "string", "maxLength": 128, "pattern": r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"}
_NULL: Schema = {"type": "null"}
_SOME: Schema = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1}]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _ids(most: int) -> Schema:
    return {"type": "array", "items": CLIENT_ID, "maxItems": most}


def _one_or_ids(most: int) -> Schema:
    """A string, which may be empty, a list, or nothing."""
    return {"anyOf": [{"type": "string", "pattern": _ID_OR_NONE}, _ids(most), _NULL]}


def _given(name: str, schema: Schema) -> Schema:
    return {"required": [name], "properties": {name: schema}}


_SENDER = _or_null({"type": "string", "minLength": 1, "maxLength": 128})
_REQUEST_ID = _or_null({"type": "string", "pattern": "^[ -~]{1,64}$"})
_TTL = _or_null({"type": "number", "minimum": 1, "maximum": MOST_TTL_S})
_NOT_YET = {"enum": [0, None]}
_TO_GROUPS = _one_or_ids(MOST_GROUPS)

PARAMETERS: dict[str, Schema] = {
    "clientId": CLIENT_ID,
    "groupId": CLIENT_ID,
    "nodeId": {"type": "string", "pattern": f"^{_NODE}$"},
    "sessionId": {"type": "string", "pattern": f"^{_NODE}_[A-Za-z0-9._:@-]{{1,128}}_[0-9]{{17}}$"},
    "limit": {"type": "integer", "minimum": 1, "maximum": _MOST_ON_PAGE},
    "cursor": {"type": "string", "pattern": _PAGE},
}
"""By the name of the parameter; of any other it is said that it is a string."""

CURSORS: dict[str, Schema] = {
    "listBroadcasts": {"type": "string", "pattern": r"^([0-9a-f]{32}|)$"},
    "listSessions": {"type": "string", "pattern": r"^((0?[0-9]|[1-5][0-9]|6[0-3]):[0-9]{1,18}|)$"},
}
"""By the operation, where a cursor is of another form."""

FIELDS: dict[str, dict[str, Schema]] = {
    "SendBody": {
        "to": _one_or_ids(MOST_TARGETS),
        "toGroups": _TO_GROUPS,
        "from": _SENDER,
        "requestId": _REQUEST_ID,
        "ttl": _TTL,
        "delay": _NOT_YET,
        "deliverAt": _NOT_YET,
    },
    "BroadcastBody": {
        "toGroups": _TO_GROUPS,
        "rate": _or_null({"type": "integer", "minimum": 1, "maximum": 100_000}),
        "from": _SENDER,
        "requestId": _REQUEST_ID,
        "ttl": _TTL,
    },
    "GroupBody": {
        "groupId": _or_null(CLIENT_ID),
        "groupName": _or_null(_NAME),
        "owner": _or_null({"type": "string", "pattern": _ID_OR_NONE}),
        "members": _or_null(_ids(10_000)),
    },
    "RenameBody": {"groupName": _NAME},
    "MembersBody": {"members": _ids(10_000)},
    "LeaversBody": {"members": _or_null(_ids(10_000))},
    "OnlineBody": {"clientIds": _ids(1_000)},
    "DrainBody": {"seconds": _or_null({"type": "number", "minimum": 0, "maximum": 3600})},
}
"""By schema and field; the default of a field stays."""

WHOLE: dict[str, Schema] = {
    "SendBody": {
        "anyOf": [_given("to", _SOME), _given("toGroups", _SOME), _given("sendToAll", {"const": True})],
    },
    "BroadcastBody": {"oneOf": [_given("toGroups", _SOME), _given("toAll", {"const": True})]},
}
"""What fields have to do with each other, by schema."""


def constrain(components: dict[str, Any]) -> None:
    """Add all this to the schemas that are there."""
    for name, fields in FIELDS.items():
        for field, schema in fields.items():
            described = components[name]["properties"][field]
            kept = {key: described[key] for key in ("default", "description") if key in described}
            components[name]["properties"][field] = kept | schema
    for name, schema in WHOLE.items():
        components[name] |= schema
