"""
A node's life: open the ports, reach Redis and the bus, take the lease, serve; then drain and leave.

The WebSocket port is open from the start, so that /healthz can say why the node is not ready; sockets are taken once
the node's topic exists, its consumer reads and its lease is held. It ends with a drain (drain.py).
"""

from __future__ import annotations

import asyncio
import gc
import random
from asyncio import Task
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from gateway_node.admission import Admission
from gateway_node.audience import Audience
from gateway_node.audiences import Audiences, Place
from gateway_node.chat import Chat
from gateway_node.clearance import Clearance
from gateway_node.clerk import Clerk
from gateway_node.consumer import Consumer
from gateway_node.cursor_moves import CursorMoves
from gateway_node.delivery import Delivery
from gateway_node.drain import Drain
from gateway_node.envelope_dialect import EnvelopeDialect
from gateway_node.eviction import Eviction
from gateway_node.fanout import Fanout
from gateway_node.gateway import Gateway
from gateway_node.hub import Hub
from gateway_node.lease import LeaseKeeper
from gateway_node.lookups import Lookups
from gateway_node.membership import Membership
from gateway_node.metrics import LAG, count_refused
from gateway_node.neighbours import Neighbours
from gateway_node.pacing import Pacing
from gateway_node.ports import Ports
from gateway_node.reconcile import Reconcile
from gateway_node.registration import Registration
from gateway_node.renewal import Renewal
from gateway_node.settings import GatewaySettings
from gateway_node.ticker import Ticker
from gateway_node.upstream import Upstream
from gateway_node.window import Recent
from shared.backoff import Backoff
from shared.bus import open_bus
from shared.cursors import Cursors
from shared.errors import PushfleetError
from shared.groups import Groups
from shared.ids import node_topic
from shared.inbox import Inbox
from shared.jwks import KeySetFault
from shared.key_source import KeySource
from shared.logs import OncePerSecond, get_log
from shared.people import People
from shared.presence import PresenceWriter, ensure_presence_topic
from shared.process import Stop
from shared.registry import Lease, Registry
from shared.revocations import Revocations
from shared.settings import wrong_setting
from shared.store import Store
from shared.timeline import Timelines
from shared.upstream import UPSTREAM_QUEUES, upstream_topic

_SETTLE_S = 5.0
_QUIET_S = 0.3
_log = get_log("node")


async def run(settings: GatewaySettings, stop: Stop) -> None:
    """Serve until `stop` is set or somebody asks the node to leave, then drain."""
    node = Node(settings, Ports(settings))
    try:
        await node.open()
        await node.until_left(stop)
    finally:
        await node.close()


class Node:
    """The parts of a node and the order they start and stop in."""

    def __init__(self, settings: GatewaySettings, ports: Ports) -> None:
        self.node_id = ports.node_id
        self._settings = settings
        self._ports = ports
        self._topic = node_topic(settings.namespace, self.node_id)
        self._store = Store(settings.redis_url, namespace=settings.namespace)
        self._bus = open_bus(settings.bus, namespace=settings.namespace)
        self._presence = PresenceWriter(self._bus, namespace=settings.namespace)
        self._registry = Registry(
            self._store,
            policy=settings.session_policy,
            most_sessions=settings.client_sessions,
            changed=self._presence.changed if settings.presence else None,
        )
        self._hub = Hub()
        cursors = Cursors(self._store)
        loose = Recent()
        by_name: dict[str, Audience] = {}
        self._moves = CursorMoves(cursors)
        self._keys = KeySource(
            settings.jwt_secret, settings.jwt_jwks, audience=settings.jwt_audience, issuer=settings.jwt_issuer
        )
        self._delivery = Delivery(self._hub, Inbox(self._store), settings, self._moves, loose)
        self._fanout = Fanout(by_name, self._delivery, self._moves, loose, settings)
        self._audiences = Audiences(
            Place(self.node_id, lambda: self._lease.epoch),
            self._hub,
            Timelines(self._store),
            cursors,
            self._delivery,
            self._moves,
            self._fanout,
            by_name,
        )
        upstream = upstream_topic(settings.namespace)
        self._upstream_topic = upstream
        self._upstream = Upstream(self._bus, upstream)
        self._neighbours = Neighbours(self._bus, namespace=settings.namespace)
        self._clerk = self._make_clerk(settings)
        admission = Admission(settings, self._keys)
        self._gateway = Gateway(
            self.node_id, settings, self._hub, self._delivery, self._clerk, self.health, self.refusal, admission
        )
        self._clerk.log_out = self._gateway.log_out
        self._eviction = Eviction(self._hub, self._neighbours)
        self._lease = LeaseKeeper(
            self._registry, self.node_id, settings.lease_s, self._describe, self._lease_lost, self._drain_asked
        )
        self._registration = Registration(
            self.node_id,
            lambda: self._lease.epoch,
            self._hub,
            self._registry,
            settings,
            self._delivery,
            self._audiences,
            self._eviction,
        )
        self._drain = Drain(
            self._hub,
            self._gateway,
            self._registration,
            self._delivery,
            self._audiences,
            self._lease,
            self._leave_topic,
            seconds=settings.drain_s,
            pace=settings.drain_pace,
        )
        self._reconcile = Reconcile(
            self._hub,
            self._registry,
            self._delivery,
            self._audiences,
            self._lease,
            self._registration.join_again,
            every_s=settings.reconcile_s,
        )
        self._ticker = Ticker(self._hub, self._delivery, settings, self._on_tick)
        self._renewal = Renewal(admission, Revocations(self._store), self._ticker.ends_otherwise)
        self._clerk.renew = self._renewal.renew
        self._gateway.registration = self._registration
        self._gateway.audiences = self._audiences
        self._gateway.ticker = self._ticker
        self._consumer: Consumer | None = None
        self._clearance: Clearance | None = None
        self._tasks: list[Task[None]] = []
        self._topic_tasks: list[Task[None]] = []  # those that would make it again
        self._reached_bus = False
        self._frozen_at = 0
        self._ticked = 0.0
        self._complaint = OncePerSecond()

    def _make_clerk(self, settings: GatewaySettings) -> Clerk:
        groups = Groups(
            self._store,
            most_members=settings.group_members,
            most_groups=settings.client_groups,
            refused=count_refused,
        )
        chat = Chat(settings.chat_timezone)
        return Clerk(
            self._hub,
            self._delivery,
            self._upstream,
            Lookups(People(self._store), groups),
            Membership(
                groups, self._hub, self._neighbours, self._audiences.changed, is_open=settings.group_join == "open"
            ),
            (EnvelopeDialect(), chat),
            chat,
            settings,
        )

    # -- start -----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the ports and start what brings the node up; returns at once."""
        settings = self._settings
        self._gateway.now = self._delivery.now = self._ticked = asyncio.get_running_loop().time()
        pacing = Pacing(self._ports.make_gate(self._gateway), settings.max_outbox_total)
        self._clearance = Clearance(self._lease, pacing, self._delivery, self._fanout)
        self._audiences.turn = self._clearance.turn
        self._delivery.until_clear = self._clearance.until_clear
        self._audiences.tell = self._gateway.tell
        await self._ports.open(self._gateway, self._hub, self._drain.state)
        try:
            await self._keys.start()
        except (KeySetFault, OSError) as error:
            raise wrong_setting("PUSH_JWT_JWKS", settings.jwt_jwks, str(error)) from None
        self._own(self._ticker.run(), "ticker")
        self._topic_tasks = [self._own(self._come_up(), "start")]
        if settings.auth == "off":
            _log.warning("authentication_is_off", effect="anybody may connect as any client; for development only")
        _log.info(
            "ready",
            node_id=self.node_id,
            port=self._ports.port,
            admin_port=self._ports.admin_port,
            topic=self._topic,
            bus=settings.bus.partition(":")[0],
        )

    async def _come_up(self) -> None:
        await self._until_done("redis", self._store.ping)
        await self._until_done("bus", self._ensure_topics)
        self._reached_bus = True
        self._topic_tasks += self._own(self._keep_consuming(), "consumer"), self._own(self._keep_topic(), "topic")
        self._own(self._lease.run(), "lease")
        self._own(self._moves.run(), "cursors")
        gc.set_threshold(50_000, 25, 100)  # what a session holds is freed by counting; the collector finds little
        gc.collect()
        gc.freeze()

    async def _ensure_topics(self) -> None:
        await self._bus.ensure_topic(self._topic)
        if self._settings.create_topics:
            await self._bus.ensure_topic(self._upstream_topic, queues=UPSTREAM_QUEUES)
            if self._settings.presence:
                await ensure_presence_topic(self._bus, self._settings.namespace)

    async def _keep_consuming(self) -> None:
        """Read the topic, anew when the lease was taken: whoever cleaned up behind its last one deleted the topic."""
        while True:
            await self._lease.until_alive()
            await self._until_done("bus", self._ensure_topics)
            for session in self._hub.by_id.values():
                self._delivery.fall_behind(session)  # what was in the topic may be gone; the inboxes are not
            self._audiences.enter_all()
            assert self._clearance is not None
            self._consumer = Consumer(
                self._bus,
                self._topic,
                self._clearance,
                self._delivery,
                self._fanout,
                self._audiences,
                self._eviction,
            )
            try:
                await self._consumer.run()
            except PushfleetError as error:
                _log.warning("consumer_stopped", reason=str(error))
            except Exception:
                _log.exception("consumer_failed")

    async def _keep_topic(self) -> None:
        """Make the topic again should somebody delete it; a reader goes on with the new one."""
        while True:
            await asyncio.sleep(self._settings.reconcile_s * random.uniform(0.5, 1.0))
            await self._lease.until_alive()
            await self._until_done("bus", self._ensure_topics)

    async def _until_done(self, part: str, attempt: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                await attempt()
                return
            except PushfleetError as error:
                if self._complaint.due():
                    _log.warning("waiting_for", waiting_for=part, reason=str(error))
            except Exception:
                _log.exception("start_failed", waiting_for=part)
            await asyncio.sleep(backoff.next_s())

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> Task[None]:
        self._tasks.append(asyncio.create_task(work, name=name))
        return self._tasks[-1]

    # -- while it serves -------------------------------------------------------------------------------------

    def health(self) -> str | None:
        """Why clients are not to be sent here; None when they may."""
        return "draining" if self._drain.is_on else self._missing()

    def refusal(self) -> str | None:
        """Why the node takes no sessions now; None when it does: a while longer than it is healthy."""
        return "draining" if self._drain.refuses else self._missing()

    def _missing(self) -> str | None:
        if not self._reached_bus:
            return "starting: waiting for Redis and the bus"
        if not self._store.available or not self._lease.alive():
            return "the registry (Redis) does not answer"
        if self._settings.auth == "jwt" and not self._keys.ready:
            return "starting: waiting for the keys of tokens (PUSH_JWT_JWKS)"
        return "starting: reading the timelines" if self._audiences.everyone.entering else None

    def _describe(self, epoch: str) -> Lease:
        settings = self._settings
        return Lease(
            epoch=epoch,
            url=settings.url or f"{self._ports.scheme}://{self.node_id}/websocket",
            connections=len(self._hub),
            lag_ms=self._lag_ms(),
            weight=settings.weight,
            draining=self._drain.is_on,
            drain=self._drain.state(),
        )

    def _lag_ms(self) -> int:
        lag_ms = 0 if self._consumer is None else self._consumer.lag_ms()
        LAG.set(lag_ms / 1000)
        return lag_ms

    def _lease_lost(self, kept: bool) -> None:
        self._registration.join_all_again(kept)
        if self._consumer is not None:
            self._consumer.end()

    def _drain_asked(self, request: bytes) -> None:
        self._drain.asked(request)

    def _on_tick(self, now: float) -> bool:
        self._gateway.tick(now)
        self._reconcile.tick(now - self._ticked)
        self._ticked = now
        self._ports.tick(now)
        if len(self._hub) > 1.2 * self._frozen_at + 500:
            # Long-lived objects out of the collector's sight: see docs/adr for the pauses measured without it.
            gc.collect(1)
            gc.freeze()
            self._frozen_at = len(self._hub)
        return self._lease.alive()

    # -- stop ------------------------------------------------------------------------------------------------

    async def until_left(self, stop: Stop) -> None:
        """Serve, then drain."""
        self._own(self._obey(stop), "signals")
        await self._drain.run()

    async def _obey(self, stop: Stop) -> None:
        await stop.wait()
        self._drain.by_signal()
        await stop.again.wait()
        self._drain.hurry()

    async def _leave_topic(self, patient: bool) -> bool:
        """Read the topic to its end, if that is wanted, and delete it; whether it is gone."""
        if patient and self._lease.alive():
            await self._until_read()
        for task in self._topic_tasks:
            task.cancel()
        await asyncio.gather(*self._topic_tasks, return_exceptions=True)
        if not self._reached_bus:
            return False
        try:
            async with asyncio.timeout(_SETTLE_S):
                await self._bus.drop_topic(self._topic)
        except (PushfleetError, TimeoutError) as error:
            _log.warning("topic_not_dropped", topic=self._topic, reason=str(error))
            return False
        return True

    async def _until_read(self) -> None:
        """Until nothing has come for a moment, or for a few seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_S
        while (now := loop.time()) < deadline:
            read = self._consumer is not None and self._consumer.waiting_since <= now - _QUIET_S
            if read:
                return
            await asyncio.sleep(_QUIET_S / 4)
        _log.warning("topic_not_read_to_its_end", topic=self._topic)

    async def close(self) -> None:
        """Stop everything, in the order that loses nothing."""
        self._ports.stop_listening()
        await self._keys.close()
        await self._renewal.close()
        await self._reconcile.close()
        patience_s = 0.0 if self._drain.done else _SETTLE_S  # a drain has waited for them already
        await self._clerk.close(_SETTLE_S if self._reached_bus else 0.0)
        await self._registration.close(patience_s)
        await self._presence.close(_SETTLE_S if self._reached_bus else 0.0)
        await self._neighbours.close(_SETTLE_S if self._reached_bus else 0.0)
        await self._audiences.close(patience_s)
        await self._delivery.close(patience_s)
        await self._moves.close(patience_s)
        await self._upstream.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bus.close()
        await self._store.close()
        await self._ports.close()
        _log.info("stopped", node_id=self.node_id)
