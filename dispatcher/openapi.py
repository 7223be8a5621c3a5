"""The OpenAPI 3.1 document, with the schemas of the types that requests are decoded into."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import orjson

from dispatcher.requests import DEFAULT_TTL_S, MOST_ITEMS, MOST_TARGETS, MOST_TTL_S, SendBody

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


_FIELDS = {
    "msg": "any JSON value; it reaches the client byte for byte",
    "to": f"a clientId, or up to {MOST_TARGETS} of them; a repeated one is sent to once",
    "sendToAll": "true: to everyone online, whatever `to` says",
    "from": "the name that clients see; default: the API key's",
    "requestId": "idempotency key: the same again within 24 h gets the first answer, and nothing is sent twice",
    "toGroups": "not in this version: refused unless empty",
    "ttl": f"seconds until the message expires, 1 to {MOST_TTL_S}; default {DEFAULT_TTL_S}",
    "delay": "not in this version: refused unless 0",
    "deliverAt": "not in this version: refused unless 0",
    "durable": "default true: kept for absent targets until acknowledged or expired; false: to who is online now only",
}


@cache
def openapi_document() -> bytes:
    """The document as JSON."""
    (components,) = msgspec.json.schema_components([SendBody, Answer, ListAnswer, PlaceAnswer], ref_template=_REF)[1:]
    for name, text in _FIELDS.items():
        components["SendBody"]["properties"][name]["description"] = text
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Pushfleet dispatcher", "version": "1"},
            "security": [{"bearer": []}, {"apiKey": []}],
            "paths": _paths(),
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                },
            },
        }
    )


def _paths() -> dict[str, Any]:
    send = {"post": _post("sendMessage", "Send a message", {"$ref": _ref(SendBody)}, Answer)}
    items = {"type": "array", "items": {"$ref": _ref(SendBody)}, "maxItems": MOST_ITEMS}
    send_list = {"post": _post("sendMessages", "Send several messages, each answered on its own", items, ListAnswer)}
    old = "/api/chatServe/rocketmq/mqmessage"
    client_id = {"name": "clientId", "in": "query", "required": True, "schema": {"type": "string"}}
    server_get = {
        "operationId": "getServer",
        "summary": "The node that a client should connect to",
        "parameters": [client_id],
        "responses": _responses(PlaceAnswer, 400, 401, 403, 503),
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


def _post(operation: str, summary: str, schema: dict[str, Any], answer: type) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _responses(answer, 400, 401, 403, 409, 413, 429, 503),
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
