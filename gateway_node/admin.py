"""The admin port: plain HTTP for ops. /metrics (Prometheus), /healthz, /sessions (counts, and how far a drain is)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway_node.gateway import Gateway
from gateway_node.hub import Hub
from shared.http_log import server_log
from shared.registry import DrainState
from shared.security_headers import SECURITY_HEADERS


async def open_admin(
    host: str, port: int, node_id: str, gateway: Gateway, hub: Hub, drain: Callable[[], DrainState | None]
) -> tuple[web.AppRunner, int]:
    """The running port, to be cleaned up by the caller, and its number."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(_: web.Request) -> web.Response:
        status, body = gateway.health_answer()
        return web.Response(status=status, body=body, content_type="application/json")

    async def sessions(_: web.Request) -> web.Response:
        counts = {"nodeId": node_id, "sessions": hub.registered, "drain": msgspec.to_builtins(drain())}
        return web.json_response(counts)

    async def secure(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(SECURITY_HEADERS)
        response.headers["Server"] = "pushfleet"  # aiohttp would name its version

    app = web.Application()
    app.on_response_prepare.append(secure)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", health)
    app.router.add_get("/sessions", sessions)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, logger=server_log("node"))
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    return runner, runner.addresses[0][1]
