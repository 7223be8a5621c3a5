"""
The OpenAPI 3.1 document, with the schemas of the types that requests are decoded into. Paths under /v1 describe
themselves (v1.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
import orjson

from dispatcher import broadcasts_api, clients_api, groups_api, nodes_api, sessions_api
from dispatcher.key_file import SCOPES
from dispatcher.requests import DEFAULT_TTL_S, MOST_GROUPS, MOST_ITEMS, MOST_TARGETS, MOST_TTL_S, SendBody
from dispatcher.schemas import CLIENT_ID, CURSORS, PARAMETERS, constrain
from dispatcher.v1 import Operation

_ANYWHERE = (400, 401, 403, 429, 503)
_WITH_BODY = (408, 413)
_TEXT = {"type": "string"}
_REF = "#/components/schemas/{name}"


class Answer(msgspec.Struct, rename="camel"):
    """Every answer of these paths."""

    success: bool
    status_code: int
    content: list[str] | None
    msg: str


class ItemAnswer(Answer, rename="camel"):
    """An item's answer in the answer to a list."""

    message_id: str | None = None


class Place(msgspec.Struct, rename="camel"):
    """The node that a client should connect to."""

    node_id: str
    url: str


class ListAnswer(msgspec.Struct, rename="camel"):
    """The answer to a list: an answer for each item, in order."""

    success: bool
    status_code: int
    content: list[ItemAnswer] | None
    msg: str


class PlaceAnswer(msgspec.Struct, rename="camel"):
    """The answer of /server/get."""

    success: bool
    status_code: int
    content: Place | None
    msg: str


class Problem(msgspec.Struct):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None


_SEND_FIELDS = {
    "msg": "any JSON value; it reaches the client byte for byte",
    "to": f"a clientId, or up to {MOST_TARGETS} of them; a repeated one is sent to once",
    "sendToAll": "true: to everyone, whatever `to` says; clients that are away get it when they come back",
    "from": "the name that clients see; default: the API key's",
    "requestId": "idempotency key: the same again within 24 h gets the first answer, and nothing is sent twice",
    "toGroups": f"a groupId, or up to {MOST_GROUPS} of them, besides `to`; absent members get it when they come back",
    "ttl": f"seconds until the message expires, 1 to {MOST_TTL_S}; default {DEFAULT_TTL_S}",
    "delay": "not in this version: refused unless 0",
    "deliverAt": "not in this version: refused unless 0",
    "durable": "default true: kept for absent targets until acknowledged or expired; false: to who is online now only",
}

_BEARER = (
    "An API key, or a JWT with `sub`, `exp` and a `scope` (RFC 8693 section 4.2) of the dispatcher's. The scopes are "
    f"{', '.join(SCOPES)}; each operation names those it takes."
)

_FIELDS = {
    "SendBody": _SEND_FIELDS,
    "Problem": {"code": "a word for programs", "field": "the path of the field that is wrong"},
    **nodes_api.FIELDS,
    **groups_api.FIELDS,
    **broadcasts_api.FIELDS,
    **clients_api.FIELDS,
    **sessions_api.FIELDS,
}


@cache
def openapi_document(operations: tuple[Operation[Any], ...]) -> bytes:
    """The document as JSON, with the operations of /v1."""
    types: list[type] = [SendBody, Answer, ListAnswer, PlaceAnswer, Problem]
    for operation in operations:
        types += [operation.answer, *([operation.body] if operation.body else ())]
    _, components = msgspec.json.schema_components(list(dict.fromkeys(types)), ref_template=_REF)
    for schema, fields in _FIELDS.items():
        for name, text in fields.items():
            components[schema]["properties"][name]["description"] = text
    constrain(components)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Pushfleet dispatcher", "version": "1"},
            "security": [{"bearer": []}, {"apiKey": []}],
            "paths": _paths() | _v1_paths(operations),
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "description": _BEARER},
                    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
                },
            },
        }
    )


def _paths() -> dict[str, Any]:
    send = {"post": _post("sendMessage", "Send a message", {"$ref": _ref(SendBody)}, Answer)}
    items = {"type": "array", "items": {"$ref": _ref(SendBody)}, "maxItems": MOST_ITEMS}
    send_list = {"post": _post("sendMessages", "Send several messages, each answered on its own", items, ListAnswer)}
    old = "/api/chatServe/rocketmq/mqmessage"
    client_id = {"name": "clientId", "in": "query", "required": True, "schema": CLIENT_ID}
    server_get = {
        "operationId": "getServer",
        "summary": "The node that a client should connect to",
        "description": "Scope: any. A client may ask for itself with its connect token.",
        "parameters": [client_id],
        "responses": _responses(PlaceAnswer, 400, 401, 403, 429, 503),
    }
    return {
        "/message/send": send,
        f"{old}/message/send": {"post": {**send["post"], "operationId": "sendMessageOldPath"}},
        "/message/sendList": send_list,
        "/server/get": {"get": server_get},
        "/healthz": {"get": _plain("getHealth", "Whether sends are taken", "application/json", 503)},
        "/metrics": {"get": _plain("getMetrics", "Metrics for Prometheus", "text/plain")},
        "/openapi.json": {"get": _plain("getOpenapi", "This document", "application/json")},
    }


def _v1_paths(operations: Iterable[Operation[Any]]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for operation in operations:
        described: dict[str, Any] = {
            "operationId": operation.name,
            "summary": operation.summary,
            "description": f"Scope: {' or '.join(operation.scopes)}.",
            "responses": {
                str(status): _v1_response(status, operation.answer)
                for status in sorted({*operation.statuses, *_ANYWHERE, *(_WITH_BODY if operation.body else ())})
            },
        }
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": PARAMETERS.get(name, _TEXT)}
            for name in re.findall(r"{(\w+)}", operation.path)
        ]
        parameters += [
            {"name": name, "in": "query", "description": text, "schema": _query_schema(operation.name, name)}
            for name, text in operation.query
        ]
        if parameters:
            described["parameters"] = parameters
        if operation.body is not None:
            content = {"application/json": {"schema": {"$ref": _ref(operation.body)}}}
            required = any(field.required for field in msgspec.structs.fields(operation.body))
            described["requestBody"] = {"required": required, "content": content}
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return paths


def _query_schema(operation: str, name: str) -> dict[str, Any]:
    return CURSORS.get(operation, PARAMETERS[name]) if name == "cursor" else PARAMETERS.get(name, _TEXT)


def _v1_response(status: int, answer: type) -> dict[str, Any]:
    if status < 400:
        return _response("done" if status == 200 else HTTPStatus(status).phrase.lower(), answer)
    schema = {"$ref": _ref(Problem)}
    return {"description": HTTPStatus(status).phrase, "content": {"application/problem+json": {"schema": schema}}}


def _post(operation: str, summary: str, schema: dict[str, Any], answer: type) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "description": "Scope: send; broadcast with sendToAll.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _responses(answer, 400, 401, 403, 404, 408, 409, 413, 429, 503),
    }


def _responses(answer: type, *failures: int) -> dict[str, Any]:
    responses = {"200": _response("done", answer)}
    for status in failures:
        responses[str(status)] = _response("`msg` says what is wrong; nothing was sent", Answer)
    responses["200"]["headers"] = {name: {"schema": {"type": "string"}} for name in ("X-Request-Id", "X-Message-Id")}
    return responses


def _response(description: str, answer: type) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": _ref(answer)}}}}


def _plain(operation: str, summary: str, media: str, *failures: int) -> dict[str, Any]:
    responses = {str(status): {"description": "", "content": {media: {}}} for status in (200, *failures)}
    return {"operationId": operation, "summary": summary, "security": [], "responses": responses}


def _ref(cls: type) -> str:
    return _REF.format(name=cls.__name__)
