"""
A dispatcher's life: open the port, reach Redis and the bus, serve; then finish what was accepted and leave.

The HTTP port is open from the start, so that /healthz can say what is missing; sends are answered 503 until Redis and
the bus were reached once and the table of nodes was read.
"""

from __future__ import annotations

import asyncio
import gc
import sys

from prometheus_client import REGISTRY

from dispatcher.api import Api
from dispatcher.audiences import AudienceSends
from dispatcher.auth_failures import AuthFailures
from dispatcher.broadcast_records import Broadcasts
from dispatcher.broadcasts import BroadcastRunner
from dispatcher.broadcasts_api import BroadcastsApi
from dispatcher.callers import Callers
from dispatcher.clients_api import ClientsApi
from dispatcher.groups_api import GroupsApi
from dispatcher.idempotency import Idempotency
from dispatcher.janitor import Janitor
from dispatcher.key_watch import KeyWatch
from dispatcher.member_lines import MemberLines
from dispatcher.metrics import Tally, count_refused
from dispatcher.nodes import LiveNodes
from dispatcher.nodes_api import NodesApi
from dispatcher.outbox import Outbox
from dispatcher.placement import Placement
from dispatcher.publisher import Publisher
from dispatcher.push import Push
from dispatcher.quota import Quotas
from dispatcher.requests import Bounds
from dispatcher.reroute import Reroute
from dispatcher.sessions import Sessions
from dispatcher.sessions_api import SessionsApi
from dispatcher.settings import DispatcherSettings
from dispatcher.upstream import UpstreamTaker
from shared.backoff import Backoff
from shared.bus import open_bus
from shared.clients import KnownClients
from shared.errors import PushfleetError
from shared.groups import Groups
from shared.inbox import Inbox
from shared.jwks import KeySetFault
from shared.key_source import KeySource
from shared.logs import OncePerSecond, get_log
from shared.presence import PresenceWriter, ensure_presence_topic
from shared.registry import Registry
from shared.revocations import Revocations
from shared.store import Store
from shared.timeline import Timelines
from shared.tls import open_port_tls
from shared.upstream import UPSTREAM_QUEUES, upstream_topic

_FINISH_S = 10.0
_log = get_log("dispatcher")


async def run(settings: DispatcherSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then finish what was accepted. Raises SystemExit when the port cannot be opened."""
    dispatcher = Dispatcher(settings)
    try:
        await dispatcher.open()
        await stop.wait()
    finally:
        await dispatcher.close()


class Dispatcher:
    """The parts of a dispatcher and the order they start and stop in."""

    def __init__(self, settings: DispatcherSettings) -> None:
        self._settings = settings
        namespace = settings.namespace
        self._tls = open_port_tls(settings.tls_cert, settings.tls_key)
        self._store = Store(settings.redis_url, namespace=namespace)
        self._bus = open_bus(settings.bus, namespace=namespace)
        inbox = Inbox(self._store, most_messages=settings.inbox_messages, most_bytes=settings.inbox_bytes)
        self._presence = PresenceWriter(self._bus, namespace=namespace)
        registry = Registry(self._store, changed=self._presence.changed if settings.presence else None)
        self._nodes = LiveNodes(
            self._store, registry, namespace=namespace, lease_s=settings.lease_s, max_lag_s=settings.max_lag_s
        )
        self._tally = Tally()
        self._outbox = Outbox(self._store, most_bytes=settings.outbox_bytes)
        self._publisher = Publisher(self._bus, self._outbox)
        timelines = Timelines(
            self._store,
            most_messages=settings.timeline_messages,
            most_bytes=settings.timeline_bytes,
            keep_s=settings.timeline_s,
        )
        audiences = AudienceSends(timelines, self._nodes)
        self._push = Push(
            self._store, inbox, audiences, self._nodes, self._publisher, Idempotency(self._store), self._tally
        )
        reroute = Reroute(self._bus, inbox, self._nodes, self._publisher)
        self._janitor = Janitor(self._store, registry, self._bus, reroute, namespace, settings.lease_s)
        self._cleaning: asyncio.Task[None] | None = None
        self._upstream = UpstreamTaker(self._bus, self._push, namespace=namespace)
        self._placement = Placement(self._store, self._nodes)
        self._quotas = Quotas(self._store)
        self._keys = KeySource(
            settings.jwt_secret, settings.jwt_jwks, audience=settings.jwt_audience, issuer=settings.jwt_issuer
        )
        self._caller_tokens = self._keys
        if settings.caller_audience:
            self._caller_tokens = KeySource(
                settings.jwt_secret, settings.jwt_jwks, audience=settings.caller_audience, issuer=settings.jwt_issuer
            )
        groups = Groups(
            self._store,
            most_members=settings.group_members,
            most_groups=settings.client_groups,
            refused=count_refused,
        )
        broadcasts, clients = Broadcasts(self._store), KnownClients(self._store)
        self._broadcasts = BroadcastRunner(self._store, broadcasts, self._push, groups, clients)
        broadcasts_api = BroadcastsApi(
            *(broadcasts, self._broadcasts, groups, clients, self._quotas), rate=settings.broadcast_rate
        )
        member_lines = MemberLines(self._nodes, self._publisher)
        sessions = Sessions(self._store, self._nodes, self._publisher)
        self._callers = Callers(
            None if settings.auth == "off" else (),
            tokens=self._caller_tokens,
            client_tokens=self._keys,
            failures=AuthFailures(settings.auth_failures),
            rate=settings.caller_rate,
        )
        self._key_watch = KeyWatch(settings.api_keys, self._callers.use, least_key=settings.least_key)
        clients_api = ClientsApi(sessions, registry, Revocations(self._store), keep_s=settings.revoked_s)
        self.api = Api(
            push=self._push,
            placement=self._placement,
            callers=self._callers,
            quotas=self._quotas,
            tally=self._tally,
            health=self.health,
            degraded=self.degraded,
            operations=(
                *NodesApi(registry, self._nodes).operations(),
                *GroupsApi(groups, member_lines).operations(),
                *broadcasts_api.operations(),
                *clients_api.operations(),
                *SessionsApi(sessions).operations(),
            ),
            limits=settings.http_limits,
            origins=settings.cors_origins,
            trusted=settings.trusted_proxies,
            bounds=Bounds(settings.max_targets, settings.json_depth),
        )
        self._start: asyncio.Task[None] | None = None
        self._missing = "starting: waiting for Redis and the bus"
        self._complaint = OncePerSecond()

    async def open(self) -> None:
        """Open the port and start what brings the dispatcher up; returns at once. Raises SystemExit."""
        settings = self._settings
        try:
            context = None if self._tls is None else self._tls.context
            await self.api.http.open(settings.bind_host, settings.http_port, context)
        except OSError as error:
            where = f"PUSH_HTTP_HOST={settings.bind_host!r}, PUSH_HTTP_PORT={settings.http_port}"
            print(f"{where}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None
        try:
            for source in {self._keys, self._caller_tokens}:
                await source.start()
        except (KeySetFault, OSError) as error:
            print(f"PUSH_JWT_JWKS={settings.jwt_jwks!r}: {error}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None
        if settings.api_keys and settings.auth != "off":
            self._key_watch.start()
        REGISTRY.register(self._tally)
        self._warn()
        if self._tls is not None:
            self._tls.start()
        _log.info("listening", http_host=settings.bind_host, http_port=self.api.http.port)
        self._start = asyncio.create_task(self._come_up(), name="start")

    def health(self) -> str:
        """Why sends are not taken now; "" when they are."""
        if self._missing:
            return self._missing
        if not self._store.available:
            return "Redis does not answer"
        if self._outbox.full:
            return "the bus does not answer and the outbox is full"
        return ""

    def degraded(self) -> str:
        """What is amiss while sends are taken all the same."""
        if not self._bus.connected:
            return "the bus does not answer; sends wait in the outbox"
        return "sends wait in the outbox for their turn" if self._outbox.in_use else ""

    async def close(self) -> None:
        """Take no more, finish what was accepted, close."""
        self._missing = "stopping"
        if self._start is not None:
            self._start.cancel()
            await asyncio.wait((self._start,))
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.wait((self._cleaning,))
        await asyncio.gather(self.api.http.close(_FINISH_S), self._upstream.close(_FINISH_S), self._broadcasts.close())
        try:
            async with asyncio.timeout(_FINISH_S):
                await self._push.close()
                await self._quotas.close()
                await self._placement.close()
        except TimeoutError:
            _log.warning("sends_given_up")
        if self._tls is not None:
            await self._tls.close()
        for source in {self._keys, self._caller_tokens}:
            await source.close()
        await self._key_watch.close()
        await self._outbox.close()
        await self._nodes.close()
        await self._presence.close(_FINISH_S)
        await self._bus.close()
        await self._store.close()
        if self._start is not None:
            REGISTRY.unregister(self._tally)
            _log.info("stopped")

    async def _come_up(self) -> None:
        pause = Backoff(0.1, 1.0)
        while True:
            try:
                await self._connect()
                break
            except PushfleetError as error:
                self._missing = f"starting: {error}"
                if self._complaint.due():
                    _log.warning("waiting", reason=str(error))
            except Exception as error:
                self._missing = "starting: internal error"
                if self._complaint.due():
                    _log.error("start_failed", exc_info=error)
            await asyncio.sleep(pause.next_s())
        self._missing = ""
        self.api.started = True
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)  # requests leave few cycles; each full pass over the heap is a pause
        _log.info("ready", http_port=self.api.http.port, bus=self._settings.bus.partition(":")[0])

    async def _connect(self) -> None:
        await self._store.ping()
        if self._settings.create_topics:
            await self._bus.ensure_topic(upstream_topic(self._settings.namespace), queues=UPSTREAM_QUEUES)
            if self._settings.presence:
                await ensure_presence_topic(self._bus, self._settings.namespace)
        await self._nodes.start()
        self._outbox.start(self._publisher.to_bus)
        await self._upstream.start()
        self._broadcasts.start()
        if self._cleaning is None:
            self._cleaning = asyncio.create_task(self._janitor.run(), name="janitor")

    def _warn(self) -> None:
        if self._settings.auth == "off":
            _log.warning("authentication_is_off", effect="anybody may send to anybody; for development only")
