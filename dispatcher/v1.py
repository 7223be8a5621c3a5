"""
The paths under /v1: what they share, so that each of them is only what it does.

    request -> operation by path and method -> API key and scope -> body -> run -> JSON
                                   each fault a problem (RFC 9457), translated in http.py

An *operation* stands once, with all that routing, checking and the OpenAPI document need. Paths have parameters,
`/v1/nodes/{nodeId}/drain`: a segment each, percent-decoded, so that one may hold a slash. Where a path fits two
operations the one with the fixed segment goes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import MultiMapping

from dispatcher.callers import Caller
from dispatcher.requests import check_depth, check_utf8
from shared.errors import BadRequest, NotFound, PushfleetError
from shared.json_text import DEEPEST, field_and_fault

PREFIX = "/v1/"

Body = TypeVar("Body")


class MethodNotAllowed(PushfleetError):
    """`allowed` are the methods that the path takes."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, allowed: Iterable[str]) -> None:
        self.allowed = ", ".join(allowed)
        super().__init__(f"this path takes {self.allowed}")


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """A request that may be carried out: who asks, the path's parameters, the query, the body."""

    caller: Caller
    params: Mapping[str, str]
    query: MultiMapping[str]
    body: Body


def page_limit(query: MultiMapping[str], *, usual: int, most: int) -> int:
    """About how many a page is to hold: the query's `limit`. Raises BadRequest."""
    limit = query.get("limit", str(usual))
    if not (limit.isdecimal() and limit.isascii() and len(limit) <= 9 and 1 <= int(limit) <= most):
        raise BadRequest(f"expected 1 to {most}", field="limit")
    return int(limit)


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: a Struct, or whatever else msgspec encodes."""

    body: object
    status: int = 200


@dataclass(frozen=True, slots=True)
class Operation(Generic[Body]):
    """
    A method of a path, for callers with one of `scopes`.

    `run` raises PushfleetError; `statuses` are those it answers with, errors (4xx, 5xx) besides the ones that every
    path has. `body` is the type that the body is decoded into, None where none is read. An absent body is `{}`. `query`
    names the parameters of the query, each with its meaning.
    """

    method: str
    path: str
    scopes: tuple[str, ...]
    name: str
    summary: str
    run: Callable[[Call[Body]], Awaitable[Reply]]
    answer: type[msgspec.Struct]
    body: type[Body] | None = None
    statuses: tuple[int, ...] = (200,)
    query: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Branch:
    """What comes behind the segments that lead here."""

    fixed: dict[str, _Branch] = field(default_factory=dict)
    parameter: tuple[str, _Branch] | None = None
    methods: dict[str, Operation[Any]] = field(default_factory=dict)


class V1:
    """
    Answers what is asked under /v1. `identify` gives a request's caller or raises, `read_body` its body, whose JSON may
    be nested `most_deep` levels.
    """

    __slots__ = ("_identify", "_most_deep", "_read_body", "_root")

    def __init__(
        self,
        operations: Iterable[Operation[Any]],
        identify: Callable[[web.BaseRequest], Caller],
        read_body: Callable[[web.BaseRequest], Awaitable[bytes]],
        most_deep: int = DEEPEST,
    ) -> None:
        self._most_deep = most_deep
        self._identify = identify
        self._read_body = read_body
        self._root = _Branch()
        for operation in operations:
            _grow(self._root, operation)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Raises PushfleetError."""
        operation, params = _find(self._root, request.rel_url.raw_path, request.method)
        caller = self._identify(request)
        if caller.scopes.isdisjoint(operation.scopes):
            caller.require(operation.scopes[0])
        body = None
        if operation.body is not None:
            body = _decode(await self._read_body(request), operation.body, self._most_deep)
        reply = await operation.run(Call(caller, params, request.rel_url.query, body))
        return web.Response(
            status=reply.status, body=msgspec.json.encode(reply.body), headers={"Content-Type": "application/json"}
        )


def _grow(branch: _Branch, operation: Operation[Any]) -> None:
    for segment in operation.path.removeprefix("/").split("/"):
        if not segment.startswith("{"):
            branch = branch.fixed.setdefault(segment, _Branch())
            continue
        name = segment[1:-1]
        if branch.parameter is None:
            branch.parameter = (name, _Branch())
        elif branch.parameter[0] != name:
            raise ValueError(f"{operation.path}: the parameter is called {branch.parameter[0]} elsewhere")
        branch = branch.parameter[1]
    if operation.method in branch.methods:
        raise ValueError(f"{operation.method} {operation.path} is there twice")
    branch.methods[operation.method] = operation


def _find(root: _Branch, raw_path: str, method: str) -> tuple[Operation[Any], dict[str, str]]:
    """The operation and the path's parameters. Raises NotFound, MethodNotAllowed."""
    allowed: list[str] = []
    for methods, params in _matches(root, [unquote(segment) for segment in raw_path.removeprefix("/").split("/")]):
        if method in methods:
            return methods[method], dict(params)
        allowed += methods
    if allowed:
        raise MethodNotAllowed(allowed)
    raise NotFound("no such path; see /openapi.json")


def _matches(
    branch: _Branch, segments: Sequence[str], params: tuple[tuple[str, str], ...] = ()
) -> Iterator[tuple[Mapping[str, Operation[Any]], tuple[tuple[str, str], ...]]]:
    if not segments:
        if branch.methods:
            yield branch.methods, params
        return
    segment, others = segments[0], segments[1:]
    if segment in branch.fixed:
        yield from _matches(branch.fixed[segment], others, params)
    if branch.parameter is not None and segment:
        name, following = branch.parameter
        yield from _matches(following, others, (*params, (name, segment)))


def _decode(body: bytes, kind: type[Body], most_deep: int = DEEPEST) -> Body:
    """Raises BadRequest."""
    check_depth(body, most_deep)
    check_utf8(body)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        at, fault = field_and_fault(error)
        raise BadRequest(fault, field=at or "the body") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
