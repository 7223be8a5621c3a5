"""
The dispatcher's endpoints: the predecessor's paths for sends and placement, health, metrics, OpenAPI; /v1 is mounted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from dispatcher.answers import item_failure, item_success, success
from dispatcher.callers import Caller, Callers, presented_key
from dispatcher.http import Endpoint, HttpPort, PostAnswer, error_answer, four_fields
from dispatcher.http_door import HttpLimits
from dispatcher.metrics import Tally
from dispatcher.openapi import openapi_document
from dispatcher.order import Order
from dispatcher.placement import Placement
from dispatcher.push import Push
from dispatcher.quota import Quotas, used_up
from dispatcher.requests import USUAL, Bounds, Send, parse_list, parse_send
from dispatcher.v1 import V1, Operation
from shared.addresses import Network
from shared.envelope import Trigger
from shared.errors import BadRequest, PushfleetError, Unavailable
from shared.ids import client_id_fault


class Api:
    """
    The endpoints. `health` says why the dispatcher can not serve, "" when it can; `degraded` what is amiss even so;
    `operations` are those under /v1.
    """

    def __init__(
        self,
        *,
        push: Push,
        placement: Placement,
        callers: Callers,
        quotas: Quotas,
        tally: Tally,
        health: Callable[[], str],
        degraded: Callable[[], str],
        operations: tuple[Operation[Any], ...],
        limits: HttpLimits | None = None,
        origins: Sequence[str] = (),
        trusted: Sequence[Network] = (),
        bounds: Bounds = USUAL,
    ) -> None:
        self._push = push
        self._placement = placement
        self._callers = callers
        self._quotas = quotas
        self._tally = tally
        self._bounds = bounds
        self._health = health
        self._degraded = degraded
        self.started = False
        self.http = HttpPort(self._endpoints(), tally, limits, origins, trusted)
        self._operations = operations
        self.http.v1 = V1(operations, self._identify, self.http.read_body, bounds.json_depth).answer

    def _endpoints(self) -> Mapping[str, Mapping[str, Endpoint]]:
        long_path = "/api/chatServe/rocketmq/mqmessage"
        return {
            "/message/send": {"POST": self._send},
            f"{long_path}/message/send": {"POST": self._send},
            "/message/sendList": {"POST": self._send_list},
            f"{long_path}/message/sendList": {"POST": self._send_list},
            "/server/get": {"GET": self._server_get},
            "/healthz": {"GET": self._healthz},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
        }

    def paths(self) -> list[tuple[str, str]]:
        """Method and path of all that is served."""
        fixed = [(method, path) for path, methods in self._endpoints().items() for method in methods]
        return fixed + [(operation.method, operation.path) for operation in self._operations]

    # -- sends -----------------------------------------------------------------------------------------------

    async def _send(self, request: web.BaseRequest) -> web.StreamResponse:
        began = time.perf_counter()
        request_id = ""
        try:
            caller = self._caller(request)
            caller.take()  # who is over its rate costs no more than its head
            send = parse_send(await self.http.read_body(request), self._bounds)
            request_id = send.request_id
            order = self._order(send, caller)
            if caller.quota is not None and not await self._quotas.take(caller, 1):
                raise used_up(caller)
            await self._push.send_all((order,))
            if order.error is not None:
                raise order.error
        except PushfleetError as error:
            self._tally.sends[error.status] += 1
            return _post_failure(error, request_id)
        finally:
            self._tally.took(time.perf_counter() - began)
        self._tally.sends[200] += 1
        return PostAnswer(
            success(order.content),
            headers=f"X-Request-Id: {order.request_id}\r\nX-Message-Id: {order.message_id}\r\n",
        )

    async def _send_list(self, request: web.BaseRequest) -> web.StreamResponse:
        """Each item is parsed, admitted and answered on its own; those that may go are sent together."""
        began = time.perf_counter()
        try:
            caller = self._caller(request)
            caller.take()  # the first item's
            items = parse_list(await self.http.read_body(request))
        except PushfleetError as error:
            self._tally.sends[error.status] += 1
            return _post_failure(error, "")
        outcomes: list[Order | PushfleetError] = []
        is_taken = True
        for item in items:
            try:
                order = self._order(parse_send(item, self._bounds), caller)
                if not is_taken:
                    caller.take()
                is_taken = False
                outcomes.append(order)
            except PushfleetError as error:
                outcomes.append(error)
        orders = [outcome for outcome in outcomes if isinstance(outcome, Order)]
        if caller.quota is not None:
            orders = await self._within_quota(orders, caller)
        if orders:
            await self._push.send_all(orders)
        body = success(b"[%b]" % b",".join(map(self._item, outcomes)))
        self._tally.took(time.perf_counter() - began)
        return PostAnswer(body)

    def _item(self, outcome: Order | PushfleetError) -> bytes:
        if isinstance(outcome, Order):
            if outcome.error is None:
                self._tally.sends[200] += 1
                return item_success(outcome.content, outcome.message_id)
            outcome = outcome.error
        self._tally.sends[outcome.status] += 1
        return item_failure(outcome)

    def _identify(self, request: web.BaseRequest) -> Caller:
        """Raises Unavailable, Unauthorized."""
        if not self.started:
            raise Unavailable(self._health() or "starting")
        presented = _presented(request)
        return self._callers.find(presented) or self._callers.identify(presented, self.http.address_of(request))

    def _caller(self, request: web.BaseRequest) -> Caller:
        caller = self._identify(request)
        if not caller.may_send:
            caller.require("send")
        return caller

    async def _within_quota(self, orders: list[Order], caller: Caller) -> list[Order]:
        """The first of them, as many as the day's quota has room for; the others get their error."""
        try:
            room = await self._quotas.take(caller, len(orders)) if orders else 0
            error: PushfleetError = used_up(caller)
        except PushfleetError as unavailable:
            room, error = 0, unavailable
        for order in orders[room:]:
            order.error = error
        return orders[:room]

    def _order(self, send: Send, caller: Caller) -> Order:
        """Raises Forbidden."""
        caller.require("broadcast" if send.everyone else "send")
        return Order(send, caller=caller.id, sender=send.sender or caller.name, trigger=Trigger.HTTP)

    # -- the rest --------------------------------------------------------------------------------------------

    async def _server_get(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self.started:
            raise Unavailable(self._health() or "starting")
        client_ids = request.rel_url.query.getall("clientId", [])
        issued_s = self._callers.check_reader(_presented(request), self.http.address_of(request), client_ids)
        if len(client_ids) != 1:
            raise BadRequest("required, once", field="clientId")
        fault = client_id_fault(client_ids[0])
        if fault:
            raise BadRequest(fault, field="clientId")
        node_id, url = await self._placement.choose(client_ids[0], issued_s)
        return four_fields(200, success(orjson.dumps({"nodeId": node_id, "url": url})))

    async def _healthz(self, _: web.BaseRequest) -> web.StreamResponse:
        if reason := self._health():
            return web.json_response({"status": "unavailable", "reason": reason}, status=503)
        if reason := self._degraded():
            return web.json_response({"status": "degraded", "reason": reason})
        return web.json_response({"status": "ok"})

    async def _metrics(self, _: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _openapi(self, _: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=openapi_document(self._operations), headers={"Content-Type": "application/json"})


def _presented(request: web.BaseRequest) -> str:
    headers = request.headers
    return presented_key(headers.get("Authorization"), headers.get("X-API-Key"))


def _post_failure(error: PushfleetError, request_id: str) -> web.Response:
    answer = error_answer(error)
    if request_id:
        answer.headers["X-Request-Id"] = request_id
    return answer
